"""Scenes of coloured shapes: rendering, captions, prompts, edits, and an exact scorer.

Everything is made from a seed, so a claim about quality is arithmetic. It needs no data set and no judge.
"""

"""The small world: scenes of coloured shapes, their pictures, wordings, edits, and an exact scorer.

Everything here is made from a seed, so a claim about quality is arithmetic and needs no data set and no judge.
"""

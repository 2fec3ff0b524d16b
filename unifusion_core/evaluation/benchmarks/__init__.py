"""Benchmarks on real models: draw prompts of a file, have a VLM judge the images, score its answers.

`benchmark` has the values that travel between the steps, `run` the steps, and each other file one benchmark or one part of a
step.
"""

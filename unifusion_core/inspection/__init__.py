"""Inspection of LAP.

The share of each VLM layer in every pooled token, as numbers (`reading`), text (`table`), image (`layer_map`).
"""

"""Measurements of models, whatever they draw: speed and memory, with rates, intervals, tables and reports.

`suites` names what can be measured, `runner` runs it, `subject` is what a suite gets and gives. The exact suites of the embedded
model's coloured shapes are in shapes/evaluation.
"""

"""Measurements of any model: speed and memory, with rates, confidence intervals, tables and reports.

suites    registry of the suites
runner    runs suites and writes the report
subject   inputs and outputs of a suite

The suites for the embedded model's coloured shapes are in shapes/evaluation.
"""

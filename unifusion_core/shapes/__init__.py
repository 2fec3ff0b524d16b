"""The demo: the embedded model is trained and judged exactly on coloured shapes, see README.md.

The library does not import this package; the command line does.
"""

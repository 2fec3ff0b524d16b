"""The demo: coloured shapes, on which the embedded model was trained and is judged exactly. README.md tells more.

Nothing of the library imports this package; the command line does.
"""

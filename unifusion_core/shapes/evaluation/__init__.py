"""Exact suites: the embedded model draws scenes, and every picture is judged by its pixels alone."""

"""Exact suites: the embedded model generates scenes, and a scorer judges every image by its pixels alone."""

"""Trained modules: LAP, refiner, DiT and autoencoders."""

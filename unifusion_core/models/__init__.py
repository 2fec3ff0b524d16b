"""What is trained: autoencoder, LAP, refiner, DiT."""

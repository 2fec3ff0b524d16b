"""Weight files: generators, autoencoders, quantised layers, and estimates of the memory that they need."""

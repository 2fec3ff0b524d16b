"""Files of weights: generators, autoencoders, quantised layers, and the memory that they take."""

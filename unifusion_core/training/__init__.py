"""Training: recipes, data streams, the loop. Nothing here is needed to draw."""

"""Training of the embedded model: tasks for the loop in `unifusion_core/training`, and the recipes that made its weights."""

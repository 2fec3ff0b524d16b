"""What the embedded model is trained on: tasks for the loop in `training/`, and the recipes that made its weights."""

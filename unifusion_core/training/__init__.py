"""The trainer: one loop and one optimizer for every task. Sampling does not need it."""

"""Flow matching as functions without weights: path, time schedules, solvers, guidance."""

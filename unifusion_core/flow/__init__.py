"""Flow matching without modules: path, time schedules, solvers, guidance."""

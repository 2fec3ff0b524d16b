"""The mathematics of flow matching, without modules: path, schedules, solvers, guidance."""

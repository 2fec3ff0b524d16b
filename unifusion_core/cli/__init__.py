"""The command `unifusion`: `main` and one file per command, each with its options and what it does."""

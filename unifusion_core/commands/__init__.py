"""What each command of `unifusion` does; `command_line` reads its options."""

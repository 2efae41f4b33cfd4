"""The commands, grouped into modules by topic."""

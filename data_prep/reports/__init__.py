"""How much of a group's own reports the platform understands."""

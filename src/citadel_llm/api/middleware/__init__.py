"""What every request passes through: its correlation id, the check of its key, its time limits."""

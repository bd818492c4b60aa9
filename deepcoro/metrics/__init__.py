"""What is measured: per-row values, so that whoever aggregates can resample patients."""

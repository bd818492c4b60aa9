"""From per-row values to the numbers that a run reports: intervals, baselines, tables."""

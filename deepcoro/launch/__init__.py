"""From a Config to processes on a machine or a cluster."""

"""From the two tables of a prepared dataset to batches of clips, masks and tokens."""

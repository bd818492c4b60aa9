"""One optimizer step, what surrounds it, and the loop that each worker runs."""

"""The losses of multitask pretraining: plain torch, no Ray.

Every loss returns a sum and the caller divides by the count of all workers and micro-batches, so that a mean is the
same number however the rows are spread.
"""

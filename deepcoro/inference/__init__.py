"""A trained run, ready for use."""

from deepcoro.inference.load import TrainedModel, load

__all__ = ["TrainedModel", "load"]

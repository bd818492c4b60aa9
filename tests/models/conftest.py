"""Small published checkpoints with configs that start from them; and torchvision for the tests of MViT."""

import importlib
import sys
from pathlib import Path

import pytest

from tests.models.published import PIXELS, save_published

_DECLARED = []  # what declares operators must live as long as they


@pytest.fixture(scope="session")
def torchvision():
    """torchvision's Python models, beside any torch.

    Its wheel is made for torch with CUDA; beside another torch its compiled part does not load, and its import fails
    for want of operators that no model here uses. They are declared first. transformers, which would import it too
    wherever it finds it, has looked before, and remembers that there was none.
    """
    import torch
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return importlib.import_module("torchvision")  # of this torch, and installed by its user
    folder = Path(sys.prefix) / "torchvision"
    if not folder.is_dir():
        pytest.skip(f"torchvision is not in {folder}; make install puts it there")
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _DECLARED.append(library)
    sys.path.append(str(folder))
    try:
        return importlib.import_module("torchvision")
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """``published(kind, **different)`` -> a checkpoint in the Hugging Face format with every weight at random, and the
    base model that is in it."""
    made = {}

    def make(kind, **different):
        key = (kind, *sorted(different.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("published")
            made[key] = (folder, save_published(kind, folder, seed=len(made), **different))
        return made[key]

    return make


@pytest.fixture(scope="session")
def of(tiny_config):
    """``of(source, "section.field=value", ...)`` -> a tiny config that starts from ``source``; nothing given of the
    architecture."""

    def make(source, *assignments):
        text = ("loss.weights.contrastive=0", "loss.weights.captioning=0", *PIXELS)
        pretrained = tiny_config(*text).override([f"video_encoder.pretrained={source}"])
        return pretrained.override(assignments)

    return make

"""Small published checkpoints, and configs that start from them."""

import pytest

from tests.models.published import PIXELS, save_published


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

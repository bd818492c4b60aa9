"""Small published checkpoints, and configs that start from them."""

import json

import pytest
import torch
import transformers

from tests.models.published import COMMON, KINDS, MEAN, PIXELS, STD


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """``published(kind, **different)`` -> a checkpoint in the Hugging Face format with every weight at random, and the
    base model that is in it."""
    made = {}

    def make(kind, **different):
        key = (kind, *sorted(different.items()))
        if key not in made:
            model_class, config_class, fields = KINDS[kind]
            config = getattr(transformers, config_class)(**COMMON | fields | different)
            model = getattr(transformers, model_class)(config).eval()
            chance = torch.Generator().manual_seed(len(made))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    noise = torch.randn(parameter.shape, generator=chance)
                    norm = "norm" in name and name.endswith("weight")
                    parameter.copy_(1 + 0.3 * noise if norm else 0.2 * noise)
            folder = tmp_path_factory.mktemp("published")
            model.save_pretrained(folder)
            (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
            made[key] = (folder, getattr(model, model.base_model_prefix, model))
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

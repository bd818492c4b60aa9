"""What a run with the grounding loss refuses, and how finely it asks."""

import pytest

from deepcoro.config import Config
from deepcoro.errors import ConfigError

GROUNDED = ["loss.weights.grounding=0.05"]


def test_hidden_tokens_are_not_asked_for_lesions():
    Config().override(GROUNDED)
    with pytest.raises(ConfigError, match=r"loss\.weights\.grounding does not go with shared_pass\.enabled"):
        Config().override([*GROUNDED, "shared_pass.enabled=true"])


def test_cells_divide_the_tokens_of_a_clip():
    config = Config()  # 16 frames of 224 pixels, tokens of 2 x 16 x 16
    assert config.grounding.cells(config.grid) == (8, 28, 28)
    assert config.override(["grounding.cells_per_token=3"]).grounding.cells((2, 4, 5)) == (2, 12, 15)


def test_more_cells_than_pixels_are_refused():
    Config().override([*GROUNDED, "grounding.cells_per_token=8", "video_encoder.tubelet=[2,8,8]"])
    with pytest.raises(ConfigError, match="cells_per_token 16 is more than the pixels of a token, 8 x 8"):
        Config().override([*GROUNDED, "grounding.cells_per_token=16", "video_encoder.tubelet=[2,8,8]"])

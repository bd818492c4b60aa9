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


@pytest.mark.parametrize("cells", [0, 5])
def test_numbers_of_cells_out_of_range_are_refused(cells):
    with pytest.raises(ConfigError, match="cells_per_token"):
        Config().override([f"grounding.cells_per_token={cells}"])

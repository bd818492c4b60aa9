"""What a run with the grounding loss refuses, and how finely it asks."""

import pytest

from deepcoro.config import Config
from deepcoro.errors import ConfigError

GROUNDED = ["loss.weights.grounding=0.05"]


def test_hidden_tokens_are_not_asked_for_lesions():
    Config().override(GROUNDED)
    with pytest.raises(ConfigError, match=r"loss\.weights\.grounding does not go with shared_pass\.enabled"):
        Config().override([*GROUNDED, "shared_pass.enabled=true"])


@pytest.mark.parametrize("without", ["grounding", "captioning"])
def test_captions_are_informed_where_both_losses_are_in_use(without):
    informed = [*GROUNDED, "grounding.informs_captions=true"]
    Config().override(informed)
    with pytest.raises(ConfigError, match="informs_captions needs both losses in use"):
        Config().override([*informed, f"loss.weights.{without}=0"])


def test_blocks_count_the_maps_of_lesions():
    # 12 clips of 24 frames of 160 pixels have 7.4 MB, of which 28 MiB hold 3; with 12 x 30 x 30 cells of 22 bytes each
    # they have 10.2 MB, of which they hold 2.
    clip = ["data.num_frames=24", "data.frame_size=160", "training.batch_size=12"]
    maps = ["loss.weights.grounding=0.05", "grounding.cells_per_token=3"]
    assert Config().override(clip).batches_per_block == 3
    assert Config().override([*clip, *maps]).batches_per_block == 2


def test_cells_divide_the_tokens_of_a_clip():
    config = Config()  # 16 frames of 224 pixels, tokens of 2 x 16 x 16
    assert config.grounding.cells(config.grid) == (8, 28, 28)
    assert config.override(["grounding.cells_per_token=3"]).grounding.cells((2, 4, 5)) == (2, 12, 15)


@pytest.mark.parametrize("cells", [0, 5])
def test_numbers_of_cells_out_of_range_are_refused(cells):
    with pytest.raises(ConfigError, match="cells_per_token"):
        Config().override([f"grounding.cells_per_token={cells}"])

"""The sheet of masks: what is painted over, and where it lies."""

import numpy as np
import pytest

from deepcoro.data.masking import STRATEGIES
from experiments.masks import GRID, HIDDEN, RATIOS, SHOWN, mask, painted, sheet


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (16, 112, 112), dtype=np.uint8)


def test_only_hidden_tokens_are_painted_over(clip):
    hidden = np.zeros(GRID, bool)
    hidden[1, 2, 3] = True  # frames 2 and 3, rows from 16, columns from 24
    found = painted(clip, hidden)
    changed = (found != clip[..., None]).any(axis=-1)
    expected = np.zeros(clip.shape, bool)
    expected[2:4, 16:24, 24:32] = True
    assert np.array_equal(changed, expected)
    assert np.abs(found[2, 16, 24] - (0.2 * clip[2, 16, 24] + 0.8 * HIDDEN)).max() <= 0.5


def test_masks_hide_as_much_as_is_asked_for(clip):
    shares = [mask(strategy, 0.75, clip, 0).mean() for strategy in STRATEGIES]
    assert shares == [0.75] * len(STRATEGIES)


def test_the_sheet_shows_the_frames_and_every_strategy(clip):
    found = sheet(clip, 0)
    assert found.shape == (16 + 7 * 116, 70 + 3 * (4 * 116 + 8), 3)
    for column in range(len(RATIOS)):
        for number, frame in enumerate(SHOWN):
            x = 70 + column * 472 + number * 116
            assert np.array_equal(found[16:128, x : x + 112, 0], clip[frame])
    for line, strategy in enumerate(STRATEGIES, start=1):
        shown = painted(clip, mask(strategy, RATIOS[0], clip, 0))[SHOWN[0]]
        assert np.array_equal(found[16 + line * 116 :][:112, 70:182], shown)

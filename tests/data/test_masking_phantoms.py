"""Motion-guided masks on phantoms whose vessels are known."""

import numpy as np
import pytest

from data_prep.phantom.cines import take_cines
from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from deepcoro.config_masking import MaskedModelingConfig
from deepcoro.data.masking import Masking

GRID, TUBELET = (8, 14, 14), (2, 8, 8)


@pytest.fixture(scope="module")
def cines():
    """Of each preset two cines, [16, 112, 112], with the tokens that a vessel enters or leaves [N] bool."""

    def made(preset, index):
        knobs = preset_named(preset)
        cine = next(iter(take_cines(draw_patient(5, index, knobs), 5, knobs, 112, 48, 15.0, masks=True)))
        chosen = np.linspace(len(cine.frames) // 4, len(cine.frames) * 3 // 4, 16).astype(int)
        vessel = cine.mask[chosen] > 0
        moves = np.zeros_like(vessel)
        moves[1:] = vessel[1:] != vessel[:-1]
        t, h, w = GRID
        share = moves.reshape(t, TUBELET[0], h, TUBELET[1], w, TUBELET[2]).mean(axis=(1, 3, 5))
        return cine.frames[chosen], share.reshape(-1) > 0.05

    return {preset: [made(preset, index) for index in range(2)] for preset in ("easy", "standard")}


def hidden_share(strategy, ratio, clip, tokens, draws=8):
    """Share of ``tokens`` that is hidden, over some masks."""
    part = MaskedModelingConfig(strategy=strategy, mask_ratio=ratio)
    masking, found = Masking.of(part, GRID), []
    for seed in range(draws):
        hidden = np.zeros(masking.num_tokens, bool)
        hidden[masking.order(np.random.default_rng(seed), clip)[part.num_visible(GRID) :]] = True
        found.append(hidden[tokens].mean())
    return np.mean(found)


@pytest.mark.parametrize("preset", ["easy", "standard"])
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_moving_vessels_are_hidden_more_often_than_by_chance(cines, preset, ratio):
    for clip, moving in cines[preset]:
        assert 50 < moving.sum() < 800
        guided, chance = (hidden_share(strategy, ratio, clip, moving) for strategy in ("motion", "random"))
        assert chance == pytest.approx(ratio, abs=0.05)
        assert guided > ratio + 0.1
        assert hidden_share("motion", ratio, clip, ~moving) > 0.05  # what stands still is hidden too

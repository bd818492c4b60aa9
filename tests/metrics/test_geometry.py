"""Alignment and uniformity against the paper's own few lines of torch; random directions against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import iv

from deepcoro.metrics import geometry
from deepcoro.metrics.geometry import alignment, chance_alignment, random_uniformity, uniformity


def on_sphere(generator, rows, width):
    return torch.nn.functional.normalize(torch.tensor(generator.normal(size=(rows, width))), dim=1)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 40), st.integers(2, 9), st.floats(0.5, 4), st.integers(1, 200))
def test_they_are_those_of_the_paper(seed, rows, width, t, block):
    generator = np.random.default_rng(seed)
    x, y = on_sphere(generator, rows, width), on_sphere(generator, rows, width)
    # The paper's figure 5.
    align = (x - y).norm(p=2, dim=1).pow(2).mean()
    uniform = torch.pdist(x, p=2).pow(2).mul(-t).exp().mean().log()
    assert alignment(3 * x.numpy(), y.numpy()).mean() == pytest.approx(float(align), abs=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "_BLOCK", block)
        assert uniformity(5 * x.numpy(), t) == pytest.approx(float(uniform), abs=1e-5)


def test_ends_of_the_ranges():
    point = np.ones((5, 3))
    assert uniformity(point) == pytest.approx(0, abs=1e-5)
    assert uniformity([[1.0, 0.0], [-1.0, 0.0]]) == pytest.approx(-8)
    assert alignment([[1.0, 0.0], [0.0, 2.0]], [[-3.0, 0.0], [0.0, 1.0]]).tolist() == [4, 0]


def test_chance_alignment_is_the_mean_over_all_pairs():
    generator = np.random.default_rng(0)
    x, y = on_sphere(generator, 30, 4), on_sphere(generator, 30, 4) + 0.5
    reference = torch.cdist(x, torch.nn.functional.normalize(y, dim=1)).square().mean()
    assert chance_alignment(x.numpy(), y.numpy()) == pytest.approx(float(reference), abs=1e-6)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_random_directions_in_closed_form(t):
    assert random_uniformity(2, t) == pytest.approx(np.log(iv(0, 2 * t)) - 2 * t)  # on a circle
    assert random_uniformity(3, t) == pytest.approx(np.log(np.sinh(2 * t) / (2 * t)) - 2 * t)  # on a sphere


def test_random_directions_in_many_dimensions():
    rows = np.random.default_rng(1).normal(size=(3000, 512))
    assert uniformity(rows) == pytest.approx(random_uniformity(512), abs=1e-3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="2 rows or more and t above 0, got 1 and 2"):
        uniformity(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        alignment(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="others in row 1 of embeddings"):
        uniformity([[1.0, 0.0], [np.inf, 1.0]])

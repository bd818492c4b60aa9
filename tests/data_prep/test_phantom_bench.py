"""The vectorised disc drawing is the plain loop of the benchmark."""

import numpy as np

from data_prep.phantom.render import thickness
from experiments.bench.phantom import plain_thickness


def test_discs_drawn_together_are_the_discs_drawn_one_by_one():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-3, 43, (2, 3, 200))  # some outside the picture
    radius, height = rng.uniform(0.1, 4, (3, 200)), rng.uniform(0, 2, (3, 200))
    drawn = thickness(x, y, radius, height, 40)
    np.testing.assert_allclose(drawn, plain_thickness(x, y, radius, height, 40), atol=1e-4)
    assert drawn.max() > 1

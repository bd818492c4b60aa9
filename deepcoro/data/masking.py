"""The order in which the tokens of a clip are shown: the step keeps the first K and hides the rest.

Tokens are numbered along time, then height, then width. A tube mask (VideoMAE, 2203.12602) shows a place at all times
or never; a random one (MAE-ST, 2205.09113) draws each token by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Grid = tuple[int, int, int]  # tokens along time, height, width


def random_order(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Every token by itself, [N] uint16."""
    return rng.permutation(grid[0] * grid[1] * grid[2]).astype(np.uint16)


def tube_order(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Places in random order, each with all its times together, [N] uint16."""
    times, places = grid[0], grid[1] * grid[2]
    columns = rng.permutation(places)[:, None] + np.arange(times) * places
    return columns.reshape(-1).astype(np.uint16)


STRATEGIES: dict[str, Callable[[Grid, np.random.Generator], np.ndarray]] = {"random": random_order, "tube": tube_order}


def mask_order(strategy: str, grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Order [N] uint16 of one clip under ``strategy``.

    Raises:
        ValueError: an unknown strategy, or more tokens than 16 bits can number.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown mask strategy {strategy!r}; known are {', '.join(STRATEGIES)}")
    if grid[0] * grid[1] * grid[2] > 2**16:
        raise ValueError(f"a clip of {grid} tokens has more than 65536; use larger tubelets")
    return STRATEGIES[strategy](grid, rng)

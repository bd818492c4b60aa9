"""The order in which the tokens of a clip are shown: the step keeps the first K and hides the rest.

So a mask is a suffix of an order, its count is exact, and the ratio may change from step to step while the workers
need not know of it. Tokens are numbered along time, then height, then width.

=============  =======================================================================================================
random         every token by itself (MAE-ST, 2205.09113)
tube, spatial  a place at all times or never (VideoMAE, 2203.12602; "space-only" in MAE-ST, a second name of the same)
temporal       a time at all places or never ("time-only" in MAE-ST)
block          a union of boxes of tokens (multi-block of V-JEPA, 2404.08471)
motion         the more a token changes in time, the likelier it is hidden (after MGMAE, 2308.10794, without its flow)
=============  =======================================================================================================

Tubes and times are whole where K is a multiple of them, which ``Config.num_visible`` sees to. Where the union of blocks
would be larger than the mask, the last block is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepcoro.config import Config
from deepcoro.config_masking import Grid, MaskedModelingConfig

_CELL = 4  # pixels each way that changes are averaged over: less noise of the detector, and vessels are wider


@dataclass(frozen=True)
class Masking:
    """How the masks of clips of ``grid`` tokens are drawn.

    Args:
        num_visible: the fewest tokens that are ever shown; blocks are drawn until all others are covered.
        block_min, block_max: tokens of the smallest and the largest block along time, height and width.
        motion_temperature, motion_floor: as in ``MaskedModelingConfig``.

    Raises:
        ValueError: an unknown strategy, or more tokens than 16 bits can number.
    """

    strategy: str
    grid: Grid
    num_visible: int = 1
    block_min: Grid = (1, 1, 1)
    block_max: Grid = (1, 1, 1)
    motion_temperature: float = 0.5
    motion_floor: float = 0.1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"unknown mask strategy {self.strategy!r}; known are {', '.join(STRATEGIES)}")
        if self.num_tokens > 2**16:
            raise ValueError(f"a clip of {self.grid} tokens has more than 65536; use larger tubelets")

    @classmethod
    def from_config(cls, config: Config) -> Masking:
        """As a config, whose tubelets are known, describes it."""
        part = config.masked_modeling
        return cls.of(part, config.grid, min(config.num_visible, config.visible_range[0]))

    @classmethod
    def of(cls, part: MaskedModelingConfig, grid: Grid, num_visible: int = 1) -> Masking:
        """As ``part`` describes it, for clips of ``grid`` tokens."""
        sizes = part.block_sizes(grid)
        return cls(part.strategy, grid, num_visible, *sizes, part.motion_temperature, part.motion_floor)

    @property
    def num_tokens(self) -> int:
        """Tokens of a clip, N."""
        return math.prod(self.grid)

    def order(self, rng: np.random.Generator, clip: np.ndarray | None = None) -> np.ndarray:
        """Every token once, in the order in which they are shown, [N] uint16.

        Args:
            clip: [frames, height, width] uint8; only ``motion`` looks at it.

        Raises:
            ValueError: ``motion`` without a clip, or with one that does not divide into the tokens.
        """
        return STRATEGIES[self.strategy](self, rng, clip).astype(np.uint16)


def random_order(masking: Masking, rng: np.random.Generator, clip: np.ndarray | None) -> np.ndarray:
    """Every token by itself."""
    return rng.permutation(masking.num_tokens)


def tube_order(masking: Masking, rng: np.random.Generator, clip: np.ndarray | None) -> np.ndarray:
    """Places in random order, each with all its times together."""
    times, places = masking.grid[0], masking.grid[1] * masking.grid[2]
    return (rng.permutation(places)[:, None] + np.arange(times) * places).reshape(-1)


def temporal_order(masking: Masking, rng: np.random.Generator, clip: np.ndarray | None) -> np.ndarray:
    """Times in random order, each with all its places together."""
    times, places = masking.grid[0], masking.grid[1] * masking.grid[2]
    return (rng.permutation(times)[:, None] * places + np.arange(places)).reshape(-1)


def block_order(masking: Masking, rng: np.random.Generator, clip: np.ndarray | None) -> np.ndarray:
    """Blocks one after the other until enough is covered; what the first of them covers is shown last.

    Each block has a token of its own that no other has, and lies anywhere around it within the clip: so N blocks cover
    everything, and tokens at the edge are hidden about as often as others. Tokens of one block stand along time first,
    so that the one that is cut keeps whole columns.
    """
    grid, tokens = np.array(masking.grid), masking.num_tokens
    own = np.stack(np.unravel_index(rng.permutation(tokens), masking.grid), axis=1)
    sizes = rng.integers(masking.block_min, masking.block_max, (tokens, 3), endpoint=True)
    begins = np.clip(own - rng.integers(0, sizes), 0, grid - sizes)
    boxes = np.concatenate([begins, begins + sizes], axis=1).tolist()
    first = np.full(masking.grid, tokens)  # the first block that covers a token; as many as there are tokens: none yet
    done = 0
    while np.count_nonzero(first == tokens) > masking.num_visible:
        painted, until = np.full(masking.grid, tokens), min(2 * done or 16, tokens)
        for number in range(until - 1, done - 1, -1):  # earlier blocks over later ones
            t0, y0, x0, t1, y1, x1 = boxes[number]
            painted[t0:t1, y0:y1, x0:x1] = number
        first, done = np.minimum(first, painted), until
    columns = np.arange(tokens).reshape(masking.grid).transpose(1, 2, 0).reshape(-1)
    return columns[np.argsort(-first.transpose(1, 2, 0).reshape(-1), kind="stable")]


def motion_order(masking: Masking, rng: np.random.Generator, clip: np.ndarray | None) -> np.ndarray:
    """Hidden tokens are drawn without replacement by weights that grow with ``motion`` (Gumbel top-k, 1903.06059)."""
    if clip is None:
        raise ValueError("the mask strategy motion needs the clip that it is for")
    change = motion(clip, masking.grid).reshape(-1)
    mean = change.mean()
    weights = masking.motion_floor + (change / mean if mean > 0 else 0 * change)
    return np.argsort(np.log(weights) / masking.motion_temperature + rng.gumbel(size=masking.num_tokens))


def motion(clip: np.ndarray, grid: Grid) -> np.ndarray:
    """How much each token changes in time, of ``grid`` shape, in levels of grey: the mean over its frames and cells of
    4x4 pixels (fewer where tokens do not divide into them) of the differences to the frames before and after.

    Args:
        clip: [frames, height, width] uint8.

    Raises:
        ValueError: it does not divide into the tokens.
    """
    if any(length % tokens for length, tokens in zip(clip.shape, grid, strict=True)):
        raise ValueError(f"a clip of {clip.shape} pixels does not divide into {grid} tokens")
    frames, height, width = clip.shape
    down, across = (math.gcd(_CELL, length // tokens) for length, tokens in zip(clip.shape[1:], grid[1:], strict=True))
    rows = clip.reshape(frames, height // down, down, width).sum(axis=2, dtype=np.uint16)
    # A sum over a last axis of 4 is slow; the sum of 4 slices is not.
    cells = sum(rows[..., begin::across].astype(np.float32) for begin in range(across)) / (down * across)
    steps = np.abs(np.diff(cells, axis=0))
    change = np.zeros_like(cells)
    change[1:] += steps
    change[:-1] += steps
    change[1:-1] /= 2  # the first and the last frame have one neighbour
    t, h, w = grid
    return change.reshape(t, frames // t, h, height // down // h, w, width // across // w).mean(axis=(1, 3, 5))


Strategy = Callable[[Masking, np.random.Generator, np.ndarray | None], np.ndarray]
STRATEGIES: dict[str, Strategy] = {
    "random": random_order,
    "tube": tube_order,
    "temporal": temporal_order,
    "spatial": tube_order,
    "block": block_order,
    "motion": motion_order,
}

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

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deepcoro.config import Config
from deepcoro.config_masking import Grid, MaskedModelingConfig

_CELL = 4  # pixels that changes are averaged over: less noise of the detector, and vessels are wider
_FEWEST_PICTURES = 8  # between which changes are looked for, of clips that have as many
_FIRST_BLOCKS = 12  # about as many as hide three quarters of a clip


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
    motion_temperature: float = 1.0
    motion_floor: float = 0.5

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

    A block lies anywhere around a token of its own, and within the clip: so every token is covered some time, those at
    the edge too. Tokens of one block stand along time first, so that the one that is cut keeps whole columns.
    """
    tokens = masking.num_tokens
    first = np.full(masking.grid, tokens)  # the first block that covers a token, from 0; large where there is none
    done, number = 0, _FIRST_BLOCKS
    while np.count_nonzero(first == tokens) > masking.num_visible:
        boxes = _blocks(masking, rng, number)
        painted = np.full(masking.grid, tokens)
        for block in range(number - 1, -1, -1):  # earlier blocks over later ones
            t0, y0, x0, t1, y1, x1 = boxes[block]
            painted[t0:t1, y0:y1, x0:x1] = min(done + block, tokens - 1)
        first = np.minimum(first, painted)
        done, number = done + number, 2 * number
    along_time = tokens - first.transpose(1, 2, 0).reshape(-1)
    # A stable sort of 16 bits takes a fifth of the time of another.
    placed = np.argsort(along_time.astype(np.uint16) if tokens < 2**16 else along_time, kind="stable")
    return np.arange(tokens).reshape(masking.grid).transpose(1, 2, 0).reshape(-1)[placed]


def _blocks(masking: Masking, rng: np.random.Generator, number: int) -> list[list[int]]:
    """First token and the one after the last, along time, height and width, of each block."""
    smallest, grid = np.array(masking.block_min), np.array(masking.grid)
    of_size, own, inside = rng.random((3, number, 3))
    sizes = smallest + (of_size * (masking.block_max - smallest + 1)).astype(np.int64)
    begins = (own * grid).astype(np.int64) - (inside * sizes).astype(np.int64)
    begins = np.minimum(np.maximum(begins, 0), grid - sizes)
    return np.concatenate([begins, begins + sizes], axis=1).tolist()


def motion_order(masking: Masking, rng: np.random.Generator, clip: np.ndarray | None) -> np.ndarray:
    """Hidden tokens are drawn one after the other, without replacement, with probabilities in the ratio of weights that
    grow with ``motion``.

    That is the order of times E / w, E from the exponential distribution (Efraimidis and Spirakis, 2006); the first are
    shown last.
    """
    if clip is None:
        raise ValueError("the mask strategy motion needs the clip that it is for")
    change = motion(clip, masking.grid).reshape(-1)
    mean = change.mean()
    log_weights = np.log(masking.motion_floor + (change / mean if mean > 0 else change)) / masking.motion_temperature
    return np.argsort(log_weights - np.log(rng.standard_exponential(masking.num_tokens, np.float32)))


def motion(clip: np.ndarray, grid: Grid) -> np.ndarray:
    """How much each token changes in time, of ``grid`` shape, in levels of grey.

    It is the mean over cells of the differences to the pictures before and after. A cell is the first row of 4x4 pixels
    (or fewer, where tokens do not divide into them): to read the others would take most of the time. Pictures are all
    frames or, where a token has several, so many of them that there are 8 or more.

    Args:
        clip: [frames, height, width] uint8.

    Raises:
        ValueError: it does not divide into the tokens.
    """
    if any(length % tokens for length, tokens in zip(clip.shape, grid, strict=True)):
        raise ValueError(f"a clip of {clip.shape} pixels does not divide into {grid} tokens")
    t, h, w = grid
    frames, down, across = (length // tokens for length, tokens in zip(clip.shape, grid, strict=True))
    every = max(n for n in range(1, frames + 1) if n == 1 or (frames % n == 0 and len(clip) // n >= _FEWEST_PICTURES))
    height, width = math.gcd(_CELL, down), math.gcd(_CELL, across)
    cells = _sum_cells(clip, every, height, width)
    steps = np.abs(np.diff(cells, axis=0)).astype(np.float32)
    # Summed over a token's cells first, as there are fewer tokens than cells.
    of_rows = _sum_neighbours(steps, 1, down // height)
    sums = _sum_neighbours(of_rows, 2, across // width)
    change = np.zeros((len(cells), h, w), np.float32)
    change[1:] = sums
    change[:-1] += sums
    change[[0, -1]] *= 2  # the first and the last picture have one neighbour
    tokens = change.reshape(t, frames // every, h, w).sum(axis=1)
    return tokens / (2 * (frames // every) * (down // height) * across)


def _sum_cells(clip: np.ndarray, every: int, height: int, width: int) -> np.ndarray:
    """Sums [T / every, H / height, W / width] int16 over the first row of cells, of every so many frames of a clip
    [T, H, W] uint8; ``width`` is 1, 2 or 4.

    The pixels of a cell are taken as one number, whose bytes are added side by side: numpy is slow at sums of a few.
    """
    rows: np.ndarray = np.ascontiguousarray(clip).view(f"u{width}")[::every, ::height]
    if width == 4:
        rows = (rows & 0x00FF00FF) + ((rows >> 8) & 0x00FF00FF)
        rows += rows >> 16
    elif width == 2:
        rows = (rows & 0xFF) + (rows >> 8)
    return (rows & 0x7FF if width == 4 else rows).astype(np.int16)


def _sum_neighbours(values: np.ndarray, axis: int, number: int) -> np.ndarray:
    """Sums of ``number`` neighbours along axis 1 or 2 of 3; by slices, as numpy is slow to reduce over a few."""
    places = [(slice(None),) * axis + (slice(first, None, number),) for first in range(number)]
    return functools.reduce(np.add, (values[place] for place in places))


Strategy = Callable[[Masking, np.random.Generator, np.ndarray | None], np.ndarray]
STRATEGIES: dict[str, Strategy] = {
    "random": random_order,
    "tube": tube_order,
    "temporal": temporal_order,
    "spatial": tube_order,
    "block": block_order,
    "motion": motion_order,
}

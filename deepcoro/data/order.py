"""Which unit stands at which position of the endless sample stream, in constant memory at any size.

Position p is epoch ``p // n``, unit ``perm(seed, epoch)[p % n]``. The permutation is a balanced Feistel network over
the smallest even number of bits that holds n, walked until it lands below n (Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002). So an epoch is an exact permutation, every epoch differs, and any position is reached without
the others.
"""

from __future__ import annotations

import numpy as np

_ROUNDS = 6
_U64 = np.uint64


class Order:
    """The order of ``num_units`` units under ``seed``.

    Raises:
        ValueError: ``num_units`` is below 1.
    """

    def __init__(self, num_units: int, seed: int) -> None:
        if num_units < 1:
            raise ValueError(f"an order needs at least one unit, got {num_units}")
        self.num_units = num_units
        self.seed = seed
        self._half_bits = _U64(max(1, ((num_units - 1).bit_length() + 1) // 2))
        self._mask = _U64((1 << int(self._half_bits)) - 1)

    def units(self, positions: np.ndarray) -> np.ndarray:
        """Units at ``positions`` (any shape, int64, >= 0), int64 in [0, num_units)."""
        positions = np.asarray(positions, dtype=np.int64)
        epoch, place = np.divmod(positions, self.num_units)
        key = _mix(_mix(np.full(positions.shape, self.seed, _U64)) + epoch.astype(_U64))
        unit = self._permute(place.astype(_U64), key)
        while (outside := unit >= _U64(self.num_units)).any():  # the domain is below 4 n: a few walks at most
            unit = np.where(outside, self._permute(unit, key), unit)
        return unit.astype(np.int64)

    @np.errstate(over="ignore")  # arithmetic wraps on purpose
    def _permute(self, value: np.ndarray, key: np.ndarray) -> np.ndarray:
        left, right = value >> self._half_bits, value & self._mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + key + _ROUND_KEYS[number]) & self._mask)
        return (left << self._half_bits) | right


_GOLDEN = _U64(0x9E3779B97F4A7C15)
_ROUND_KEYS = [_U64(number * 0x9E3779B97F4A7C15 % 2**64) for number in range(_ROUNDS)]


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014); arithmetic wraps on purpose."""
    with np.errstate(over="ignore"):
        value = value + _GOLDEN
        value = (value ^ (value >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> _U64(27))) * _U64(0x94D049BB133111EB)
        return value ^ (value >> _U64(31))


def generator(seed: int, position: int, purpose: int = 0) -> np.random.Generator:
    """Random numbers of one place in the stream: the same on any worker, in any run, after any resume.

    ``purpose`` separates streams that must not share numbers (0 training, 1 evaluation, 2 captioning tasks).
    """
    return np.random.default_rng([seed, position, purpose])


class StreamLayout:
    """How the stream is cut into blocks, so that every step's joint batch is positions [s*B, (s+1)*B).

    Worker w of W takes blocks w, w + W, w + 2W, ...: block j holds up to ``batches_per_block`` consecutive
    micro-batches of worker j % W. Micro-batch q of a worker is accumulation q % A of step q // A.

    Args:
        start: first position, a multiple of ``batch_size``.
        num_steps: steps from there.
        batch_size: rows of a step, all workers and accumulations together.
    """

    def __init__(
        self,
        start: int,
        num_steps: int,
        batch_size: int,
        num_workers: int,
        accumulation_steps: int,
        batches_per_block: int,
    ) -> None:
        if start % batch_size:
            raise ValueError(
                f"the stream starts at position {start}, which is no multiple of the batch size {batch_size}"
            )
        if batch_size % (num_workers * accumulation_steps):
            raise ValueError(f"{batch_size} rows do not divide among {num_workers} workers x {accumulation_steps}")
        self.start, self.batch_size = start, batch_size
        self.num_workers, self.accumulation_steps = num_workers, accumulation_steps
        self.micro = batch_size // (num_workers * accumulation_steps)
        self.per_worker = num_steps * accumulation_steps  # micro-batches
        self.batches_per_block = min(batches_per_block, max(1, self.per_worker))
        self.num_blocks = -(-self.per_worker // self.batches_per_block) * num_workers

    def positions(self, block: int) -> np.ndarray:
        """Positions of one block, in the order in which its worker takes them."""
        worker, group = block % self.num_workers, block // self.num_workers
        first = group * self.batches_per_block
        sequence = np.arange(first, min(first + self.batches_per_block, self.per_worker), dtype=np.int64)
        step, accumulation = np.divmod(sequence, self.accumulation_steps)
        begin = self.start + step * self.batch_size + (accumulation * self.num_workers + worker) * self.micro
        return (begin[:, None] + np.arange(self.micro)).reshape(-1)

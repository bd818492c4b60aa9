"""The Ray Data graph: positions of the stream -> decoded, masked, tokenised rows, in parallel CPU workers.

One block is some consecutive micro-batches of one training worker; blocks are made in order and dealt out in turn, so
the joint batch of step s is positions [s*B, (s+1)*B) on any number of workers (``order.StreamLayout``).
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from deepcoro.config import Config
from deepcoro.data.collate import trim_text
from deepcoro.data.order import Order, StreamLayout
from deepcoro.data.reader import UnitReader
from deepcoro.data.schema import Batch
from deepcoro.data.tables import Units
from deepcoro.data.text import ReportTokenizer

_NICENESS = 15  # of data tasks, which run ahead: where a training worker wants the core, it goes first
_MOST_TASKS = 1000  # that Ray Data plans for one run; with 10,000 it took 26 s longer to start


def stream_layout(config: Config, start: int) -> StreamLayout:
    """How the rest of a run's stream, from position ``start``, is cut into blocks."""
    training = config.training
    num_steps = training.num_steps - start // training.batch_size
    return StreamLayout(
        start,
        num_steps,
        training.batch_size,
        config.resources.num_workers,
        training.accumulation_steps,
        config.batches_per_block,
    )


def training_dataset(
    config: Config, units: ray.ObjectRef[Units], tokenizer: ReportTokenizer | None, start: int
) -> ray.data.Dataset:
    """The rows of a run from position ``start`` to its last step, in the order in which workers take them."""
    layout = stream_layout(config, start)
    read = functools.partial(_read_training_block, config=config, layout=layout, units=units, tokenizer=tokenizer)
    configure(layout.micro * layout.batches_per_block * config.data.num_videos, config)
    return _graph(layout.num_blocks, read, config)


def evaluation_dataset(
    config: Config, units: ray.ObjectRef[Units], tokenizer: ReportTokenizer | None, unit_indices: np.ndarray
) -> ray.data.Dataset:
    """Each of ``unit_indices`` once, in that order, without chance. Blocks are batches, of up to
    ``evaluation.batch_size`` clips: a study has all its videos there, and one with more of them is a batch by
    itself."""
    table = ray.get(units)
    numbers = [table.num_videos(unit) for unit in unit_indices.tolist()]
    blocks = [unit_indices[piece] for piece in batches_of(numbers, config.evaluation.batch_size)]
    read = functools.partial(_read_evaluation_block, config=config, blocks=blocks, units=units, tokenizer=tokenizer)
    configure(max([config.evaluation.batch_size, *numbers]), config)
    return _graph(len(blocks), read, config)


def batches_of(numbers: Sequence[int], most: int) -> list[slice]:
    """Cut rows of ``numbers`` of clips into consecutive batches of ``most`` clips or less, counted with the padding
    that gives each row of a batch as many as its largest; a row with more is a batch by itself."""
    pieces, begin, largest = [], 0, 0
    for row, number in enumerate(numbers):
        if row > begin and (row - begin + 1) * max(largest, number) > most:
            pieces.append(slice(begin, row))
            begin, largest = row, 0
        largest = max(largest, number)
    return [*pieces, slice(begin, len(numbers))] if len(numbers) else []


def iterate(dataset: Any, batch_size: int) -> Any:
    """Batches of ``batch_size`` rows (the last may be smaller) of a dataset or of a training worker's shard of one."""
    for rows in dataset.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2):
        yield trim_text(rows)


class BlockNumbers(Datasource):
    """Block j of the stream as a row that says j. Unlike ``ray.data.range`` its tasks ask for no whole CPU, so that a
    machine whose CPUs are nearly spoken for does not wait for ever.

    Ray makes every task before it starts the first. So a long stream has ``_MOST_TASKS`` of them at most, each with as
    many numbers, which Ray then cuts into blocks of one. A short one has a task a block, and Ray fuses it with the
    decoding that follows.
    """

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.num_blocks = num_blocks
        self.blocks_per_task = max(1, -(-num_blocks // _MOST_TASKS))

    @property
    def num_asked_for(self) -> int:
        """What ``override_num_blocks`` has to be, so that Ray cuts the tasks' tables into single rows."""
        return -(-self.num_blocks // self.blocks_per_task) * self.blocks_per_task

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the numbers."""
        return 8 * self.num_blocks

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """The same tasks whatever ``parallelism`` says: the order of the stream hangs on them."""
        firsts = range(0, self.num_blocks, self.blocks_per_task)
        ranges = [range(first, min(first + self.blocks_per_task, self.num_blocks)) for first in firsts]
        return [
            ReadTask(
                functools.partial(_number_blocks, numbers),
                BlockMetadata(num_rows=len(numbers), size_bytes=8 * len(numbers), input_files=None, exec_stats=None),
            )
            for numbers in ranges
        ]


def _number_blocks(numbers: range) -> list[pa.Table]:
    return [pa.table({"id": list(numbers)})]


def configure(clips_per_block: int, config: Config) -> None:
    """Settings of Ray Data for this process: no progress bars or plans of its own (what goes wrong is still said), and
    blocks that are never cut, since the dealing out counts them."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    clip_bytes = config.data.num_frames * config.data.frame_size**2
    context.target_max_block_size = max(128 * 2**20, 2 * clips_per_block * clip_bytes)
    if Breather not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(Breather)  # type: ignore[arg-type]  # it has the methods


class Breather:
    """Gives Ray Data's scheduling loop a pause at every turn (it has the methods of Ray's ``ExecutionCallback``).

    Ray 2.60 waits for its tasks, and where there are none because all that may be decoded ahead lies ready, it turns
    without a pause: beside a trainer slower than the data, a core was busy with that to two thirds.
    """

    SECONDS = 0.01  # a block takes some 100 ms or more to decode

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to do."""

    def on_execution_step(self, executor: Any) -> None:
        """Pause."""
        time.sleep(self.SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do."""


def _graph(num_blocks: int, read: Any, config: Config) -> ray.data.Dataset:
    share = config.resources.cpus_per_data_task
    source = BlockNumbers(num_blocks)
    numbers = ray.data.read_datasource(source, override_num_blocks=source.num_asked_for, num_cpus=share)
    return numbers.map_batches(read, batch_size=None, batch_format="numpy", num_cpus=share, zero_copy_batch=True)


def _read_training_block(
    block: dict[str, np.ndarray],
    config: Config,
    layout: StreamLayout,
    units: ray.ObjectRef[Units],
    tokenizer: ReportTokenizer | None,
) -> Batch:
    _step_back()
    table = ray.get(units)
    positions = np.concatenate([layout.positions(int(number)) for number in block["id"]])
    order = Order(len(table), config.seed)
    return UnitReader(config, table, tokenizer, training=True).read(positions, order.units(positions))


def _read_evaluation_block(
    block: dict[str, np.ndarray],
    config: Config,
    blocks: list[np.ndarray],
    units: ray.ObjectRef[Units],
    tokenizer: ReportTokenizer | None,
) -> Batch:
    _step_back()
    indices = np.concatenate([blocks[int(number)] for number in block["id"]])
    # The position of an evaluated row is its unit: its mask is the same however the rows are shared out.
    return UnitReader(config, ray.get(units), tokenizer, training=False).read(indices, indices)


def _step_back() -> None:
    """Make this process a nice one, and never one that was nicer less so."""
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))

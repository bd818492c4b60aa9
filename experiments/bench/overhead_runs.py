"""The two runs that ``experiments.bench.overhead`` compares, each in a process of its own; they answer in JSON.

python -m experiments.bench.overhead_runs ours|bare CONFIG.yaml
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from deepcoro.config import Config
from deepcoro.errors import RunStopped

_BATCHES_HELD = 8


def ours(config: Config) -> None:
    """Train as anybody would, until it is asked to stop; the first line says when the imports were done."""
    from deepcoro.launch.train import train

    print(json.dumps({"imported": time.time()}), flush=True)
    with contextlib.suppress(RunStopped):
        train(config)


def bare(config: Config) -> None:
    """The same steps on batches that lie ready: as many as each line of the standard input says, answered by a line
    with the seconds a step."""
    import numpy as np
    import torch

    from deepcoro.data.collate import to_torch, trim_text
    from deepcoro.data.order import Order
    from deepcoro.data.reader import UnitReader
    from deepcoro.data.tables import PreparedDataset
    from deepcoro.launch.resources import threads_per_worker
    from deepcoro.losses.multitask import MultitaskLoss
    from deepcoro.models.multitask import MultitaskModel
    from deepcoro.training.optim import build_optimizer
    from deepcoro.training.step import train_step
    from deepcoro.training.validation import run_tokenizer

    device, size = torch.device("cpu"), config.training.batch_size
    torch.set_num_threads(threads_per_worker(config))
    torch.manual_seed(config.seed)
    units = PreparedDataset.open(config.data.path).units("train", config.data.unit, config.data.filter)
    reader = UnitReader(config, units, run_tokenizer(config, Path(config.root) / config.name), training=True)
    order = Order(len(units), config.seed)
    positions = [np.arange(begin, begin + size) for begin in range(0, _BATCHES_HELD * size, size)]
    batches = [to_torch(trim_text(dict(reader.read(p, order.units(p)))), device) for p in positions]
    model = MultitaskModel.from_sources(config).train()
    optimizer = build_optimizer(model, config.optim)
    loss = MultitaskLoss.from_config(config)
    weights = config.loss.weights.model_dump()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters", file=sys.stderr)
    taken = 0
    for line in sys.stdin:
        begin = time.perf_counter()
        for step in range(taken, taken + int(line)):
            train_step(
                model,
                loss,
                optimizer,
                [batches[step % _BATCHES_HELD]],
                weights,
                config.num_visible,
                config.training.precision,
                None,
                config.optim.max_grad_norm,
            )
        taken += int(line)
        print(json.dumps({"seconds": (time.perf_counter() - begin) / int(line)}), flush=True)


if __name__ == "__main__":
    {"ours": ours, "bare": bare}[sys.argv[1]](Config.load(sys.argv[2]))

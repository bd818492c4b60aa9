"""Can a model learn 16 training units by heart? If not, nothing that it fails at later says anything.

    python -m experiments.overfit EXPERIMENT.py [--num-units 16] [--num-steps 400] [section.field=value ...]

The experiment's model and losses, on always the same units (of as many different reports as there are, read as in
evaluation, without augmentation), by this process alone. Ends with 1 unless all units could be read, each report is
written exactly, each report finds its cine and each cine its report first, and masked modelling is below a quarter of
the patch mean's error, as far as these losses are in use. Boxes are not asked for: a run that learns them (the tasks
aref and gcap) learns them here too, but whether it did counts for nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch

from deepcoro.cli import described, load_experiment, plain_errors
from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import DataError
from deepcoro.evaluation.evaluator import predict, summarise
from deepcoro.evaluation.report import Metric, format_table
from deepcoro.launch.train import resolve
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.optim import build_optimizer, lr_factor, set_learning_rates
from deepcoro.training.step import train_step

# What is 1 where all is learnt, by the loss that learns it; of the masked loss the share of the patch mean's.
EXACT_OF = {
    "captioning": ("captioning/exact_match",),
    "contrastive": ("retrieval/report_to_video/recall_at_1", "retrieval/video_to_report/recall_at_1"),
}
READ, EXACT = "data/valid_share", tuple(name for names in EXACT_OF.values() for name in names)
MASKED, MASKED_SHARE = "masked_modeling/mse", 0.25


def learn_by_heart(config: Config, num_units: int = 16, num_steps: int = 400) -> dict[str, Metric]:
    """Train on ``num_units`` training units, all of them at every step, and measure on the same.

    Raises:
        DataError: there are fewer units with a report.
    """
    dataset = PreparedDataset.open(config.data.path)
    units = dataset.units("train", config.data.unit, config.data.filter)
    tokenizer = None
    if config.needs_text:
        tokenizer = ReportTokenizer.from_pretrained(
            load_tokenizer(config.text_encoder.name), config.data.max_text_length
        )
    config = resolve(config, dataset, units)
    if tokenizer is not None:
        config = config.merge({"captioning": {"vocab_size": tokenizer.vocab_size}})
    chosen = choose_units(config, units, num_units)
    rows = UnitReader(config, units, tokenizer, training=False).read(chosen, chosen)
    batch = to_torch(rows, torch.device("cpu"))
    torch.manual_seed(config.seed)
    model = MultitaskModel.from_sources(config).train()
    optimizer = build_optimizer(model, config.optim)
    loss = MultitaskLoss.from_config(config)
    for step in range(num_steps):
        set_learning_rates(optimizer, lr_factor(step, config.optim.warmup_steps, num_steps, 0.0))
        train_step(model, loss, optimizer, [batch], config.loss.weights.model_dump(), config.num_visible)
    records = list(predict(model, config, [rows], tokenizer, torch.device("cpu")))
    return summarise(records, units, None, config)


def choose_units(config: Config, units: Units, number: int) -> np.ndarray:
    """``number`` units that have a report, of as many different ones as there are; any where no loss reads text."""
    reader = UnitReader(config, units, None, training=False)
    first: dict[str, int] = {}
    others: list[int] = []
    for unit in range(len(units)):
        text = reader.text(unit) if config.needs_text else str(unit)
        if text is not None and first.setdefault(text, unit) != unit:
            others.append(unit)
        if len(first) == number:
            break
    chosen = [*first.values(), *others][:number]
    if len(chosen) < number:
        raise DataError(f"{config.data.path} has {len(chosen)} training units with a report: ask for fewer")
    return np.array(chosen)


def learnt(metrics: dict[str, Metric], config: Config) -> bool:
    """Whether all was read, and learnt by heart by every loss in use; a metric that is missing was not."""
    exact = [READ, *(name for loss, names in EXACT_OF.items() if config.loss.is_used(loss) for name in names)]
    if any(name not in metrics or metrics[name].value != 1.0 for name in exact):
        return False
    if not config.measures_reconstruction:
        return True
    masked = metrics.get(MASKED)
    return masked is not None and masked.value < MASKED_SHARE * masked.baseline


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("experiment", type=click.Path(path_type=Path))
@click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--num-units", default=16, show_default=True, type=click.IntRange(min=2))
@click.option("--num-steps", default=400, show_default=True, type=click.IntRange(min=1))
def main(experiment: Path, assignments: tuple[str, ...], num_units: int, num_steps: int) -> None:
    """Train, measure, print."""
    with plain_errors():
        config = described(load_experiment(experiment), assignments, None)
        metrics = learn_by_heart(config, num_units, num_steps)
        shown = {name: metric for name, metric in metrics.items() if name in (READ, *EXACT, MASKED)}
        print(format_table(shown))
        whole = learnt(metrics, config)
        print(f"{num_units} units, {num_steps} steps: " + ("learnt by heart" if whole else "NOT learnt by heart"))
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()

"""The sigmoid and the softmax contrastive loss beside each other: training curves in one picture, and a table of test.

    python -m experiments.objectives [--seeds 3] [--steps 900]

Two runs a seed learn nothing but which report belongs to which cine, on the demo's phantoms (made if they are not
there). They begin with the same weights and the same scale of 10, and read the same clips in the same order; only
``contrastive.loss_type`` differs. The sigmoid's bias starts at the odds of a positive (``auto``); the softmax cannot
feel a bias and has none. Learning rates are those of the demo for both, tuned for neither. With the defaults a run
should take some 3 minutes on 2 idle cores and the whole about 20: an estimate from short runs on busy ones.

Everything lies in ``runs``: a folder a run, and ``objectives_<steps>.png`` and ``.txt``. Runs that are complete are not
trained or measured again; another number of steps makes other runs, and other changed fields want another ``root=``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import pandas as pd

from deepcoro.cli import plain_errors, run_experiment
from deepcoro.config import Config
from deepcoro.errors import UserError
from deepcoro.evaluation.rows import read_rows, rows_path
from deepcoro.training.checkpoint import committed_steps
from experiments import demo, kinds
from experiments.curves import draw_curves, read_curves

KINDS = {"sigmoid": "tab:blue", "softmax": "tab:orange"}
WAYS = {"report_to_video": "report to cine", "video_to_report": "cine to report"}
RECALL = [f"retrieval/{way}/recall_at_5" for way in WAYS]
LOSS, SCALE, BIAS = "loss/contrastive", "contrastive/logit_scale", "contrastive/logit_bias"
CURVES = [LOSS, SCALE, BIAS, *(f"validation/{name}" for name in RECALL)]
_NUM_VALIDATIONS = 8

Curves = Mapping[str, Sequence[Mapping[str, pd.Series]]]  # kind -> of each seed, name -> values by step


def experiment(loss_type: str = "sigmoid", seed: int = 0, num_steps: int = 900) -> Config:
    """The demo's encoders alone, in batches of 32, so that each report has some to be told from."""
    return demo.experiment().merge(
        {
            "name": f"objectives_{num_steps}_{loss_type}_{seed}",
            "seed": seed,
            "contrastive": {"loss_type": loss_type, "logit_scale": 10.0, "logit_bias": "auto"},
            "loss": {"weights": {"contrastive": 1.0, "captioning": 0.0, "masked_modeling": 0.0}},
            "optim": {"warmup": "0.05"},
            "training": {
                "num_steps": num_steps,
                "batch_size": 32,
                "evaluate_every": -(-num_steps // _NUM_VALIDATIONS),
            },
        }
    )


def measured(run: Path, split: str) -> None:
    """See that the newest checkpoint of a run has been measured on ``split``; what is measured is left as it is."""
    from deepcoro.launch.evaluate import evaluate

    newest = committed_steps(run)[-1]
    if not rows_path(run, split).exists() or int(read_rows(run, split)[1]["checkpoint"]) != newest:
        evaluate(run, split)


def levels_without_a_model(run: Path) -> dict[str, dict[str, float]]:
    """For each recall on validation, what chance reaches, and what knows left from right and nothing else: the same for
    every run on this dataset."""
    metrics = json.loads((run / "summary_val.json").read_text())["metrics"]
    return {
        name: {"chance": metrics[name]["baseline"], "tree oracle": metrics[f"{name}_beside_tree_oracle"]["baseline"]}
        for name in RECALL
    }


def draw(curves: Curves, levels: Mapping[str, Mapping[str, float]], to: Path) -> None:
    """Six panels over steps: the loss of each kind, in its own unit, of one batch a point; recall on validation in both
    directions; scale and bias of the logits.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ModuleNotFoundError as error:
        raise UserError("the curves are drawn with matplotlib; install it: pip install 'deepcoro[dev]'") from error

    figure = Figure(figsize=(14, 7.5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)

    def panel(row: int, column: int, name: str, kinds_shown: Sequence[str], title: str, label: str) -> None:
        for kind in kinds_shown:
            draw_curves(axes[row, column], [of_seed[name] for of_seed in curves[kind]], KINDS[kind], kind)
        axes[row, column].set(title=title, xlabel="optimizer step", ylabel=label)
        axes[row, column].tick_params(labelbottom=True)
        axes[row, column].grid(alpha=0.3)

    panel(
        0,
        0,
        LOSS,
        ["sigmoid"],
        "Training loss, sigmoid (one batch a point)",
        "nats a row, sum over its pairs",
    )
    panel(1, 0, LOSS, ["softmax"], "Training loss, softmax (in another unit)", "nats a row, mean of both directions")
    for row, (name, words) in enumerate(zip(RECALL, WAYS.values(), strict=True)):
        panel(row, 1, f"validation/{name}", list(KINDS), f"Validation, {words}", "recall@5, share of queries")
        for style, level in zip(("--", ":"), levels[name].values(), strict=True):
            axes[row, 1].axhline(level, color="black", linestyle=style, linewidth=1)
        axes[row, 1].set_ylim(0, 1)
    panel(0, 2, SCALE, list(KINDS), "Scale of the logits", "factor of the cosine, no unit")
    panel(1, 2, BIAS, ["sigmoid"], "Bias of the logits (softmax has none)", "nats, added to the scaled cosine")
    lines = [Line2D([], [], color=colour, linewidth=2.2, label=f"{kind}, mean") for kind, colour in KINDS.items()]
    lines.append(Line2D([], [], color="grey", linewidth=0.7, label="thin: each seed"))
    lines.append(Line2D([], [], color="black", linewidth=1, linestyle="--", label="chance"))
    lines.append(Line2D([], [], color="black", linewidth=1, linestyle=":", label="left from right alone (tree oracle)"))
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines))
    figure.savefig(to, dpi=120)


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("assignments", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--steps", default=900, show_default=True, type=click.IntRange(min=16))
@click.option("--num-studies", default=640, show_default=True, type=click.IntRange(min=20))
def main(assignments: tuple[str, ...], seeds: int, steps: int, num_studies: int) -> None:
    """Train both kinds for each seed, draw their curves, and tell the difference on test."""
    with plain_errors():
        demo.prepare(demo.DATA, experiment(), num_studies, 0)
        runs: dict[str, list[Path]] = {kind: [] for kind in KINDS}
        for seed in range(seeds):
            for kind in KINDS:
                run = run_experiment(lambda kind=kind, seed=seed: experiment(kind, seed, steps), assignments)
                measured(run, "test")
                runs[kind].append(run)
        measured(runs["sigmoid"][0], "val")
        to = runs["sigmoid"][0].parent / f"objectives_{steps}"
        curves = {kind: [read_curves(run, CURVES) for run in of_kind] for kind, of_kind in runs.items()}
        draw(curves, levels_without_a_model(runs["sigmoid"][0]), to.with_suffix(".png"))
        frames = {kind: [kinds.values_of(run, RECALL) for run in of_kind] for kind, of_kind in runs.items()}
        table = (
            f"{kinds.format_differences(frames, RECALL)}\n\n{kinds.format_seeds(frames, RECALL)}\n\n"
            "On test, over patients, paired. Baseline: chance. A difference is one whose 95 % interval excludes 0 and\n"
            "that every seed has; the interval holds the seeds as they are.\n"
        )
        to.with_suffix(".txt").write_text(table)
        print(f"{table}\n{to.with_suffix('.png')}: the curves")


if __name__ == "__main__":
    main()

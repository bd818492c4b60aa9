"""Which mask teaches an encoder most? The same small model under each mask strategy, on the same phantoms.

    python -m experiments.mask_strategies [--quick] [--ratios 0.75 --ratios 0.9] [--strategies tube ...]

Phantoms of the easy preset in two views a tree, masked modelling alone, as many steps of the same batches for each.
Measured on patients that no training saw, with 95 % intervals over them, and one seed: a difference between strategies
is a claim only after three (``--seed``):

- reconstruction under the model's own masks, and under random ones of the same ratio, which are the same for all: only
  those can be compared between strategies. Mean squared error x 1000 of pixels in [0, 1] with each token's true mean
  and deviation put back; vessel tokens (5 % of whose pixels show contrast) apart. Beside it what needs no model, with
  the same true means: interpolation from the tokens that are shown, and each token's mean
  (``metrics/reconstruction.py``).
- what the frozen encoder knows, by a linear model on the mean of its tokens (all of them shown), taught on the training
  patients: which tree it is (AUROC), the primary angle (mean error in degrees; beside it the training median of the
  true tree) and whether a vessel of the tree in view has a significant lesion (AUROC).

``spatial`` is another name of ``tube``, and has its line. Prints the table, and keeps it with all numbers in
``runs/mask_strategies.txt`` and ``.json``; each model is kept as a run in that folder, so that ``experiments.strips``
can draw what it makes of a clip; the phantoms stay in ``data/mask_strategies``. It took 15 minutes on 2 cores;
``--quick`` takes a small part of that, for figures that mean nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from deepcoro.cli import plain_errors
from deepcoro.config import Config
from deepcoro.data.masking import STRATEGIES, Masking
from deepcoro.evaluation.intervals import mean_interval, statistic_interval
from deepcoro.evaluation.report import Metric, align_columns, interval_text, number_text
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.metrics.reconstruction import reconstruction_errors
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_encoder import patchify
from deepcoro.training.checkpoint import save_checkpoint
from deepcoro.training.optim import build_optimizer, lr_schedule, set_learning_rates
from deepcoro.training.step import train_step

DATA, RUNS = Path("data/mask_strategies"), Path("runs")
VIEWS = {"left": ("LAO 35 CRA 25", "RAO 30 CAU 20"), "right": ("LAO 30 CRA 20", "RAO 30")}
SIZE, FRAMES, FPS = 96, 16, 10.0
VESSEL_SHARE = 0.05  # of a token's pixels
TEST_SHARE = 0.25  # of the patients
NUM_RESAMPLES = 500
SAME = {"spatial": "tube"}


@dataclass(frozen=True)
class Clips:
    """Cines of phantom patients, C of them, and what is true of each."""

    frames: NDArray[np.uint8]  # [C, FRAMES, SIZE, SIZE]
    vessel: NDArray[np.bool_]  # the same shape
    patient: NDArray[np.int64]
    is_right: NDArray[np.bool_]  # tree
    angle: NDArray[np.float64]  # primary, degrees
    has_lesion: NDArray[np.bool_]  # significant, in the tree in view

    def of(self, rows: NDArray[Any]) -> Clips:
        """Some of them."""
        return Clips(*(values[rows] for values in vars(self).values()))


def experiment(strategy: str, ratio: float, num_steps: int) -> Config:
    """A small encoder on 8 of 16 frames of 96x96, 4 x 8 x 8 tokens, and a light decoder."""
    return Config(
        name=f"mask-{strategy}",
        data={"num_frames": 8, "frame_size": SIZE},
        video_encoder={"width": 128, "depth": 4, "num_heads": 4, "tubelet": (2, 12, 12)},
        masked_modeling={
            "strategy": strategy,
            "mask_ratio": ratio,
            "decoder_hidden_size": 64,
            "decoder_layers": 1,
            "decoder_heads": 2,
        },
        loss={"weights": {"contrastive": 0.0, "captioning": 0.0, "masked_modeling": 1.0}},
        optim={"lr": 1e-3, "mvm_lr": 1e-3, "weight_decay": 0.05, "warmup": "0.1"},
        training={"num_steps": num_steps, "batch_size": 32, "precision": "fp32"},
    )


def draw_clips(seed: int, index: int) -> Clips:
    """All cines of one phantom patient."""
    from data_prep.phantom.cines import take_cines
    from data_prep.phantom.preset import preset_named
    from data_prep.phantom.study import draw_patient

    preset = replace(preset_named("easy"), views=VIEWS, angle_jitter=5.0)
    patient = draw_patient(seed, index, preset)
    cines = list(take_cines(patient, seed, preset, SIZE, FRAMES, FPS, masks=True))
    return Clips(
        np.stack([cine.frames for cine in cines]),
        np.stack([cine.mask > 0 for cine in cines if cine.mask is not None]),
        np.full(len(cines), index),
        np.array([cine.tree == "right" for cine in cines]),
        np.array([cine.camera.primary for cine in cines]),
        np.array([len(patient.lesions[cine.tree]) > 0 for cine in cines]),  # all lesions of the easy preset are severe
    )


def make_clips(num_patients: int, seed: int) -> Clips:
    """Cines of that many patients; what was drawn before is read."""
    kept = DATA / f"{num_patients}-{seed}.npz"
    if not kept.exists():
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            drawn = list(pool.map(draw_clips, [seed] * num_patients, range(num_patients), chunksize=4))
        kept.parent.mkdir(parents=True, exist_ok=True)
        joined = {name: np.concatenate([getattr(clips, name) for clips in drawn]) for name in vars(drawn[0])}
        np.savez(kept.with_suffix(".part.npz"), **joined)
        kept.with_suffix(".part.npz").rename(kept)
    with np.load(kept) as table:
        return Clips(**{name: table[name] for name in Clips.__dataclass_fields__})


def batch_of(frames: NDArray[np.uint8], orders: NDArray[Any]) -> dict[str, Any]:
    """Clips [B, T, H, W] and their mask orders [B, N] as masked modelling reads them."""
    rows = len(frames)
    return {
        "clip": torch.from_numpy(frames)[:, None],
        "valid": torch.ones(rows, 1, dtype=torch.bool),
        "mask_order": torch.from_numpy(orders.astype(np.int64))[:, None],
        "has_report": torch.zeros(rows, dtype=torch.bool),
    }


def train(config: Config, clips: Clips) -> MultitaskModel:
    """Train on every second frame of random cines, beginning with the first or the second."""
    torch.manual_seed(config.seed)
    model = MultitaskModel.from_sources(config).train()
    optimizer, loss, masking = build_optimizer(model, config.optim), MultitaskLoss.from_config(config), None
    masking, rate_at = Masking.from_config(config), lr_schedule(config)
    which, hidden = (np.random.default_rng([config.seed, number]) for number in (1, 2))  # the same clips for all
    weights = {"masked_modeling": 1.0}
    for step in range(config.training.num_steps):
        rows = which.integers(len(clips.frames), size=config.training.batch_size)
        frames = clips.frames[rows][:, which.integers(2) :: 2]
        orders = np.stack([masking.order(hidden, clip) for clip in frames])
        set_learning_rates(optimizer, rate_at(step))
        train_step(model, loss, optimizer, [batch_of(frames, orders)], weights, config.num_visible)
    return model.eval()


@torch.no_grad()
def reconstruction(model: MultitaskModel, masking: Masking, num_visible: int, clips: Clips) -> dict[str, NDArray]:
    """Errors x 1000 of each clip [C] under masks of ``masking``: ``all/model``, ``vessel/interpolation``, ..."""
    config, found, rng = model.config, dict[str, list[NDArray]](), np.random.default_rng(0)
    for begin in range(0, len(clips.frames), 64):
        rows = slice(begin, begin + 64)
        frames = clips.frames[rows, ::2]
        orders = torch.from_numpy(np.stack([masking.order(rng, clip) for clip in frames]).astype(np.int64))
        visible, hidden = orders[:, :num_visible], orders[:, num_visible:]
        prediction, _ = model.reconstruct(model.normalise(torch.from_numpy(frames)), orders, num_visible)
        pixels = patchify(torch.from_numpy(frames).float() / 255, config.tubelet)
        shown = patchify(torch.from_numpy(clips.vessel[rows, ::2]).float(), config.tubelet).mean(-1) > VESSEL_SHARE
        for name, mask in (("all", None), ("vessel", shown.gather(1, hidden))):
            # The deviation is put back as the model was trained with it: its pixels have another scale.
            eps = 1e-6 * (float(config.data.pixel_std or 1) / 255) ** 2
            errors = reconstruction_errors(prediction, pixels, visible, hidden, config.grid, mask=mask, eps=eps)
            for kind, key in (("model", "pixels"), ("mean", "patch_mean"), ("between", "interpolation_same_mean")):
                found.setdefault(f"{name}/{kind}", []).append(1000 * errors[key].numpy())
    return {name: np.concatenate(values) for name, values in found.items()}


@torch.no_grad()
def features(model: MultitaskModel, clips: Clips) -> NDArray[np.float32]:
    """The mean of a clip's tokens, [C, D]."""
    parts = np.array_split(clips.frames[:, ::2], math.ceil(len(clips.frames) / 64))
    return np.concatenate([model.video_encoder(model.normalise(torch.from_numpy(x))).mean(1).numpy() for x in parts])


def probe(model: MultitaskModel, train_clips: Clips, test: Clips) -> dict[str, Metric]:
    """What linear models read from the frozen encoder, on test."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen, asked = features(model, train_clips), features(model, test)
    found = {}
    for name in ("is_right", "has_lesion"):
        line = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        scores = line.fit(seen, getattr(train_clips, name)).decision_function(asked)
        found[name] = interval_of(
            lambda truth, said: float(roc_auc_score(truth, said)) if 0 < truth.sum() < len(truth) else float("nan"),
            [getattr(test, name).astype(float), scores],
            test,
            0.5,
        )
    angles = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11))).fit(seen, train_clips.angle)
    medians = np.array([np.median(train_clips.angle[train_clips.is_right == tree]) for tree in (False, True)])
    blind = np.abs(medians[test.is_right.astype(int)] - test.angle).mean()
    error = np.abs(angles.predict(asked) - test.angle)
    found["angle"] = interval_of(lambda x: float(x.mean()), [error], test, float(blind))
    return found


def interval_of(statistic: Callable[..., float], columns: list[NDArray], clips: Clips, baseline: float) -> Metric:
    """A number with its interval over patients."""
    found = statistic_interval(statistic, columns, clips.patient, num_resamples=NUM_RESAMPLES)
    return Metric(found.value, found.low, found.high, baseline)


def measure(model: MultitaskModel, train_clips: Clips, test: Clips) -> dict[str, Metric]:
    """All of a strategy's numbers."""
    config, found = model.config, {}
    same = config.merge({"masked_modeling": {"strategy": "random"}})
    for whose, part in (("own", config), ("random", same)):
        errors = reconstruction(model, Masking.from_config(part), part.num_visible, test)
        for name in ("all", "vessel"):
            there = np.isfinite(errors[f"{name}/model"])  # a clip may hide no vessel
            values = errors[f"{name}/model"][there]
            interval = mean_interval(values, test.patient[there], num_resamples=NUM_RESAMPLES)
            found[f"{whose}/{name}"] = Metric(interval.value, interval.low, interval.high)
            for kind in ("mean", "between"):
                found[f"{whose}/{name}/{kind}"] = Metric(float(errors[f"{name}/{kind}"][there].mean()))
    return found | probe(model, train_clips, test)


HEADERS = {
    "own/all": "own masks",
    "own/vessel": "own, vessels",
    "random/all": "random masks",
    "random/vessel": "random, vessels",
    "is_right": "tree, AUROC",
    "angle": "angle, degrees",
    "has_lesion": "lesion, AUROC",
}


def format_rows(found: dict[str, dict[str, Metric]]) -> str:
    """A table, a line a strategy; behind each error what interpolation and the tokens' means have."""
    header, rows = ["strategy"], []
    for title in HEADERS.values():
        header += [title, "95 %", "beside"]
    for name, metrics in found.items():
        row = [name]
        for key in HEADERS:
            if key not in metrics:
                row += ["-", "", ""]
                continue
            told = metrics[key]
            beside = [metrics[f"{key}/{kind}"].value for kind in ("between", "mean") if f"{key}/{kind}" in metrics]
            texts = [number_text(value) for value in beside or [told.baseline]]
            row += [number_text(told.value), interval_text(told.low, told.high), " / ".join(texts)]
        rows.append(row)
    return align_columns(header, rows, [False] + [True] * (3 * len(HEADERS)))


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.option("--strategies", multiple=True, type=click.Choice([*STRATEGIES]), help="All, if none is given.")
@click.option("--ratios", multiple=True, type=click.FloatRange(0, 1, True, True), default=(0.75,), show_default=True)
@click.option("--num-patients", default=400, show_default=True, type=click.IntRange(min=20))
@click.option("--num-steps", default=800, show_default=True, type=click.IntRange(min=2))
@click.option("--seed", default=0, show_default=True, help="Of the phantoms and of the training.")
@click.option("--quick", is_flag=True, help="60 patients and 60 steps: to see that it runs.")
def main(
    strategies: Sequence[str], ratios: Sequence[float], num_patients: int, num_steps: int, seed: int, quick: bool
) -> None:
    """Draw, train, measure, print."""
    if quick:
        num_patients, num_steps = 60, 60
    with plain_errors():
        place = RUNS / f"mask_strategies{'_quick' if quick else ''}"
        found = compare(strategies or [*STRATEGIES], ratios, num_patients, num_steps, seed, place)
    lines = f"{num_patients} patients, {num_steps} steps of 32 clips, seed {seed}; beside errors: interpolation / mean"
    table = f"{lines}\n{format_rows(found)}\n"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.with_suffix(".txt").write_text(table)
    numbers = {name: {key: asdict(metric) for key, metric in metrics.items()} for name, metrics in found.items()}
    place.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(table)


def compare(
    strategies: Sequence[str], ratios: Sequence[float], num_patients: int, num_steps: int, seed: int, place: Path
) -> dict[str, dict[str, Metric]]:
    """The numbers of each strategy at each ratio, and of an untrained encoder; models are kept in ``place``."""
    for ratio in ratios:  # refuses what cannot be before an hour is spent
        for strategy in strategies:
            experiment(strategy, ratio, num_steps)
    clips = make_clips(num_patients, seed)
    held_out = clips.patient >= num_patients * (1 - TEST_SHARE)
    taught, test = clips.of(~held_out), clips.of(held_out)
    pixels = {"data": {"pixel_mean": float(taught.frames.mean()), "pixel_std": float(taught.frames.std())}}
    configs = {
        f"{strategy} {ratio:g}": experiment(strategy, ratio, num_steps).merge({**pixels, "seed": seed})
        for ratio in ratios
        for strategy in strategies
    }
    torch.manual_seed(seed)
    untrained = MultitaskModel.from_sources(next(iter(configs.values()))).eval()
    found = {"not trained": probe(untrained, taught, test)}
    for name, config in configs.items():
        strategy, _, ratio = name.partition(" ")
        twin = f"{SAME.get(strategy)} {ratio}"
        begin = time.perf_counter()
        if twin in found:
            found[name] = found[twin]
        else:
            model = train(config, taught)
            state = {"step": config.training.num_steps}
            run = place / name.replace(" ", "-")
            save_checkpoint(run, state["step"], model, state, config, f"phantoms {num_patients} {seed}")
            found[name] = measure(model, taught, test)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    main()

"""One evaluator for the training loop and the command line: every row of a split once, whatever the number of workers.

``predict`` turns batches into one record a row, ``summarise`` turns the records of a split into metrics with their
intervals and baselines. In between, workers hand their records to one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch

from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.order import Order
from deepcoro.data.pipeline import evaluation_dataset, iterate
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import Units
from deepcoro.data.text import ReportTokenizer
from deepcoro.evaluation.baselines import Baseline, Constants, fit_constants, measure_constants, strongest
from deepcoro.evaluation.intervals import mean_interval, ratio_interval, statistic_interval
from deepcoro.evaluation.report import Metric
from deepcoro.metrics.findings import count_findings, segments_in_view, significant_segments, tree_matches
from deepcoro.metrics.reconstruction import normalise, reconstruction_errors, take_tokens
from deepcoro.metrics.retrieval import (
    chance_median_rank,
    chance_recall_at_k,
    median_rank,
    rank_embeddings,
    recall_at_k,
)
from deepcoro.metrics.text import exact_matches
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_encoder import patchify
from deepcoro.reports.grammar import Finding, parse_report
from deepcoro.reports.vocabulary import SEGMENTS, segments_of_tree

_TRAIN_SAMPLE = 20_000  # units of the training split that baselines are fitted on; more would not move a frequency


@dataclass(frozen=True)
class Truth:
    """What is known of units: texts, findings, trees, dominances and patients, one each."""

    texts: list[str | None]
    findings: list[list[Finding]]
    trees: list[str | None]
    dominances: list[str | None]
    patients: np.ndarray

    @classmethod
    def of(cls, units: Units, indices: np.ndarray, config: Config) -> Truth:
        """Collect it for ``indices`` of ``units``."""
        reader = UnitReader(config, units, None, training=False)
        texts, findings, trees, dominances = [], [], [], []
        for unit in indices.tolist():
            study = units.study_row(unit)
            tree = None if units.whole_study else units.video_rows(unit)[0]["coronary_tree"]
            text = reader.text(unit)
            if study["findings"] is not None:
                stated = [Finding.from_dict(row) for row in study["findings"]]
            else:
                stated = list(parse_report(text or "").findings)
            seen = segments_of_tree(tree, study["dominance"]) if tree else None
            texts.append(text)
            findings.append([f for f in stated if seen is None or f.segment in seen])
            trees.append(tree)
            dominances.append(study["dominance"])
        return cls(texts, findings, trees, dominances, units.column("patient_id")[indices])


def evaluation_indices(units: Units, config: Config, limit: int | None) -> np.ndarray:
    """All units, or ``limit`` of them, always the same."""
    if limit is None or limit >= len(units):
        return np.arange(len(units))
    return np.sort(Order(len(units), config.seed).units(np.arange(limit)))


def predict_units(
    model: MultitaskModel,
    config: Config,
    units: Units,
    indices: np.ndarray,
    tokenizer: ReportTokenizer | None,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Records of ``indices`` of ``units``, read through Ray Data."""
    if len(indices) == 0:
        return []
    dataset = evaluation_dataset(config, ray.put(units), tokenizer, indices)
    return list(predict(model, config, iterate(dataset, config.evaluation.batch_size), tokenizer, device))


@torch.no_grad()
def predict(
    model: MultitaskModel,
    config: Config,
    batches: Iterable[Mapping[str, np.ndarray]],
    tokenizer: ReportTokenizer | None,
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """One record a row: its unit, embeddings, generated text and reconstruction errors, as far as the model has the
    parts.

    A row with nothing valid yields a record that says so and nothing else.
    """
    was_training = model.training
    model.eval()
    for rows in batches:
        batch = to_torch(dict(rows), device)
        for place, found in enumerate(_records(model, config, batch, tokenizer)):
            valid = bool(rows["valid"][place].any())
            yield {"unit": int(rows["position"][place]), "valid": valid, **(found if valid else {})}
    model.train(was_training)


def _records(
    model: MultitaskModel, config: Config, batch: dict[str, Any], tokenizer: ReportTokenizer | None
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{} for _ in range(len(batch["valid"]))]
    clip = model.normalise(batch["clip"]).flatten(0, 1)
    if config.needs_text:
        tokens = model.video_encoder(clip)
        if model.video_projection is not None:
            video = model.embed_video(tokens, batch["valid"]).cpu().numpy()
            text = model.embed_text(batch["input_ids"], batch["text_length"]).cpu().numpy()
            for record, v, t in zip(records, video, text, strict=True):
                record |= {"video_embedding": v, "text_embedding": t}
        if model.captioning_decoder is not None:
            assert tokenizer is not None
            part = config.captioning
            ids = model.captioning_decoder.generate(
                *model.memory(tokens, batch["valid"]),
                tokenizer.start_id,
                tokenizer.end_id,
                tokenizer.pad_id,
                part.max_generation_length,
            )  # greedy, whatever the config says of writing: a metric must not depend on luck
            for record, row in zip(records, ids.tolist(), strict=True):
                record["generated"] = tokenizer.decode(row)
    if model.masked_video_modeling is not None:
        views = batch["valid"].shape[1]
        order, k = batch["mask_order"].flatten(0, 1), config.num_visible
        visible, hidden = order[:, :k], order[:, k:]
        prediction, _ = model.reconstruct(clip, order, k)
        tubelets = patchify(clip, config.video_encoder.tubelet)
        if not config.masked_modeling.norm_predict_loss:  # the errors are of normalised predictions
            _, mean, std = normalise(take_tokens(tubelets, hidden))
            prediction = (prediction - mean) / std
        errors = reconstruction_errors(prediction, tubelets, visible, hidden, config.grid)
        for place, record in enumerate(records):
            kept = batch["valid"][place].cpu()
            own = {name: e.cpu()[place * views : (place + 1) * views][kept] for name, e in errors.items()}
            record["reconstruction"] = {name: float(e.mean()) for name, e in own.items()}
    return records


def fit_baselines(train: Units, config: Config) -> Constants | None:
    """Constants that know the training split and never look at a video; ``None`` where none of it has a text."""
    truth = Truth.of(train, evaluation_indices(train, config, _TRAIN_SAMPLE), config)
    told = [i for i, text in enumerate(truth.texts) if text is not None]
    if not told:
        return None
    return fit_constants(
        [text for text in truth.texts if text is not None],
        [truth.trees[i] for i in told],
        significant_segments([truth.findings[i] for i in told]),
        segments_in_view([truth.trees[i] for i in told], [truth.dominances[i] for i in told]),
    )


def summarise(
    records: Sequence[Mapping[str, Any]], units: Units, constants: Constants | None, config: Config
) -> dict[str, Metric]:
    """Metrics of the records of a split, each row once, with 95 % intervals over patients and baselines."""
    records = sorted(records, key=lambda record: record["unit"])
    metrics = {"data/valid_share": Metric(float(np.mean([record["valid"] for record in records])))}
    records = [record for record in records if record["valid"]]
    if not records:
        return metrics
    truth = Truth.of(units, np.array([record["unit"] for record in records]), config)
    told = np.array([text is not None for text in truth.texts])
    if told.any() and "video_embedding" in records[0]:
        metrics |= _retrieval(records, truth, told, config)
    if told.any() and "generated" in records[0]:
        metrics |= _captioning(records, truth, told, constants, config)
    if "reconstruction" in records[0]:
        metrics |= _reconstruction(records, truth, config)
    return metrics


def _retrieval(
    records: Sequence[Mapping[str, Any]], truth: Truth, told: np.ndarray, config: Config
) -> dict[str, Metric]:
    rows = np.flatnonzero(told).tolist()
    video, text = (np.stack([records[i][key] for i in rows]) for key in ("video_embedding", "text_embedding"))
    keys = np.array([truth.texts[i] for i in rows])
    patients, resamples = truth.patients[rows], config.evaluation.num_resamples
    metrics: dict[str, Metric] = {}
    for name, queries, gallery in (("report_to_video", text, video), ("video_to_report", video, text)):
        ranks = rank_embeddings(queries, gallery, keys, keys)
        for k in (1, 5, 10):
            if k <= len(rows):
                interval = mean_interval(recall_at_k(ranks, k), patients, num_resamples=resamples)
                chance = Baseline(float(chance_recall_at_k(ranks, k).mean()), "chance")
                metrics[f"retrieval/{name}/recall_at_{k}"] = Metric.of(interval, chance)
        interval = statistic_interval(np.median, [ranks.expected], patients, num_resamples=resamples)
        metrics[f"retrieval/{name}/median_rank"] = Metric.of(interval, Baseline(chance_median_rank(ranks), "chance"))
        assert metrics[f"retrieval/{name}/median_rank"].value == median_rank(ranks)
    return metrics


def _captioning(
    records: Sequence[Mapping[str, Any]],
    truth: Truth,
    told: np.ndarray,
    constants: Constants | None,
    config: Config,
) -> dict[str, Metric]:
    rows = np.flatnonzero(told).tolist()
    generated = [records[i]["generated"] for i in rows]
    texts = [text for text in truth.texts if text is not None]
    trees = [truth.trees[i] for i in rows]
    parsed = [parse_report(text) for text in generated]
    true = significant_segments([truth.findings[i] for i in rows])
    in_view = segments_in_view(trees, [truth.dominances[i] for i in rows])
    counts = count_findings(true, significant_segments([p.findings for p in parsed]), in_view)
    baselines: dict[str, Baseline] = {}
    if constants is not None:
        baselines = measure_constants(constants, texts, trees, true, in_view)
    patients, resamples = truth.patients[rows], config.evaluation.num_resamples

    def mean(values: np.ndarray, name: str, who: np.ndarray = patients) -> Metric:
        return Metric.of(mean_interval(values.astype(float), who, num_resamples=resamples), baselines.get(name))

    metrics = {"captioning/exact_match": mean(exact_matches(texts, generated), "exact_match")}
    known = np.array([tree is not None for tree in trees])
    if known.any():
        named = tree_matches([trees[i] for i in np.flatnonzero(known)], [parsed[i].tree for i in np.flatnonzero(known)])
        metrics["captioning/tree_accuracy"] = mean(named, "tree_accuracy", patients[known])
    f1 = ratio_interval(*counts.f1_terms, patients, num_resamples=resamples)
    metrics["captioning/finding_f1"] = Metric.of(f1, baselines.get("finding_f1"))
    for name, terms in (("precision", counts.precision_terms), ("recall", counts.recall_terms)):
        if terms[1].sum() > 0:
            interval = ratio_interval(*terms, patients, num_resamples=resamples)
            metrics[f"captioning/finding_{name}"] = Metric.of(interval)
    if "finding_f1_tree_oracle" in baselines:
        oracle = baselines["finding_f1_tree_oracle"]
        metrics["captioning/finding_f1_beside_tree_oracle"] = Metric.of(f1, Baseline(oracle.value, "tree oracle"))
    for place, segment in enumerate(SEGMENTS):
        hits, missed = counts.true_positives[:, place], counts.false_negatives[:, place]
        diseased = int((hits | missed).sum())
        if diseased:  # a segment nobody has a lesion in has no F1
            said = 2.0 * hits + missed + counts.false_positives[:, place]
            always = Baseline(2 * diseased / (diseased + int(in_view[:, place].sum())), "always said")
            interval = ratio_interval(2.0 * hits, said, patients, num_resamples=resamples)
            metrics[f"captioning/finding_f1/{segment}"] = Metric.of(interval, always)
    readable = np.array([not p.unread for p in parsed])
    metrics["captioning/readable"] = mean(readable, "readable")
    return metrics


def _reconstruction(records: Sequence[Mapping[str, Any]], truth: Truth, config: Config) -> dict[str, Metric]:
    errors = {name: np.array([r["reconstruction"][name] for r in records]) for name in records[0]["reconstruction"]}
    # The clip is normalised by the deviation of the training split: back to grey levels of 0 to 1.
    scale = ((config.data.pixel_std or 1.0) / 255) ** 2

    def metric(name: str, factor: float, baseline: Baseline) -> Metric:
        interval = mean_interval(errors[name] * factor, truth.patients, num_resamples=config.evaluation.num_resamples)
        return Metric.of(interval, baseline)

    patch_mean = Baseline(float(errors["patch_mean"].mean()) * scale, "patch mean")
    interpolation = strongest(
        *[
            Baseline(float(errors[name].mean()) * scale, label)
            for name, label in (
                ("interpolation", "interpolation"),
                ("interpolation_same_mean", "interpolation, true mean"),
            )
        ],
        lower_is_better=True,
    )
    return {
        "masked_modeling/mse": metric(
            "normalised", 1.0, Baseline(float(errors["normalised_patch_mean"].mean()), "patch mean")
        ),
        "masked_modeling/pixel_mse": metric("pixels", scale, patch_mean),
        "masked_modeling/pixel_mse_beside_interpolation": metric("pixels", scale, interpolation),
    }

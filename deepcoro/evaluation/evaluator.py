"""One evaluator for the training loop and the command line: every row of a split once, whatever the number of workers.

``predict`` turns batches into one record a row, ``measure`` turns the records of a split into metrics with their
intervals and baselines, and into values by row. In between, workers hand their records to one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch

from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.order import Order
from deepcoro.data.pipeline import evaluation_dataset
from deepcoro.data.tables import Units
from deepcoro.data.text import ReportTokenizer
from deepcoro.evaluation.baselines import Constants, fit_constants
from deepcoro.evaluation.captioning import measure_captioning
from deepcoro.evaluation.certainty import segment_probabilities, unit_probabilities
from deepcoro.evaluation.grounding import measure_grounding
from deepcoro.evaluation.lent_boxes import LentBoxes
from deepcoro.evaluation.looking import look_for
from deepcoro.evaluation.neighbours import Neighbours
from deepcoro.evaluation.probabilities import measure_probabilities
from deepcoro.evaluation.reconstruction import measure_reconstruction
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.retrieval import measure_retrieval
from deepcoro.evaluation.rows import Columns
from deepcoro.evaluation.shown import shown_lesions
from deepcoro.evaluation.truth import Truth, known_in_view
from deepcoro.evaluation.units import embed_unit_texts, unit_text_keys, write_texts
from deepcoro.metrics.findings import significant_segments
from deepcoro.metrics.reconstruction import normalise, reconstruction_errors, take_tokens
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_encoder import patchify

_LENDING = 4_000  # units of the training split whose lesions lend their boxes
_TRAIN_SAMPLE = 20_000  # units of the training split that baselines are fitted on; more would not move a frequency


@dataclass(frozen=True)
class Measured:
    """Metrics by name, and columns of their values, one a record in the order of the units (NaN: no value)."""

    metrics: dict[str, Metric]
    columns: Columns


def evaluation_indices(units: Units, config: Config, limit: int | None) -> np.ndarray:
    """All units, or ``limit`` of them, the same in every run."""
    if limit is None or limit >= len(units):
        return np.arange(len(units))
    return np.sort(Order(len(units), 0).units(np.arange(limit)))


def predict_units(
    model: MultitaskModel,
    config: Config,
    units: Units,
    indices: np.ndarray,
    tokenizer: ReportTokenizer | None,
    device: torch.device,
    embed_only: bool = False,
    probabilities: bool = False,
) -> list[dict[str, Any]]:
    """Records of ``indices`` of ``units``, read through Ray Data, in the order in which they are ready; with
    ``embed_only`` nothing but video embeddings, with ``probabilities`` those of findings too."""
    if len(indices) == 0:
        return []
    dataset = evaluation_dataset(config, ray.put(units), tokenizer, indices)
    # Blocks are batches, taken as they come. A batch put together of two would have rows of two text lengths, since
    # blocks arrive in any order, the smaller last one too.
    batches = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2)
    return list(predict(model, config, batches, tokenizer, device, embed_only, probabilities, units))


@torch.no_grad()
def predict(
    model: MultitaskModel,
    config: Config,
    batches: Iterable[Mapping[str, np.ndarray]],
    tokenizer: ReportTokenizer | None,
    device: torch.device,
    embed_only: bool = False,
    probabilities: bool = False,
    units: Units | None = None,
) -> Iterator[dict[str, Any]]:
    """One record a row: its unit, embeddings, generated text and reconstruction errors, as far as the model has the
    parts, and, where ``config.measures_grounding`` and the ``units`` are given, what it answers to where the lesions
    are that its clips show; with ``embed_only`` its unit and its video embedding.

    A row with nothing valid yields a record that says so and nothing else.

    Args:
        probabilities: as ``segment_probabilities`` also how sure the model is of significant disease of each segment,
            ``None`` where its text is no report. ``certainty.can_be_sure`` says of which models it can be asked.
    """
    was_training = model.training
    model.eval()
    for rows in batches:
        batch = to_torch(dict(rows), device)
        if embed_only:
            tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
            embedded = model.embed_units(tokens, batch["valid"], model.views_at(batch)).cpu().numpy()
            records = [{"video_embedding": embedding} for embedding in embedded]
        else:
            records = _records(model, config, batch, tokenizer, probabilities, units)
        for place, found in enumerate(records):
            valid = bool(rows["valid"][place].any())
            yield {"unit": int(rows["position"][place]), "valid": valid, **(found if valid else {})}
    model.train(was_training)


def _records(
    model: MultitaskModel,
    config: Config,
    batch: dict[str, Any],
    tokenizer: ReportTokenizer | None,
    probabilities: bool,
    units: Units | None,
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{} for _ in range(len(batch["valid"]))]
    clip = model.normalise(batch["clip"]).flatten(0, 1)
    if config.needs_text:
        tokens = model.video_encoder(clip)
        if model.video_projection is not None:
            video = model.embed_units(tokens, batch["valid"], model.views_at(batch)).cpu().numpy()
            text, said = embed_unit_texts(model, batch).cpu().numpy(), unit_text_keys(batch, config)
            for record, v, t, keys in zip(records, video, text, said, strict=True):
                record |= {"video_embedding": v, **({"text_embedding": t, "text_key": keys} if keys else {})}
        if model.captioning_decoder is not None:
            assert tokenizer is not None
            writing = config.captioning.without_luck()
            seen = (tokens, batch["valid"], model.views_at(batch))
            texts = write_texts(model, tokenizer, *seen, writing)
            for record, written in zip(records, texts, strict=True):
                record["generated"] = written
            if probabilities:
                for record, (found, _) in zip(records, unit_probabilities(model, tokenizer, *seen, texts), strict=True):
                    record["segment_probabilities"] = None if found is None else segment_probabilities(found)
            if units is not None and config.measures_grounding:
                lesions = [shown_lesions(units, unit, config) for unit in batch["position"].tolist()]
                for record, looked in zip(records, look_for(model, tokenizer, batch, tokens, lesions), strict=True):
                    record["grounding"] = looked
    if config.measures_reconstruction:
        views = batch["valid"].shape[1]
        order, k = batch["mask_order"].flatten(0, 1), config.num_visible
        visible, hidden = order[:, :k], order[:, k:]
        prediction, _ = model.reconstruct(clip, order, k)
        tubelets = patchify(clip, config.tubelet)
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
    truth = truth.take(np.array(told))
    constants = fit_constants(
        [text for text in truth.texts if text is not None],
        truth.trees,
        significant_segments(truth.findings),
        known_in_view(truth),
        findings=truth.findings,
        dominances=truth.dominances,
    )
    if not config.measures_grounding:
        return constants
    return replace(constants, boxes=LentBoxes.of(train, evaluation_indices(train, config, _LENDING), config))


def summarise(
    records: Sequence[Mapping[str, Any]], units: Units, constants: Constants | None, config: Config
) -> dict[str, Metric]:
    """Metrics of the records of a split, each row once, with 95 % intervals over patients and baselines."""
    return measure(records, units, constants, config).metrics


def measure(
    records: Sequence[Mapping[str, Any]],
    units: Units,
    constants: Constants | None,
    config: Config,
    neighbours: Neighbours | None = None,
) -> Measured:
    """Metrics and values by row of the records of a split.

    Records come from ``predict``.

    Raises:
        ValueError: a unit has more than one record: it would count twice.
    """
    records = sorted(records, key=lambda record: record["unit"])
    if len({record["unit"] for record in records}) < len(records):
        raise ValueError(f"expected one record a unit, got {len(records)} of fewer units")
    valid = np.array([record["valid"] for record in records])
    measured = Measured({"data/valid_share": Metric(float(valid.mean()))}, {})
    if not valid.any():
        return measured
    indices = np.array([record["unit"] for record in records])
    truth = Truth.of(units, indices, config)
    told = valid & np.array([text is not None for text in truth.texts])
    first = records[int(valid.argmax())]
    resamples = config.evaluation.num_resamples

    def take(rows: np.ndarray, key: str) -> list[Any]:
        return [records[row][key] for row in np.flatnonzero(rows)]

    def add(rows: np.ndarray, part: tuple[dict[str, Metric], Columns]) -> None:
        measured.metrics.update(part[0])
        for name, values in part[1].items():
            measured.columns[name] = np.full(len(records), np.nan)
            measured.columns[name][rows] = values

    if told.any():
        of_told, video = truth.take(np.flatnonzero(told)), None
        if "video_embedding" in first:
            video = np.stack(take(told, "video_embedding"))
            paired = told & np.array(["text_embedding" in record for record in records])
            if paired.any():
                queries, gallery = (np.stack(take(paired, f"{side}_embedding")) for side in ("video", "text"))
                of_paired, said = truth.take(np.flatnonzero(paired)), None
                if config.needs_clip_texts and config.level("contrastive") == "clip":
                    said = take(paired, "text_key")
                by_study = not units.whole_study
                add(paired, measure_retrieval(queries, gallery, of_paired, by_study, resamples, said))
        if "generated" in first:
            generated = take(told, "generated")
            whole = not (config.needs_clip_texts and config.level("captioning") == "clip")
            add(told, measure_captioning(generated, of_told, constants, neighbours, video, resamples, whole))
        if "segment_probabilities" in first:
            claimed = take(told, "segment_probabilities")
            measured.metrics.update(measure_probabilities(claimed, of_told, constants, resamples))
    if "grounding" in first:
        lent = None if constants is None else constants.boxes
        add(valid, measure_grounding(take(valid, "grounding"), units, indices[valid], lent, config))
    if "reconstruction" in first:
        add(valid, measure_reconstruction(take(valid, "reconstruction"), truth.patients[valid], config))
    return measured

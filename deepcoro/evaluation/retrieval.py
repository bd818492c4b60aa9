"""Retrieval metrics of a split, by unit and by study, with intervals over patients, chance and the tree oracle.

Letters: B rows (units with a text, or studies), E embedding.

A study's embedding is the normalised mean of its clips' unit embeddings, on the text side of its clips' distinct texts;
its key is the set of those texts, so studies whose clips say the same are positives of each other.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcoro.evaluation.baselines import Baseline
from deepcoro.evaluation.intervals import mean_interval, statistic_interval
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.rows import Columns
from deepcoro.evaluation.truth import Truth
from deepcoro.metrics.geometry import alignment, chance_alignment, random_uniformity, uniformity
from deepcoro.metrics.graded import chance_ndcg_at_k, grade_embeddings, ndcg_at_k
from deepcoro.metrics.retrieval import (
    Ranks,
    chance_median_rank,
    chance_recall_at_k,
    chance_reciprocal_rank,
    rank_embeddings,
    recall_at_k,
    reciprocal_rank,
    unit_rows,
)
from deepcoro.reports.vocabulary import TREES

_RECALL_AT, _NDCG_AT = (1, 5, 10), (5, 10)


@dataclass(frozen=True)
class Pairs:
    """A video and a text embedding of each row [B, E], the row's key [B] (equal where the text is), what it says, the
    tree in view (where one row is one clip) and the patient."""

    video: NDArray[np.float32]
    text: NDArray[np.float32]
    keys: NDArray[np.int64]
    statements: Sequence[frozenset[Hashable]]
    trees: Sequence[str | None]
    patients: np.ndarray


def measure_retrieval(
    video: NDArray[np.float32],
    text: NDArray[np.float32],
    truth: Truth,
    by_study: bool,
    num_resamples: int,
    said: Sequence[Hashable] | None = None,
) -> tuple[dict[str, Metric], Columns]:
    """Metrics ``retrieval/...`` of the rows of ``truth``, all of which have a text, and their values by row.

    Args:
        video, text: [B, E].
        by_study: also pool the rows of each study and measure ``retrieval/study/...``; a study's value stands in each
            of its rows.
        said: [B], equal where two rows say the same; ``None`` for their texts.
    """
    numbers: dict[Hashable, int] = {}
    keys = np.array([numbers.setdefault(text, len(numbers)) for text in (truth.texts if said is None else said)])
    units = Pairs(video, text, keys, truth.statements, truth.trees, truth.patients)
    metrics, columns = _measure(units, "retrieval", num_resamples)
    if by_study:
        studies, study_of_row = pool_studies(units, truth.studies)
        more, of_studies = _measure(studies, "retrieval/study", num_resamples)
        metrics |= more
        columns |= {name: values[study_of_row] for name, values in of_studies.items()}
    return metrics, columns


def pool_studies(units: Pairs, study_of_unit: np.ndarray) -> tuple[Pairs, NDArray[np.int64]]:
    """One row a study, in the order of their ids, and the study's row of each unit."""
    _, code = np.unique(study_of_unit, return_inverse=True)
    code = code.reshape(-1)
    members = [np.flatnonzero(code == study) for study in range(int(code.max()) + 1)]
    video, text = unit_rows(units.video, "video embeddings"), unit_rows(units.text, "text embeddings")
    distinct = [rows[np.unique(units.keys[rows], return_index=True)[1]] for rows in members]
    sets: dict[tuple[int, ...], int] = {}
    said = [tuple(np.unique(units.keys[rows]).tolist()) for rows in members]
    pooled = Pairs(
        video=np.stack([video[rows].mean(axis=0) for rows in members]),  # given length 1 by every metric
        text=np.stack([text[rows].mean(axis=0) for rows in distinct]),
        keys=np.array([sets.setdefault(texts, len(sets)) for texts in said]),
        statements=[frozenset().union(*(units.statements[row] for row in rows.tolist())) for rows in members],
        trees=[None] * len(members),
        patients=units.patients[[rows[0] for rows in members]],
    )
    return pooled, code


def chance_within_tree(keys: NDArray, trees: Sequence[str | None], k: int) -> NDArray[np.float64]:
    """Recall@k of who knows the tree and nothing else [B]: a random order of the clips of the query's tree, before all
    others. NaN where the tree is unknown."""
    chance = np.full(len(keys), np.nan)
    for tree in TREES:
        rows = np.flatnonzero([of_row == tree for of_row in trees])
        if len(rows):
            _, code, times = np.unique(keys[rows], return_inverse=True, return_counts=True)
            positives = times[code.reshape(-1)]
            nothing = np.zeros_like(positives)
            tied = Ranks(nothing, len(rows) - positives, positives, positives, len(rows))
            chance[rows] = chance_recall_at_k(tied, min(k, len(rows)))  # beyond the tree there is nothing to find
    return chance


def _measure(pairs: Pairs, prefix: str, num_resamples: int) -> tuple[dict[str, Metric], Columns]:
    metrics: dict[str, Metric] = {}
    columns: Columns = {}
    size, patients = len(pairs.keys), pairs.patients

    def mean(name: str, values: NDArray[np.float64], chance: float) -> None:
        columns[name] = values
        interval = mean_interval(values, patients, num_resamples=num_resamples)
        metrics[name] = Metric.of(interval, Baseline(chance, "chance"))

    for direction, queries, gallery in (
        ("report_to_video", pairs.text, pairs.video),
        ("video_to_report", pairs.video, pairs.text),
    ):
        name = f"{prefix}/{direction}"
        ranks = rank_embeddings(queries, gallery, pairs.keys, pairs.keys)
        graded = grade_embeddings(queries, gallery, pairs.statements, pairs.statements, k=min(max(_NDCG_AT), size))
        known = np.array([tree is not None for tree in pairs.trees])
        for k in _RECALL_AT:
            if k > size:
                continue
            found = recall_at_k(ranks, k)
            mean(f"{name}/recall_at_{k}", found, float(chance_recall_at_k(ranks, k).mean()))
            if known.any():
                interval = mean_interval(found[known], patients[known], num_resamples=num_resamples)
                oracle = Baseline(float(chance_within_tree(pairs.keys, pairs.trees, k)[known].mean()), "tree oracle")
                metrics[f"{name}/recall_at_{k}_beside_tree_oracle"] = Metric.of(interval, oracle)
        for k in _NDCG_AT:
            if k <= size:
                mean(f"{name}/ndcg_at_{k}", ndcg_at_k(graded, k), float(chance_ndcg_at_k(graded, k).mean()))
        mean(f"{name}/mrr", reciprocal_rank(ranks), float(chance_reciprocal_rank(ranks).mean()))
        columns[f"{name}/rank"] = ranks.expected
        median = statistic_interval(np.median, [ranks.expected], patients, num_resamples=num_resamples)
        metrics[f"{name}/median_rank"] = Metric.of(median, Baseline(chance_median_rank(ranks), "chance"))

    mean(f"{prefix}/alignment", alignment(pairs.video, pairs.text), chance_alignment(pairs.video, pairs.text))
    if size > 1:  # of pairs of rows: no mean of values of rows, and so without an interval over patients
        spread = Baseline(random_uniformity(pairs.video.shape[1]), "random directions")
        for side, embeddings in (("video", pairs.video), ("text", pairs.text)):
            value = uniformity(embeddings)
            metrics[f"{prefix}/uniformity_{side}"] = Metric(value, baseline=spread.value, baseline_name=spread.name)
    return metrics, columns

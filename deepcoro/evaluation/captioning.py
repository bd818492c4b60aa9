"""Captioning metrics of a split: what the written reports say, beside the constants, the tree oracle and the nearest
neighbour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepcoro.evaluation.baselines import Baseline, Constants, measure_constants
from deepcoro.evaluation.intervals import Interval, enough, mean_interval, ratio_interval
from deepcoro.evaluation.neighbours import Neighbours
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.rows import Columns
from deepcoro.evaluation.said import parse_all
from deepcoro.evaluation.truth import Truth, known_in_view
from deepcoro.evaluation.wording import measure_wording
from deepcoro.evaluation.written import measure_written
from deepcoro.metrics.findings import (
    count_findings,
    ratio,
    significant_segments,
    tree_matches,
)
from deepcoro.metrics.text import exact_matches


def measure_captioning(
    generated: Sequence[str],
    truth: Truth,
    constants: Constants | None,
    neighbours: Neighbours | None,
    video: NDArray[np.float32] | None,
    num_resamples: int,
    whole: bool = True,
) -> tuple[dict[str, Metric], Columns]:
    """Metrics ``captioning/...`` of the rows of ``truth``, all of which have a text, and their values by row.

    Rows whose findings are not known (``Truth.known``) count in no metric of findings; where there are some,
    ``captioning/truth_read`` is the share of the others.

    Args:
        generated: [B] texts.
        whole: a generated text may be the true one word for word; one put together of several, as of a study's clips,
            is not held against it, and has neither BLEU nor ROUGE: it never says the dominance, and its trees come in
            the order of its clips.
        neighbours, video: for the nearest neighbour: [B, E] embeddings, and the training units to look among.
    """
    texts, trees = [text for text in truth.texts if text is not None], truth.trees
    parsed = parse_all(generated)
    true, in_view = significant_segments(truth.findings), known_in_view(truth)
    counts = count_findings(true, significant_segments([p.findings for p in parsed]), in_view)
    baselines: dict[str, Baseline] = {}
    if constants is not None:
        baselines = measure_constants(constants, texts, trees, true, in_view)

    def mean(values: NDArray) -> Interval:
        kept = ~np.isnan(values)
        return mean_interval(values[kept], truth.patients[kept], num_resamples=num_resamples)

    columns: Columns = {
        "captioning/exact_match": exact_matches(texts, generated).astype(float),
        "captioning/tree_accuracy": _trees_right(trees, [p.tree for p in parsed]),
        "captioning/readable": np.array([float(not p.unread) for p in parsed]),
        **{
            f"captioning/{name}": np.where(truth.known, getattr(counts, name).sum(axis=1), np.nan)
            for name in ("true_positives", "false_positives", "false_negatives")
        },
    }
    if not whole:
        del columns["captioning/exact_match"]
    exact = mean(columns["captioning/exact_match"]) if whole else None
    many = enough(truth.patients, (true & in_view).any(axis=1))

    def of_findings(terms: tuple[NDArray, NDArray]) -> Interval:
        interval = ratio_interval(*terms, truth.patients, num_resamples=num_resamples)
        return interval if many else Interval(interval.value, np.nan, np.nan)

    f1 = of_findings(counts.f1_terms)
    metrics = {} if exact is None else {"captioning/exact_match": Metric.of(exact, baselines.get("exact_match"))}
    if not np.isnan(columns["captioning/tree_accuracy"]).all():
        named = mean(columns["captioning/tree_accuracy"])
        metrics["captioning/tree_accuracy"] = Metric.of(named, baselines.get("tree_accuracy"))
    metrics["captioning/finding_f1"] = Metric.of(f1, baselines.get("finding_f1"))
    for name, terms in (("precision", counts.precision_terms), ("recall", counts.recall_terms)):
        if terms[1].sum() > 0:
            metrics[f"captioning/finding_{name}"] = Metric.of(of_findings(terms), baselines.get(f"finding_{name}"))
    if "finding_f1_tree_oracle" in baselines and any(tree is not None for tree in trees):
        oracle = baselines["finding_f1_tree_oracle"]
        metrics["captioning/finding_f1_beside_tree_oracle"] = Metric.of(f1, Baseline(oracle.value, "tree oracle"))
    lent = None
    if neighbours is not None and video is not None:
        nearest = neighbours.nearest(video)
        name, lent_texts = f"nearest of {len(neighbours.texts)}", [neighbours.texts[i] for i in nearest]
        lent = (name, lent_texts)
        looked_up = float(exact_matches(texts, lent_texts).mean())
        looked_up_f1 = ratio(*count_findings(true, neighbours.significant[nearest], in_view).f1_terms)
        if exact is not None:
            metrics["captioning/exact_match_beside_nearest_neighbour"] = Metric.of(exact, Baseline(looked_up, name))
        metrics["captioning/finding_f1_beside_nearest_neighbour"] = Metric.of(f1, Baseline(looked_up_f1, name))
        if "captioning/tree_accuracy" in metrics:
            lent_right = float(np.nanmean(_trees_right(trees, [p.tree for p in parse_all(lent_texts)])))
            beside = Baseline(lent_right, name)
            metrics["captioning/tree_accuracy_beside_nearest_neighbour"] = Metric.of(named, beside)
    metrics["captioning/readable"] = Metric.of(mean(columns["captioning/readable"]), baselines.get("readable"))
    if not truth.known.all():
        metrics["captioning/truth_read"] = Metric.of(mean(truth.known.astype(float)))
    if whole:
        of_words, by_row = measure_wording(texts, generated, truth.patients, constants, lent, num_resamples)
        metrics, columns = metrics | of_words, columns | by_row
    more, by_row = measure_written(parsed, truth, in_view, constants, lent, num_resamples, whole)
    return metrics | more, columns | by_row


def _trees_right(trees: Sequence[str | None], named: Sequence[str | None]) -> NDArray[np.float64]:
    """1 or 0, and NaN where the tree in view is unknown."""
    right = np.full(len(trees), np.nan)
    known = [row for row, tree in enumerate(trees) if tree is not None]
    if known:
        right[known] = tree_matches([trees[row] for row in known], [named[row] for row in known])
    return right

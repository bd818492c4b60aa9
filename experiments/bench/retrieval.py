"""Retrieval metrics of 2,000 clips and reports, beside plain Python loops; and the memory and time of 50,000.

python -m experiments.bench.retrieval [--quick]
"""

from __future__ import annotations

import json
import math
import platform
import resource
import subprocess
import sys
import time

import click
import numpy as np

from deepcoro.metrics.geometry import alignment, uniformity
from deepcoro.metrics.graded import grade_embeddings, ndcg_at_k
from deepcoro.metrics.retrieval import median_rank, rank_embeddings, recall_at_k, reciprocal_rank, unit_rows

WIDTH = 128
CLIPS_OF_A_TEXT = 10  # on average: 50,000 clips have 5,000 distinct texts
TOLERANCE = 1e-6
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, list[frozenset[str]]]


def make_pairs(num_pairs: int) -> Pairs:
    """Video and text embeddings [num_pairs, 128], the number of each pair's text, and what the text says."""
    generator = np.random.default_rng(0)
    num_texts = num_pairs // CLIPS_OF_A_TEXT
    texts = generator.normal(size=(num_texts, WIDTH)).astype(np.float32)
    statements = [
        frozenset([("left", "right")[number % 2], *(f"finding {f}" for f in generator.integers(0, 300, number % 5))])
        for number in range(num_texts)
    ]
    # The first quarter of the clips are of the first text: most hearts are normal.
    code = np.where(np.arange(num_pairs) < num_pairs // 4, 0, generator.integers(0, num_texts, num_pairs))
    text = texts[code]
    video = text + 2 * generator.normal(size=text.shape).astype(np.float32)
    return video, text, code, [statements[number] for number in code]


def measure(pairs: Pairs) -> dict[str, float]:
    """Every retrieval metric, by the library."""
    video, text, keys, said = pairs
    metrics = {}
    for name, queries, gallery in (("report_to_video", text, video), ("video_to_report", video, text)):
        ranks = rank_embeddings(queries, gallery, keys, keys, tolerance=TOLERANCE)
        graded = grade_embeddings(queries, gallery, said, said, k=10, tolerance=TOLERANCE)
        metrics |= {f"{name}/recall_at_{k}": float(recall_at_k(ranks, k).mean()) for k in (1, 5, 10)}
        metrics |= {f"{name}/ndcg_at_{k}": float(ndcg_at_k(graded, k).mean()) for k in (5, 10)}
        metrics[f"{name}/mrr"] = float(reciprocal_rank(ranks).mean())
        metrics[f"{name}/median_rank"] = median_rank(ranks)
    metrics["alignment"] = float(alignment(video, text).mean())
    metrics |= {"uniformity_video": uniformity(video), "uniformity_text": uniformity(text)}
    return metrics


def measure_plainly(pairs: Pairs) -> dict[str, float]:
    """The same, query by query and item by item; cosines alone come from numpy."""
    video, text, keys, said = unit_rows(pairs[0], "video"), unit_rows(pairs[1], "text"), pairs[2].tolist(), pairs[3]
    metrics = {}
    for name, queries, gallery in (("report_to_video", text, video), ("video_to_report", video, text)):
        rows = []
        for query, row in enumerate((queries @ gallery.T).tolist()):
            rows.append(_one_query(row, [key == keys[query] for key in keys], [_share(said[query], s) for s in said]))
        for place, metric in enumerate(
            ("recall_at_1", "recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10", "mrr", "median_rank")
        ):
            column = sorted(row[place] for row in rows)
            middle = (column[(len(column) - 1) // 2] + column[len(column) // 2]) / 2
            metrics[f"{name}/{metric}"] = middle if metric == "median_rank" else sum(column) / len(column)
    metrics["alignment"] = sum(sum((a - b) ** 2 for a, b in zip(v, t, strict=True)) for v, t in _rows(video, text))
    metrics["alignment"] /= len(video)
    for side, embeddings in (("video", video), ("text", text)):
        total = 0.0
        for first, row in enumerate((embeddings @ embeddings.T).tolist()):
            for cosine in row[first + 1 :]:
                total += math.exp(-2 * (2 - 2 * cosine))
        metrics[f"uniformity_{side}"] = math.log(total / (len(embeddings) * (len(embeddings) - 1) / 2))
    return metrics


def _one_query(similarity: list[float], positive: list[bool], relevance: list[float]) -> tuple[float, ...]:
    """Recall at 1, 5, 10, NDCG at 5, 10, reciprocal rank and rank of one query."""
    slack = TOLERANCE * max(abs(s) for s in similarity)
    best = max(s for s, is_positive in zip(similarity, positive, strict=True) if is_positive)
    better = tied = tied_positives = 0
    for s, is_positive in zip(similarity, positive, strict=True):
        if s > best + slack:
            better += 1
        elif s >= best - slack:
            tied_positives += is_positive
            tied += not is_positive
    rank = 1 + better + tied / (tied_positives + 1)
    found_by, missed, reciprocal = {}, 1.0, 0.0
    for place in range(1, better + tied + 2):
        if place > better:  # the tied in random order: is the next one a positive, none having been so far?
            hit = tied_positives / (tied + tied_positives - (place - better - 1))
            reciprocal += missed * hit / place
            missed *= 1 - hit
        found_by[place] = 1 - missed
    recalls = [found_by.get(k, 1.0) for k in (1, 5, 10)]

    order = sorted(range(len(similarity)), key=lambda item: -similarity[item])
    gains: list[float] = []
    while len(gains) < 10:
        group = [order[len(gains)]]
        for item in order[len(gains) + 1 :]:
            if similarity[item] < similarity[group[0]] - slack:
                break
            group.append(item)
        gains += [sum(relevance[item] for item in group) / len(group)] * len(group)
    ideal = sorted(relevance, reverse=True)
    ndcg = [_dcg(gains, k) / _dcg(ideal, k) for k in (5, 10)]
    return (*recalls, *ndcg, reciprocal, rank)


def _dcg(gains: list[float], k: int) -> float:
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains[:k]))


def _share(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second)


def _rows(video: np.ndarray, text: np.ndarray) -> list[tuple[list[float], list[float]]]:
    return list(zip(video.tolist(), text.tolist(), strict=True))


def measure_alone(num_pairs: int) -> dict[str, float]:
    """Seconds, and the peak memory in GB, of ``measure`` in a process of its own, embeddings included."""
    command = [sys.executable, "-m", "experiments.bench.retrieval", "--alone", str(num_pairs)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


@click.command()
@click.option("--quick", is_flag=True, help="Three pairs, and a gallery of 10,000.")
@click.option("--alone", type=int, hidden=True, help="Measure this many pairs once and print what it took.")
def main(quick: bool, alone: int | None) -> None:
    """Both directions, recall, MRR, median rank, NDCG, alignment and uniformity; the bar is 10 times faster."""
    if alone is not None:
        pairs = make_pairs(alone)
        begin = time.perf_counter()
        measure(pairs)
        seconds, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 2**30 if platform.system() == "Darwin" else 2**20  # bytes there, kilobytes on Linux
        print(json.dumps({"seconds": seconds, "peak_gb": peak / unit}))
        return
    large = 10_000 if quick else 50_000
    streamed = measure_alone(large)  # first: a process begins with the peak of the one that starts it

    from experiments.bench.paired import machine, print_json, time_pairs

    pairs = make_pairs(2000)
    ours, theirs = measure(pairs), measure_plainly(pairs)
    differing = max(abs(ours[name] - theirs[name]) for name in theirs)
    if ours.keys() != theirs.keys() or not differing < 1e-4:
        raise SystemExit(f"the two do not agree: {ours} and {theirs}")
    timed = time_pairs(lambda: measure(pairs), lambda: measure_plainly(pairs), num_pairs=3 if quick else 5, warmup=0)
    low, high = timed.interval
    print(f"retrieval both ways, 2,000 x 2,000, embeddings of {WIDTH}, {machine()}")
    print(f"  vectorised   {np.median(timed.ours):8.3f} s")
    print(f"  plain loops  {np.median(timed.theirs):8.3f} s   (largest difference of a metric: {differing:.1e})")
    print(f"  times faster {timed.ratio:8.1f}   (95% interval {low:.1f} to {high:.1f}, {len(timed.ours)} pairs)")
    print(f"{large:,} x {large:,}, {large // CLIPS_OF_A_TEXT:,} distinct texts, in blocks")
    print(
        f"  {streamed['seconds']:8.1f} s   {streamed['peak_gb']:.2f} GB at the peak   (whole: {large**2 / 2**28:.1f})"
    )
    figures = {
        "vectorised_seconds": float(np.median(timed.ours)),
        "plain_seconds": float(np.median(timed.theirs)),
        "largest_difference": differing,
        "low": low,
        "high": high,
        "streamed_rows": large,
        "streamed_seconds": streamed["seconds"],
        "streamed_peak_gb": streamed["peak_gb"],
        "device": machine(),
    }
    print_json("retrieval", timed.ratio, "higher", figures)


if __name__ == "__main__":
    main()

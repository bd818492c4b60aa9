"""All metrics of 10,000 written reports with their intervals; and those of 500 beside scikit-learn on each resample.

python -m experiments.bench.report_metrics [--quick]
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import click
import numpy as np

from deepcoro.evaluation.baselines import fit_constants
from deepcoro.evaluation.captioning import measure_captioning
from deepcoro.evaluation.neighbours import Neighbours
from deepcoro.evaluation.probabilities import measure_probabilities
from deepcoro.evaluation.report import Metric
from deepcoro.evaluation.said import parse_all
from deepcoro.evaluation.truth import Truth
from deepcoro.evaluation.written import measure_written
from deepcoro.metrics.findings import segments_in_view, significant_segments
from deepcoro.reports.grammar import Finding, parse_report, render_report
from deepcoro.reports.vocabulary import SEGMENTS, grade

WORDS = ("none", "mild", "moderate", "severe", "critical")
WIDTH = 128
CORPUS = 2000  # training reports


def make_reports(num_reports: int, seed: int) -> tuple[Truth, list[str]]:
    """Studies with some three findings each, and reports that say seven of ten of those, and others."""
    generator = np.random.default_rng(seed)
    true = [_draw(generator, float(rate)) for rate in generator.gamma(2, 0.09, num_reports)]
    said = []
    for found in true:
        kept = [f for f in found if generator.random() < 0.7]
        taken = {f.segment for f in kept}
        said.append(kept + [f for f in _draw(generator, 0.05) if f.segment not in taken])
    dominances: list[str | None] = generator.choice(
        ["right", "left", "balanced"], num_reports, p=[0.8, 0.1, 0.1]
    ).tolist()
    texts: list[str | None] = [render_report(f, d) for f, d in zip(true, dominances, strict=True)]
    written = [render_report(f, d) for f, d in zip(said, dominances, strict=True)]
    patients = np.arange(num_reports)
    statements = [frozenset[object](found) for found in true]
    truth = Truth(texts, true, [None] * num_reports, dominances, statements, patients, patients)
    return truth, written


def _draw(generator: np.random.Generator, rate: float) -> list[Finding]:
    found = []
    for segment in np.array(SEGMENTS)[generator.random(len(SEGMENTS)) < rate].tolist():
        chronic = bool(generator.random() < 0.1)
        percent = 100 if chronic else int(generator.integers(1, 20)) * 5
        calcium = str(generator.choice(["none", "minimal", "moderate", "severe"]))
        rest = generator.random(2) < 0.1
        found.append(
            Finding(segment, percent, "cto" if chronic else "none", None, calcium, bool(rest[0]), bool(rest[1]))
        )
    return found


def prepare_all(num_reports: int, num_resamples: int = 2000) -> Callable[[], dict[str, Metric]]:
    """Reports, training reports, embeddings and probabilities are made here; what comes back measures all of it."""
    generator = np.random.default_rng(1)
    truth, written = make_reports(num_reports, 0)
    train, _ = make_reports(CORPUS, 1)
    significant, view = significant_segments(train.findings), segments_in_view(train.trees, train.dominances)
    texts = [text or "" for text in train.texts]
    constants = fit_constants(
        texts, train.trees, significant, view, findings=train.findings, dominances=train.dominances
    )
    lent = generator.normal(size=(CORPUS, WIDTH)).astype(np.float32)
    lent /= np.linalg.norm(lent, axis=1, keepdims=True)
    video = generator.normal(size=(num_reports, WIDTH)).astype(np.float32)
    neighbours = Neighbours(lent, texts, significant)
    sure = generator.beta(1, 8, size=(num_reports, len(SEGMENTS)))

    def measure() -> dict[str, Metric]:
        metrics, _ = measure_captioning(written, truth, constants, neighbours, video, num_resamples)
        return metrics | measure_probabilities(sure, truth, constants, num_resamples)

    return measure


def measure_some(truth: Truth, written: list[str], num_resamples: int) -> dict[str, Metric]:
    """The metrics of ``measure_written`` by themselves."""
    view = segments_in_view(truth.trees, truth.dominances)
    return measure_written(parse_all(written), truth, view, None, None, num_resamples)[0]


def measure_plainly(truth: Truth, written: list[str], num_resamples: int) -> dict[str, tuple[float, float, float]]:
    """Some of the same: cell by cell in plain Python, and then scikit-learn on the rows of every resample."""
    from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score

    said = [parse_report(text).findings for text in written]

    def table(reports: list, says: Callable[[Finding], bool]) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([[any(f.segment == s and says(f) for f in found) for s in SEGMENTS] for found in reports])

    def percent(reports: list) -> np.ndarray:  # type: ignore[type-arg]
        rows = [{f.segment: f.stenosis or 0 for f in found} for found in reports]
        return np.array([[row.get(s, 0) for s in SEGMENTS] for row in rows])

    scores = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    statistics: dict[str, Callable[[np.ndarray], float]] = {}
    for floor in (50, 70):
        pair = [table(side, lambda f, floor=floor: (f.stenosis or 0) >= floor) for side in (truth.findings, said)]
        for name, score in scores.items():
            for prefix, average in (("", "micro"), ("macro_", "macro")):
                statistics[f"captioning/stenosis_{floor}_{prefix}{name}"] = (
                    lambda rows, pair=pair, score=score, average=average: float(
                        score(pair[0][rows], pair[1][rows], average=average, zero_division=0)
                    )
                )
    signs: dict[str, Callable[[Finding], bool]] = {
        "cto": lambda f: f.occlusion == "cto",
        "calcification": lambda f: f.calcification in ("moderate", "severe"),
        "thrombus": lambda f: f.thrombus,
        "stent": lambda f: f.stent,
    }
    for sign, says in signs.items():
        pair = [table(side, says) for side in (truth.findings, said)]
        statistics[f"captioning/{sign}_f1"] = lambda rows, pair=pair: float(
            f1_score(pair[0][rows], pair[1][rows], average="micro")
        )
    numbers = [percent(side) for side in (truth.findings, said)]
    graded = [np.vectorize(lambda p: WORDS.index(grade(int(p))))(side) for side in numbers]
    statistics["captioning/stenosis_mae"] = lambda rows: float(np.abs(numbers[0][rows] - numbers[1][rows]).mean())
    statistics["captioning/grade_kappa"] = lambda rows: float(
        cohen_kappa_score(graded[0][rows].ravel(), graded[1][rows].ravel(), weights="quadratic", labels=range(5))
    )
    draws = np.random.default_rng(0).integers(len(said), size=(num_resamples, len(said)))
    found = {}
    for name, statistic in statistics.items():
        low, high = np.quantile([statistic(rows) for rows in draws], [0.025, 0.975])
        found[name] = (statistic(np.arange(len(said))), float(low), float(high))
    return found


def measure_alone(num_reports: int) -> dict[str, float]:
    """Seconds of measuring, and the peak memory in GB of a process that does nothing else."""
    command = [sys.executable, "-m", "experiments.bench.report_metrics", "--alone", str(num_reports)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


@click.command()
@click.option("--quick", is_flag=True, help="Three pairs, and 2,000 reports.")
@click.option("--alone", type=int, hidden=True, help="Measure this many reports once and print what it took.")
def main(quick: bool, alone: int | None) -> None:
    """The bar: all metrics of 10,000 reports under 20 s and 1 GB."""
    if alone is not None:
        measure = prepare_all(alone)
        begin, worked = time.perf_counter(), time.process_time()
        metrics = measure()
        seconds, worked = time.perf_counter() - begin, time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 2**30 if platform.system() == "Darwin" else 2**20  # bytes there, kilobytes on Linux
        figures = {"seconds": seconds, "cpu_seconds": worked, "peak_gb": peak / unit, "metrics": len(metrics)}
        print(json.dumps(figures))
        return
    large = 2000 if quick else 10_000
    whole = measure_alone(large)  # first: a process begins with the peak of the one that starts it

    from experiments.bench.paired import machine, print_json, time_pairs

    num_reports, num_resamples = 500, 50
    truth, written = make_reports(num_reports, 0)
    ours = measure_some(truth, written, num_resamples)
    theirs = measure_plainly(truth, written, num_resamples)
    differing = max(
        abs(a - b)
        for name, plain in theirs.items()
        for a, b in zip((ours[name].value, ours[name].low, ours[name].high), plain, strict=True)
    )
    if not differing < 1e-6:
        raise SystemExit(f"the two do not agree: {differing}")
    timed = time_pairs(
        lambda: measure_some(truth, written, num_resamples),
        lambda: measure_plainly(truth, written, num_resamples),
        num_pairs=3 if quick else 5,
        warmup=0,
    )
    low, high = timed.interval
    print(f"{num_reports} reports, {num_resamples} resamples, {machine()}")
    print(f"  ours          {np.median(timed.ours):8.3f} s   ({len(ours)} metrics)")
    print(f"  scikit-learn  {np.median(timed.theirs):8.3f} s   ({len(theirs)}; largest difference {differing:.1e})")
    print(f"  times faster  {timed.ratio:8.1f}   (95% interval {low:.1f} to {high:.1f}, {len(timed.ours)} pairs)")
    print(f"{large:,} reports, 2,000 resamples, {whole['metrics']} metrics with baselines")
    print(f"  {whole['seconds']:8.1f} s   ({whole['cpu_seconds']:.1f} s of the processor)")
    print(f"  {whole['peak_gb']:8.2f} GB at the peak")
    figures = {
        "our_seconds": float(np.median(timed.ours)),
        "plain_seconds": float(np.median(timed.theirs)),
        "our_metrics": len(ours),
        "plain_metrics": len(theirs),
        "largest_difference": differing,
        "low": low,
        "high": high,
        "all_reports": large,
        "all_metrics": whole["metrics"],
        "all_seconds": whole["seconds"],
        "all_cpu_seconds": whole["cpu_seconds"],
        "all_peak_gb": whole["peak_gb"],
        "device": machine(),
    }
    print_json("report_metrics", timed.ratio, "higher", figures)


if __name__ == "__main__":
    main()

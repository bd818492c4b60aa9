"""One million videos: `python -m data_prep overview --no-pixels` on made-up tables, beside pandas counting the same.

python -m experiments.bench.overview [--quick]

Both run in turn, each time in a process of its own, whose peak memory is what Linux says of it (VmHWM). The numbers of
the two must be equal. pandas reads the columns it needs, and leaves out the attributes, which overview counts too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepcoro.data.schema import SPLITS, VIDEOS_SCHEMA

BAR_SECONDS, BAR_GB = 60, 2


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the videos, two pairs.")
def main(quick: bool) -> None:
    """125,000 studies of 8 videos; the bar is 60 s and 2 GB."""
    from experiments.bench import tables  # here: it brings torch, which the processes that are measured do not need
    from experiments.bench.paired import Pairs, print_json

    num_studies, num_pairs = (12_500, 2) if quick else (125_000, 5)
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as folder:
        dataset = Path(folder) / "prepared"
        tables.alone(tables.make_tables, dataset, num_studies)
        add_attributes(dataset)
        for _ in range(num_pairs):
            ours.append(_alone("with_overview", dataset))
            theirs.append(_alone("with_pandas", dataset))
        if ours[0]["numbers"] != theirs[0]["numbers"]:
            raise RuntimeError(f"the two count differently: {ours[0]['numbers']} and {theirs[0]['numbers']}")
        command = _command(dataset)
    pairs = Pairs(*(np.array([reading["seconds"] for reading in kind]) for kind in (ours, theirs)))
    ratio, (low, high) = 1 / pairs.ratio, (1 / end for end in reversed(pairs.interval))
    figures: dict[str, object] = {"num_videos": num_studies * tables.VIDEOS_PER_STUDY, "interval": [low, high]}
    print(f"\n{num_studies * tables.VIDEOS_PER_STUDY:,} videos, {num_pairs} pairs\n")
    print(f"{'':44}{'seconds':>9}{'peak GB':>9}")
    for name, key, readings in (
        ("overview, in the process", "ours", ours),
        ("pandas, in the process", "pandas", theirs),
    ):
        seconds = float(np.median([reading["seconds"] for reading in readings]))
        peak = max(reading["peak_gb"] for reading in readings)
        print(f"{name:44}{seconds:9.2f}{peak:9.2f}")
        figures |= {f"{key}_seconds": seconds, f"{key}_peak_gb": peak}
    print(f"{'the command, with starting and printing':44}{command['seconds']:9.2f}{command['peak_gb']:9.2f}")
    figures |= {f"command_{name}": value for name, value in command.items()}
    holds = command["seconds"] < BAR_SECONDS and command["peak_gb"] < BAR_GB
    print(f"\noverview takes {ratio:.2f} of the time of pandas (95 % interval {low:.2f} to {high:.2f})")
    print(f"the bar of {BAR_SECONDS} s and {BAR_GB} GB {'holds' if holds else 'DOES NOT HOLD'}")
    print_json("overview", ratio, "lower", figures)


def _alone(function: str, dataset: Path) -> dict[str, Any]:
    """Call a function of this module in a fresh process."""
    code = (
        f"import json; from experiments.bench import overview as o; print(json.dumps(o.{function}({str(dataset)!r})))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def _command(dataset: Path) -> dict[str, float]:
    """The command as a user gives it, from start to end."""
    watched = (
        "import sys, data_prep.__main__ as m\n"
        "from experiments.bench.overview import peak_gb\n"
        f"sys.argv = ['data_prep', 'overview', {str(dataset)!r}, '--no-pixels']\n"
        "try:\n    m.main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(peak_gb())"
    )
    begin = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", watched], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_gb": float(run.stdout.splitlines()[-1])}


def add_attributes(dataset: Path) -> None:
    """Give each video the attributes that the DICOM door gives it."""
    videos = pq.read_table(dataset / "videos.parquet")
    names = ("modality", "bits_stored", "fps_source", "grey_levels")
    entries = [list(zip(names, ("XA", bits, "frame_time", "window"), strict=True)) for bits in ("8", "10", "12")]
    kinds = pa.array(entries, VIDEOS_SCHEMA.field("attributes").type)
    drawn = pa.array(np.random.default_rng(1).integers(0, len(kinds), len(videos)))
    at = videos.schema.get_field_index("attributes")
    table = videos.set_column(at, VIDEOS_SCHEMA.field("attributes"), kinds.take(drawn))
    pq.write_table(table, dataset / "videos.parquet", compression="zstd", row_group_size=131_072)


def peak_gb() -> float:
    """The most memory this process had, in GB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


def with_overview(dataset: str) -> dict[str, Any]:
    """Our counts, and the comparison of patients and reports."""
    begin = time.perf_counter()
    from data_prep.overview.counts import count
    from data_prep.overview.leakage import equal_reports, patients_in_two_splits
    from data_prep.overview.tables import read_prepared

    prepared = read_prepared(dataset)
    counts, reports = count(prepared), equal_reports(prepared.studies)
    leaking = len(patients_in_two_splits(prepared.studies))
    seconds = time.perf_counter() - begin
    numbers = {
        "videos": counts.totals["videos"],
        "trees": counts.categories["coronary tree"],
        "acquisitions": counts.categories["acquisition"],
        "dominances": counts.categories["dominance"],
        "segments": {name: n for name, n in counts.segments.items() if sum(n.values())},
        "significant": counts.totals["    significant disease"],
        "frames": list(counts.spreads["frames"].quantiles),
        "words": list(counts.spreads["report, words"].quantiles),
        "reports": list(counts.reports),
        "held_out_reports": list(reports.held_out),
        "leaking": leaking,
    }
    return {"seconds": seconds, "peak_gb": peak_gb(), "numbers": numbers}


def with_pandas(dataset: str) -> dict[str, Any]:
    """The same numbers as one would get them in a notebook."""
    begin = time.perf_counter()
    import pandas as pd

    from deepcoro.reports.vocabulary import is_significant

    wanted = ["study_id", "num_frames", "coronary_tree", "acquisition"]
    studies = pd.read_parquet(f"{dataset}/studies.parquet")
    videos = pd.read_parquet(f"{dataset}/videos.parquet", columns=wanted)
    videos = videos.merge(studies[["study_id", "split"]], on="study_id")

    def by_split(frame: pd.DataFrame) -> dict[str, int]:
        return {
            split: int(number) for split, number in frame["split"].value_counts().reindex(SPLITS, fill_value=0).items()
        }

    def cross(frame: pd.DataFrame, column: str) -> dict[str, dict[str, int]]:
        named = frame.assign(value=frame[column].fillna("unknown"))
        return {value: by_split(group) for value, group in named.groupby("value")}

    findings = studies[studies["findings"].notna()][["split", "findings"]].explode("findings").dropna()
    findings["segment"] = [finding["segment"] for finding in findings["findings"]]
    severe = [is_significant(f["segment"], f["stenosis"], f["occlusion"]) for f in findings["findings"]]
    told = studies[studies["report"].fillna("") != ""]
    words = told["report"].str.split().str.len()
    trained = set(told[told["split"] == "train"]["report"])
    held_out = told[told["split"] != "train"]["report"]
    quantiles = [0, 0.05, 0.5, 0.95, 1]
    numbers = {
        "videos": by_split(videos),
        "trees": cross(videos, "coronary_tree"),
        "acquisitions": cross(videos, "acquisition"),
        "dominances": cross(studies, "dominance"),
        "segments": {name: by_split(group) for name, group in findings.groupby("segment")},
        "significant": by_split(findings[severe].groupby(level=0).first()),
        "frames": videos["num_frames"].quantile(quantiles).tolist(),
        "words": words.quantile(quantiles).tolist(),
        "reports": [len(told), told["report"].nunique()],
        "held_out_reports": [int(held_out.isin(trained).sum()), len(held_out)],
        "leaking": int((studies.groupby("patient_id")["split"].nunique() > 1).sum()),
    }
    return {"seconds": time.perf_counter() - begin, "peak_gb": peak_gb(), "numbers": numbers}


if __name__ == "__main__":
    main()

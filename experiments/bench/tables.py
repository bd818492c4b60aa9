"""Ten million videos in the tables: what it takes to open them, to know the first position, and to read rows in a task.

python -m experiments.bench.tables [--quick]

The tables are made up (no pixels). Each measurement is a process of its own. The reference is reading the same two
files with all columns into memory.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepcoro.data.schema import STUDIES_SCHEMA, VIDEOS_SCHEMA
from experiments.bench.paired import print_json

VIDEOS_PER_STUDY = 8
STUDIES_PER_GROUP = 16_384  # rows of a row group of studies.parquet; a group of videos.parquet has eight times as many
ROWS_IN_TASK = 64  # as many as a block of the stream has clips


@click.command()
@click.option("--quick", is_flag=True, help="A twentieth of the rows, two readings.")
def main(quick: bool) -> None:
    """1.25 million studies of 8 videos; the bar is the first position in 30 s and 2 GB."""
    num_studies, num_readings = (62_500, 2) if quick else (1_250_000, 3)
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as folder:
        os.environ["TMPDIR"] = folder  # where the mapped tables go, so that the first opening is the first
        tempfile.tempdir = None
        dataset = Path(folder) / "prepared"
        alone(make_tables, dataset, num_studies)
        megabytes = sum(path.stat().st_size for path in dataset.glob("*.parquet")) / 2**20
        print(f"{num_studies:,} studies, {num_studies * VIDEOS_PER_STUDY:,} videos, {megabytes:.0f} MB of Parquet")
        readings = [alone(read_all, dataset) for _ in range(num_readings)]
        first = alone(open_dataset, dataset)
        again = [alone(open_dataset, dataset) for _ in range(num_readings)]
        worker = alone(read_in_tasks, dataset)

    reading = float(np.median([r["seconds"] for r in readings]))
    print(f"\n{'':42}{'seconds':>9}{'peak GB':>9}")
    print(f"{'both files, all columns, into memory':42}{reading:9.2f}{readings[0]['peak_gb']:9.2f}")
    print(f"{'first opening, to the first position':42}{first['seconds']:9.2f}{first['peak_gb']:9.2f}")
    for phase, seconds in first["phases"].items():
        print(f"  {phase:40}{seconds:9.2f}")
    middle = sorted(again, key=lambda r: r["seconds"])[len(again) // 2]
    print(f"{'later openings, to the first position':42}{middle['seconds']:9.2f}{middle['peak_gb']:9.2f}")
    for phase, seconds in middle["phases"].items():
        print(f"  {phase:40}{seconds:9.2f}")
    print("\nin Ray:")
    for name, value in worker.items():
        print(f"  {name.replace('_', ' '):40}{value:9.4f}")
    figures = {
        "num_videos": num_studies * VIDEOS_PER_STUDY,
        "parquet_mb": megabytes,
        "read_table_seconds": reading,
        "read_table_peak_gb": readings[0]["peak_gb"],
        "first_seconds": first["seconds"],
        "first_peak_gb": first["peak_gb"],
        "first_phases": first["phases"],
        "later_seconds": middle["seconds"],
        "later_peak_gb": middle["peak_gb"],
        "later_over_read_table": middle["seconds"] / reading,
        **worker,
    }
    print_json("tables", first["seconds"] / reading, "lower", figures)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of this module in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_call, function.__name__, *arguments).result()


def _call(name: str, *arguments: Any) -> Any:
    # By its module's own name, and not as part of __main__, which Ray's workers could not import.
    return getattr(import_module("experiments.bench.tables"), name)(*arguments)


def memory(kind: str) -> float:
    """GB of this process: ``VmHWM`` its peak, ``RssAnon`` its own now, ``RssFile`` and ``RssShmem`` mapped now.

    Not ``ru_maxrss``: a child begins with its parent's.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 2**20
    raise ValueError(f"/proc/self/status has no {kind}")


def make_tables(folder: Path, num_studies: int) -> None:
    """Write studies of ``VIDEOS_PER_STUDY`` videos each: a tenth of the patients is held out, six in seven have a
    report, one in seven has findings."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    reports = pa.array([f"Report {i}. " + "Mild irregularities of the mid LAD. " * (3 + i % 5) for i in range(5000)])
    finding = {"segment": "prox_lad", "stenosis": 70, "occlusion": "none", "timi": 3}
    kinds = pa.array(
        [None, [finding], [finding, finding | {"segment": "mid_rca"}]], STUDIES_SCHEMA.field("findings").type
    )
    trees, acquisitions = pa.array(["left", "right", None]), pa.array(["diagnostic", "pci", "post_pci", None])
    splits, dominances = pa.array(["train", "val", "test"]), pa.array(["right", "left", None])
    with (
        pq.ParquetWriter(folder / "studies.parquet", STUDIES_SCHEMA, compression="zstd") as studies,
        pq.ParquetWriter(folder / "videos.parquet", VIDEOS_SCHEMA, compression="zstd") as videos,
    ):
        for begin in range(0, num_studies, STUDIES_PER_GROUP):
            number = min(STUDIES_PER_GROUP, num_studies - begin)
            with_findings = chance.random(number) < 1 / 7
            ids = hex_ids(number, chance)
            columns = {
                "study_id": ids,
                "patient_id": hex_ids(number, chance),
                "split": splits.take(pa.array(chance.choice(3, number, p=[0.9, 0.05, 0.05]))),
                "dominance": dominances.take(pa.array(chance.integers(0, 3, number))),
                "report": reports.take(pa.array(chance.integers(0, len(reports), number), mask=with_findings)),
                "findings": kinds.take(pa.array(np.where(with_findings, chance.integers(1, 3, number), 0))),
                "lvef": pa.array(chance.uniform(20, 70, number).astype(np.float32)),
                "day_offset": pa.array(chance.integers(0, 3000, number, np.int32)),
            }
            studies.write_table(filled(columns, STUDIES_SCHEMA, number))
            number *= VIDEOS_PER_STUDY
            video_ids = hex_ids(number, chance)
            places = pa.array([f"videos/{i:02x}/" for i in range(256)]).take(pa.array(chance.integers(0, 256, number)))
            angles = chance.uniform(-50, 50, (2, number)).astype(np.float32)
            columns = {
                "video_id": video_ids,
                "study_id": ids.take(pa.array(np.arange(number) // VIDEOS_PER_STUDY)),
                "uri": pa.compute.binary_join_element_wise(places, video_ids, ".avi", ""),
                "num_frames": pa.array(chance.integers(20, 120, number, np.int32)),
                "height": pa.array(np.full(number, 512, np.int32)),
                "width": pa.array(np.full(number, 512, np.int32)),
                "fps": pa.array(np.full(number, 15, np.float32)),
                "primary_angle": pa.array(angles[0]),
                "secondary_angle": pa.array(angles[1]),
                "coronary_tree": trees.take(pa.array(chance.integers(0, 3, number))),
                "acquisition": acquisitions.take(pa.array(chance.integers(0, 4, number))),
                "acquisition_order": pa.array(np.arange(number, dtype=np.int32) % VIDEOS_PER_STUDY),
                "pixel_spacing": pa.array(np.full(number, 0.3, np.float32)),
                "partial": pa.array(chance.random(number) < 0.1),
            }
            videos.write_table(filled(columns, VIDEOS_SCHEMA, number))
    (folder / "dataset.json").write_text(json.dumps({"pixel_mean": 100.0, "pixel_std": 40.0, "fingerprint": "made-up"}))


def hex_ids(number: int, chance: np.random.Generator) -> pa.Array:
    """Ids of 32 hexadecimal digits."""
    digits = chance.bytes(16 * number).hex().encode()
    offsets = np.arange(0, 32 * number + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(number, pa.py_buffer(offsets), pa.py_buffer(digits))


def filled(columns: dict[str, pa.Array], schema: pa.Schema, number: int) -> pa.Table:
    """A table of ``schema``; what is not given is null."""
    return pa.table([columns.get(f.name, pa.nulls(number, f.type)) for f in schema], schema=schema)


def read_all(folder: Path) -> dict[str, float]:
    """The reference."""
    begin = time.perf_counter()
    tables = [pq.read_table(folder / f"{name}.parquet") for name in ("studies", "videos")]
    return {"seconds": time.perf_counter() - begin, "rows": len(tables[1]), "peak_gb": memory("VmHWM")}


def open_dataset(folder: Path) -> dict[str, Any]:
    """From the path to the rows of the first position."""
    from deepcoro.data.order import Order
    from deepcoro.data.tables import PreparedDataset

    phases: dict[str, float] = {}
    last = begin = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal last
        now = time.perf_counter()
        phases[phase], last = now - last, now

    dataset = PreparedDataset.open(str(folder))
    lap("open")
    units = dataset.units("train")
    lap("units of the training split")
    unit = int(Order(len(units), 0).units(np.array([0]))[0])
    assert units.video_rows(unit)[0]["study_id"] == units.study_row(unit)["study_id"]
    lap("first position")
    seconds, peak = time.perf_counter() - begin, memory("VmHWM")
    assert units.has_text().any()
    lap("has_text (after the first position)")
    filtered = dataset.units("train", keep="acquisition == 'diagnostic' and lvef > 30")
    lap(f"filter (kept {len(filtered) / len(units):.2f})")
    studies = dataset.units("train", "study")
    lap(f"units by study ({len(studies):,})")
    return {"seconds": seconds, "peak_gb": peak, "phases": phases, "peak_after_filter_gb": memory("VmHWM")}


def read_in_tasks(folder: Path) -> dict[str, float]:
    """``ray.put`` of the units, and what a data task pays to read rows of them."""
    import ray

    from deepcoro.data.tables import PreparedDataset
    from deepcoro.launch.resources import start_ray

    units = PreparedDataset.open(str(folder)).units("train")
    start_ray()
    begin = time.perf_counter()
    reference = ray.put(units)
    put = time.perf_counter() - begin
    buffers: list[pickle.PickleBuffer] = []
    inside = len(pickle.dumps(units, protocol=5, buffer_callback=buffers.append))

    @ray.remote
    def task(units_in_list: list[Any], seed: int) -> dict[str, float]:
        private, begin = memory("RssAnon"), time.perf_counter()
        units = ray.get(units_in_list[0])
        got = time.perf_counter() - begin
        for unit in np.random.default_rng(seed).integers(0, len(units), ROWS_IN_TASK).tolist():
            assert units.video_rows(unit)[0]["study_id"] == units.study_row(unit)["study_id"]
        seconds = time.perf_counter() - begin
        return {"get": got, "rows": seconds - got, "private_gb": memory("RssAnon") - private, "pid": os.getpid()}

    seen: set[float] = set()
    first: list[dict[str, float]] = []
    later: list[dict[str, float]] = []
    for number in range(20):
        found = ray.get(task.remote([reference], number))
        (later if found["pid"] in seen else first).append(found)
        seen.add(found["pid"])
    ray.shutdown()
    return {
        "put_seconds": put,
        "put_gb": sum(buffer.raw().nbytes for buffer in buffers) / 2**30,  # mapped by tasks where they lie
        "put_copied_kb": inside / 2**10,  # unpickled by each task
        "first_get_seconds": first[0]["get"],
        "first_64_rows_seconds": first[0]["rows"],
        "first_growth_gb": first[0]["private_gb"],
        "later_get_seconds": float(np.median([f["get"] for f in later])),
        "later_64_rows_seconds": float(np.median([f["rows"] for f in later])),
        "later_growth_gb": max(f["private_gb"] for f in later),
    }


if __name__ == "__main__":
    main()

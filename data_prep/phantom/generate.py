"""Making a whole phantom archive: DICOM files, and beside them the two tables of truth.

    <output>/dicom/<patient>/<study>/<n>.dcm    one cine each
    <output>/reports.parquet                    one row a study
    <output>/videos.parquet                     one row a cine, with a box around every lesion that it shows
    <output>/masks/<SOPInstanceUID>.npz         where asked for: `mask` [T, H, W] uint8, which segment a pixel shows
    <output>/phantom.json                       how it was made; written last, so it stands for completeness

In a mask 0 is no vessel and k the segment SEGMENTS[k - 1] of deepcoro.reports.vocabulary. Every phantom patient has one
study. The same seed gives the same bytes whatever the number of processes.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.phantom.cines import take_cines
from data_prep.phantom.dicom import dicom_cine, patient_name, uid, write_dicom
from data_prep.phantom.preset import Preset, preset_named
from data_prep.phantom.study import TREES, draw_patient
from data_prep.phantom.wording import write_report
from deepcoro.data.schema import BOX_TYPE, FINDING_TYPE, SPLITS
from deepcoro.errors import UserError
from deepcoro.reports.vocabulary import segments_of_tree

VERSION = 1  # of the generator; a change of any pixel or finding raises it
NUM_FRAMES = 24  # of a plain phantom's cine
NO_PIXELS = ("num_studies", "val_fraction", "test_fraction", "masks", "first")  # parameters that change no pixel
FINISHED, UNFINISHED = "phantom.json", "phantom.unfinished.json"
REPORTS_SCHEMA = pa.schema(
    [
        ("study_id", pa.string()),  # StudyInstanceUID
        ("patient_id", pa.string()),  # PatientID
        ("split", pa.string()),  # train | val | test
        ("dominance", pa.string()),
        ("report", pa.string()),
        ("findings", pa.list_(FINDING_TYPE)),
        ("lvef", pa.float32()),  # percent
    ]
)
VIDEOS_SCHEMA = pa.schema(
    [
        ("sop_instance_uid", pa.string()),
        ("coronary_tree", pa.string()),  # left | right
        ("acquisition", pa.string()),  # diagnostic
        ("boxes", pa.list_(BOX_TYPE)),
    ]
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an archive holds; `write_phantom` says what each is, and its range."""

    num_studies: int
    seed: int
    preset: Preset
    size: int
    num_frames: int
    fps: float
    val_fraction: float
    test_fraction: float
    masks: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_studies", 1, 999_999),
            ("first", 0, 999_999 - self.num_studies),
            ("seed", 0, 2**63),
            ("size", 32, 1024),
            ("num_frames", 2, 1000),
            ("fps", 1, 120),
            ("val_fraction", 0, 1),
            ("test_fraction", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"phantom {name} must be {low} to {high}, got {getattr(self, name)}")
        if sum(self.num_held_out) > self.num_studies:
            raise UserError(
                f"phantom val_fraction {self.val_fraction} and test_fraction {self.test_fraction} are together over 1"
            )

    @property
    def num_held_out(self) -> tuple[int, int]:
        """Studies of val and of test."""
        return round(self.num_studies * self.val_fraction), round(self.num_studies * self.test_fraction)

    def record(self) -> dict[str, Any]:
        """As it stands in phantom.json."""
        record = json.loads(json.dumps({"version": VERSION, **asdict(self)}))
        if self.preset.realism is None:
            del record["preset"]["realism"]  # plain phantoms are, and are called, what they were before there was any
        if not self.masks:
            del record["masks"]
        if self.first == 0:
            del record["first"]
        return record

    def study_uid(self, index: int) -> str:
        """Return a study's StudyInstanceUID: another where any pixel of it may be another."""
        record = {key: value for key, value in self.record().items() if key not in NO_PIXELS}
        return str(uid(json.dumps(record, sort_keys=True), index))


@dataclass(frozen=True)
class Summary:
    """What an archive holds."""

    output: str
    num_studies: int
    num_videos: int
    num_frames: int
    splits: dict[str, int]
    """Studies by split."""
    diseased_share: float
    """Share of trees with a lesion."""
    seconds: float
    """Time that making it took."""
    made: bool
    """False if a complete archive with these parameters was there and nothing was done."""


def write_phantom(
    output: str | Path,
    num_studies: int,
    seed: int = 0,
    preset: str | Preset = "easy",
    size: int = 128,
    num_frames: int | None = None,
    fps: float = 15.0,
    val_fraction: float = 0.10,
    test_fraction: float = 0.25,
    num_processes: int = 1,
    masks: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> Summary:
    """Make a phantom archive in `output`.

    Args:
        output: a folder that is absent or empty, or holds an archive made with the same parameters: a complete one is
            left as it is, an unfinished one is made again.
        num_studies: 1 or more; each has the cines of the preset.
        seed: 0 or more.
        preset: name of a preset, or one of your own.
        size: width and height of the images in pixels, 32 to 1024.
        num_frames: frames a cine, 2 to 1000; None: 24, or what a rich preset says.
        fps: frames a second, 1 to 120. Rich presets have frame rates of their own; there a cine lasts as long as
            `num_frames` at `fps` do.
        val_fraction: share of the studies for val, rounded to whole studies.
        test_fraction: likewise for test; the rest is train.
        num_processes: 1 or more.
        masks: write a vessel mask for every cine as well.
        on_progress: called with (studies done, studies in all).
        first: number of the first patient: two archives of different numbers have no patient in common, and can be
            ingested into one dataset.

    Raises:
        UserError: a parameter is out of its range, or the output holds something else.
    """
    preset = preset_named(preset) if isinstance(preset, str) else preset
    if num_frames is None:
        num_frames = preset.realism.num_frames if preset.realism else NUM_FRAMES
    recipe = Recipe(num_studies, seed, preset, size, num_frames, float(fps), val_fraction, test_fraction, masks, first)
    if num_processes < 1:
        raise UserError(f"phantom num_processes must be 1 or more, got {num_processes}")
    output = Path(output)
    if (done := _complete(output, recipe.record())) is not None:
        return Summary(**{**done, "output": str(output), "made": False})

    start = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    (output / UNFINISHED).write_text(json.dumps({"how": recipe.record()}, indent=1))
    splits = assign_splits(recipe)
    make = partial(write_study, recipe=recipe, output=output)
    reports: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    diseased = frames = 0
    for report, of_study, of_frames in _in_order(make, range(first, first + num_studies), num_processes):
        reports.append({**report, "split": splits[len(reports)]})
        videos += of_study
        frames += of_frames
        diseased += sum(
            any(finding["segment"] in segments_of_tree(tree, report["dominance"]) for finding in report["findings"])
            for tree in TREES
        )
        if on_progress:
            on_progress(len(reports), num_studies)
    pq.write_table(pa.Table.from_pylist(reports, REPORTS_SCHEMA), output / "reports.parquet")
    pq.write_table(pa.Table.from_pylist(videos, VIDEOS_SCHEMA), output / "videos.parquet")
    summary = Summary(
        output=str(output),
        num_studies=num_studies,
        num_videos=len(videos),
        num_frames=frames,
        splits={split: splits.count(split) for split in SPLITS},
        diseased_share=diseased / (2 * num_studies),
        seconds=time.perf_counter() - start,
        made=True,
    )
    (output / UNFINISHED).write_text(json.dumps({"how": recipe.record(), "summary": asdict(summary)}, indent=1))
    (output / UNFINISHED).replace(output / FINISHED)
    return summary


def assign_splits(recipe: Recipe) -> list[str]:
    """Return the split of every study; the counts are exact (rounded to whole studies), the assignment is shuffled."""
    num_val, num_test = recipe.num_held_out
    splits = np.full(recipe.num_studies, "train", dtype=object)
    shuffled = np.random.default_rng([recipe.seed, recipe.num_studies]).permutation(recipe.num_studies)
    splits[shuffled[:num_test]] = "test"
    splits[shuffled[num_test : num_test + num_val]] = "val"
    return splits.tolist()


def write_study(index: int, recipe: Recipe, output: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Write the cines of study number `index`.

    Returns:
        Its row of reports (without the split), its rows of videos, and its number of frames.
    """
    patient = draw_patient(recipe.seed, index, recipe.preset)
    _, patient_id = patient_name(index)
    study_uid = recipe.study_uid(index)
    videos, frames = [], 0
    cines = take_cines(
        patient, recipe.seed, recipe.preset, recipe.size, recipe.num_frames, recipe.fps, masks=recipe.masks
    )
    for number, cine in enumerate(cines, start=1):
        data = dicom_cine(cine, patient, study_uid, number)
        write_dicom(data, output / "dicom" / patient_id / study_uid / f"{number}.dcm")
        if cine.mask is not None:
            (output / "masks").mkdir(exist_ok=True)
            np.savez_compressed(output / "masks" / f"{data.SOPInstanceUID}.npz", mask=cine.mask)
        videos.append(
            {
                "sop_instance_uid": str(data.SOPInstanceUID),
                "coronary_tree": cine.tree,
                "acquisition": "diagnostic",
                "boxes": cine.boxes,
            }
        )
        frames += len(cine.frames)
    report = {
        "study_id": study_uid,
        "patient_id": patient_id,
        "dominance": patient.dominance,
        "report": write_report(patient, recipe.seed, recipe.preset),
        "findings": [finding.to_dict() for finding in patient.findings],
        "lvef": patient.lvef,
    }
    return report, videos, frames


def _in_order(make: Callable[[int], Any], numbers: range, num_processes: int) -> Iterator[Any]:
    """Yield make(number) of each; the processes are spawned, so that nothing of the caller leaks into them."""
    if num_processes == 1:
        yield from map(make, numbers)
        return
    count = len(numbers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_processes, count), mp_context=context) as pool:
        yield from pool.map(make, numbers, chunksize=max(1, min(8, count // (2 * num_processes))))


def _complete(output: Path, how: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a complete archive made like this, None where one is to be made; refuse everything else."""
    if output.exists() and not output.is_dir():
        raise UserError(f"phantom output {output} is a file; give a folder")
    if not output.exists() or not any(output.iterdir()):
        return None
    for name in (FINISHED, UNFINISHED):
        if not (output / name).is_file():
            continue
        record = json.loads((output / name).read_text())
        made = record["how"]
        # What one of the two lacks is at its default there (``Recipe.record``): no value is like it.
        different = sorted(key for key in made.keys() | how.keys() if made.get(key) != how.get(key))
        if different:
            raise UserError(
                f"phantom output {output} holds an archive made with another {', '.join(different)} "
                f"(see {name} in it); choose another folder or delete this one"
            )
        return record["summary"] if name == FINISHED else None
    raise UserError(f"phantom output {output} holds other files; choose an empty or a new folder")

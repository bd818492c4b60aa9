"""Does erasing a lesion take it out of the report? Phantoms are drawn with a lesion and again without it, and a run
writes the reports of both.

    python -m experiments.erasure RUN [--num-patients 40] [--preset standard]

Anatomy, views, heart beat, injections and background of a pair are the same: what differs is one significant lesion,
and what it does. Both go through what prepared cines go through: the encoding of the videos, the sampling, crop and
batches of an evaluation. The cines should be like those that the run was trained on: give its --preset, --size,
--num-frames and --fps (24 and 10 for ``experiments.standard``). The patients must be others: give a --seed that the
run's phantoms were not made with.

A pair is a unit of the run (a cine of the lesion's tree, or a study) in which a sampled frame shows the lesion in the
crop. A writer that does not look at the picture says the same of both, so that of what it names nothing goes, and
``erasure/named_less_kept`` is 0. One that wavers, since the grain of the two pictures differs, loses other lesions too:
their share stands beside as the baseline. Intervals are over patients. What is found is printed, and kept in the run as
``erasure.json``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepcoro.cli import plain_errors
from deepcoro.data.schema import STUDIES_SCHEMA, VIDEOS_SCHEMA
from deepcoro.data.tables import PreparedDataset, Units
from deepcoro.errors import ConfigError, UserError
from deepcoro.evaluation.baselines import Baseline
from deepcoro.evaluation.intervals import mean_interval, paired_difference, ratio_interval
from deepcoro.evaluation.report import Metric, format_table, write_summary
from deepcoro.evaluation.said import parse_all
from deepcoro.evaluation.shown import shown_lesions
from deepcoro.evaluation.truth import Truth, known_in_view
from deepcoro.metrics.erasure import compare_erased
from deepcoro.metrics.findings import significant_segments
from deepcoro.reports.vocabulary import SEGMENTS

if TYPE_CHECKING:
    from data_prep.phantom.preset import Preset
    from data_prep.phantom.study import Patient
    from deepcoro.config import Config
    from deepcoro.inference.load import TrainedModel

SEED = 20_000_000  # of the patients, as long as nobody says otherwise: of no data set that is made by hand
STATES = ("with", "without")
_MOST_DRAWN = 20  # patients looked at for each that is wanted: some have no lesion that can be erased


@dataclass(frozen=True)
class Drawing:
    """How the phantoms are drawn; the parameters of ``data_prep phantom``."""

    preset: Preset
    seed: int
    size: int
    num_frames: int
    fps: float


def draw_pairs(num_patients: int, drawing: Drawing) -> Iterator[tuple[Patient, Patient, str]]:
    """Patients with one of their significant lesions, without it, and the lesion's segment.

    Raises:
        UserError: the preset has too few lesions that can be erased.
    """
    from data_prep.phantom.erase import erase_lesion
    from data_prep.phantom.study import draw_patient

    found = 0
    for index in range(_MOST_DRAWN * num_patients):
        patient = draw_patient(drawing.seed, index, drawing.preset)
        places = [finding.segment for finding in patient.findings if finding.significant]
        for segment in np.random.default_rng([drawing.seed, index, 0]).permutation(places).tolist():
            try:
                pair = erase_lesion(patient, drawing.seed, segment)
            except UserError:  # part of a bifurcation: another may do
                continue
            yield *pair, segment
            found += 1
            break
        if found == num_patients:
            return
    raise UserError(
        f"only {found} of {_MOST_DRAWN * num_patients} phantoms of preset {drawing.preset.name!r} have a significant "
        "lesion that can be erased; ask for fewer --num-patients"
    )


def prepare_pairs(folder: Path, num_patients: int, drawing: Drawing, whole_study: bool) -> dict[str, str]:
    """A prepared dataset in ``folder`` whose split test has a study of each patient with the lesion and one without:
    all cines of ``whole_study``, or those of the lesion's tree alone. Returns the segment of each patient."""
    from data_prep.dicom.encode import EXTENSION, write_video
    from data_prep.phantom.cines import take_cines

    (folder / "videos").mkdir()
    segments: dict[str, str] = {}
    studies: list[dict[str, Any]] = []
    videos: list[dict[str, Any]] = []
    for *pair, segment in draw_pairs(num_patients, drawing):
        patient_id = f"p{len(segments):06d}"
        segments[patient_id] = segment
        side = next(s for s in pair[0].lesions if segment in {x.finding.segment for x in pair[0].lesions[s]})
        for state, patient in zip(STATES, pair, strict=True):
            study = {
                "study_id": f"{patient_id}-{state}", "patient_id": patient_id, "split": "test",
                "dominance": patient.dominance, "findings": [finding.to_dict() for finding in patient.findings],
            }  # fmt: skip
            studies.append(study)
            cines = take_cines(patient, drawing.seed, drawing.preset, drawing.size, drawing.num_frames, drawing.fps)
            for number, cine in enumerate(cines):
                if cine.tree != side and not whole_study:
                    continue
                name = f"{study['study_id']}-{number}"
                path = folder / "videos" / f"{name}.{EXTENSION}"
                written = write_video(path, cine.frames, Fraction(cine.fps).limit_denominator(1000))
                videos.append(
                    {
                        "video_id": name, "study_id": study["study_id"], "uri": f"videos/{path.name}",
                        "num_frames": written.num_frames, "height": written.height, "width": written.width,
                        "fps": cine.fps, "primary_angle": cine.camera.primary, "partial": False,
                        "secondary_angle": cine.camera.secondary, "coronary_tree": cine.tree,
                        "acquisition": "diagnostic", "acquisition_order": number, "boxes": cine.boxes,
                    }
                )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(studies, schema=STUDIES_SCHEMA), folder / "studies.parquet")
    pq.write_table(pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA), folder / "videos.parquet")
    (folder / "dataset.json").write_text(json.dumps({"made_by": "experiments.erasure"}))
    return segments


def write_reports(trained: TrainedModel, units: Units) -> list[str | None]:
    """What the run writes of each unit, read and written as in an evaluation."""
    import torch

    from deepcoro.data.pipeline import batches_of
    from deepcoro.data.reader import UnitReader
    from deepcoro.evaluation.evaluator import predict

    config, device = trained.config, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reader = UnitReader(config, units, trained.tokenizer, training=False)
    rows = np.arange(len(units))
    numbers = [units.num_videos(unit) for unit in rows.tolist()]
    batches = (
        cast(dict[str, np.ndarray], reader.read(rows[piece], rows[piece]))
        for piece in batches_of(numbers, config.evaluation.batch_size)
    )
    records = predict(trained.model.to(device), config, batches, trained.tokenizer, device)
    return [record.get("generated") for record in records]


def pairs_shown(units: Units, segments: dict[str, str], config: Config) -> list[tuple[int, int]]:
    """Units (with the lesion, without it) of which the first shows it."""
    place = {}
    for unit in range(len(units)):
        first = units.video_rows(unit)[0]
        place[first["study_id"] if units.whole_study else first["video_id"]] = unit
    patients = units.column("patient_id")
    pairs = []
    for name, unit in place.items():
        segment = segments[patients[unit]]
        if any(lesion.segment == segment for lesion in shown_lesions(units, unit, config)):
            pairs.append((unit, place[name.replace("-with", "-without")]))
    return pairs


def measure(
    before: Sequence[str],
    after: Sequence[str],
    segments: Sequence[str],
    patients: Sequence[str],
    in_view: NDArray[np.bool_],
) -> dict[str, Metric]:
    """Metrics ``erasure/...`` of pairs of written reports, with intervals over patients.

    ``named``: of the lesions, those that the first report has as significant disease. ``erased``: of these, those that
    are gone from the second, beside the same of the other segments that the first report calls diseased; and the paired
    difference of the two. ``kept``: of all lesions, those that the second report names although they are not there.
    ``named_less_kept``: the paired difference. ``others_changed``: of the segments ``in_view`` [N, S] in which nothing
    was done, those whose disease comes or goes.
    """
    read = [[report.findings for report in parse_all(texts)] for texts in (before, after)]
    told = compare_erased(*read, segments, in_view)
    first, second = (significant_segments(findings) for findings in read)
    others = first.copy()
    others[np.arange(len(segments)), [SEGMENTS.index(segment) for segment in segments]] = False
    gone = ((others & ~second).sum(axis=1), others.sum(axis=1))
    named, kept = told.named.astype(float), told.kept.astype(float)
    beside = Baseline(ratio_interval(*gone, patients).value, "other segments that went")
    nothing = Baseline(0.0, "whoever does not look")
    return {
        "erasure/named": Metric.of(mean_interval(named, patients)),
        "erasure/kept": Metric.of(mean_interval(kept, patients)),
        "erasure/named_less_kept": Metric.of(paired_difference(named, kept, patients), nothing),
        "erasure/erased": Metric.of(ratio_interval(*told.erased_terms, patients), beside),
        "erasure/erased_less_others": Metric.of(paired_difference(told.erased_terms, gone, patients), nothing),
        "erasure/others_changed": Metric.of(ratio_interval(*told.others_terms, patients)),
    }


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--num-patients", default=40, show_default=True, type=click.IntRange(min=2))
@click.option("--preset", default="standard", show_default=True, help="Of the phantoms: easy, standard or hard.")
@click.option("--seed", default=SEED, show_default=True, help="Of the phantoms; another than that of the run's.")
@click.option("--size", default=128, show_default=True, help="Width and height of the pictures, pixels.")
@click.option("--num-frames", type=int, help="Frames a cine; by default as of `data_prep phantom`.")
@click.option("--fps", default=15.0, show_default=True, help="As of `data_prep phantom`.")
@click.option("--checkpoint", default="newest", show_default=True, help="newest, best or a step.")
@click.option("--weights", type=click.Choice(["trained", "ema"]), help="The average, where there is one.")
def main(
    run: Path,
    num_patients: int,
    preset: str,
    seed: int,
    size: int,
    num_frames: int | None,
    fps: float,
    checkpoint: str,
    weights: Any,
) -> None:
    """Draw the pairs, write their reports, and tell what went."""
    from data_prep.phantom.generate import NUM_FRAMES
    from data_prep.phantom.preset import preset_named
    from deepcoro.inference.load import load

    with plain_errors():
        trained = load(run, checkpoint, weights)
        config = trained.config
        if not config.loss.is_used("captioning"):
            raise ConfigError(f"{run} was trained without the captioning loss: it writes no reports")
        chosen = preset_named(preset)
        frames = num_frames or (chosen.realism.num_frames if chosen.realism else NUM_FRAMES)
        drawing = Drawing(chosen, seed, size, frames, fps)
        with tempfile.TemporaryDirectory() as folder:
            whole = config.level("captioning") == "study"
            segments = prepare_pairs(Path(folder), num_patients, drawing, whole)
            units = PreparedDataset.open(folder).units("test", config.data.unit)
            written = write_reports(trained, units)
            pairs = pairs_shown(units, segments, config)
            patients = units.column("patient_id")
            in_view = known_in_view(Truth.of(units, np.arange(len(units)), config))
        pairs = [(one, other) for one, other in pairs if written[one] is not None and written[other] is not None]
        if not pairs:
            raise UserError("no sampled frame shows a lesion that was erased; ask for more --num-patients")
        of_pair = [str(patients[one]) for one, _ in pairs]
        texts = [[cast(str, written[pair[state]]) for pair in pairs] for state in range(2)]
        lesions, shown = [segments[patient] for patient in of_pair], in_view[[one for one, _ in pairs]]
        metrics = measure(texts[0], texts[1], lesions, of_pair, shown)
        about = {
            "checkpoint": trained.checkpoint.name, "weights": trained.weights, "preset": preset, "seed": str(seed),
            "size": str(size), "num_frames": str(frames), "fps": str(fps), "num_pairs": str(len(pairs)),
            "num_patients": str(len(set(of_pair))),
        }  # fmt: skip
        write_summary(run / "erasure.json", metrics, about)
        told = f"{len(pairs)} pairs of {len(set(of_pair))} patients ({preset}), of {num_patients} drawn"
        print(f"\n{run}, checkpoint {trained.checkpoint.name}, {trained.weights} weights: {told}\n")
        print(format_table(metrics))


if __name__ == "__main__":
    main()

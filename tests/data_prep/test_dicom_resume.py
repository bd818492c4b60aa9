"""An ingest that is killed, repeated, or run as the archive grows ends with the tables of one run over everything."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from pyarrow import fs

from data_prep.dicom import workers
from data_prep.dicom.discover import Found
from data_prep.dicom.identity import load_or_create_key
from data_prep.dicom.ingest import Summary, ingest
from data_prep.dicom.journal import Journal
from data_prep.dicom.place import Place
from data_prep.update import changing, update_videos
from deepcoro.errors import DataError
from tests.data_prep.archive import by_reason, cine, patients, rows

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("studies", "videos", "quarantine")


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """One Ray for the module: starting it takes longer than all the rest."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    yield
    ray.shutdown()


def content(output: Path) -> dict[str, Any]:
    """Everything a reader of a dataset can see."""
    tables = {name: rows(output, name) for name in NAMES}
    files = {str(path.relative_to(output)): path.read_bytes() for path in (output / "videos").rglob("*.mp4")}
    return {**tables, "files": files, "card": json.loads((output / "dataset.json").read_text())}


def alone(source: Path, output: Path, key: Path, **options: Any) -> dict[str, Any]:
    """The content of one run over everything, by the same key."""
    output.with_name(f"{output.name}.key").write_text(key.read_text())
    ingest(source, output, **options)
    return content(output)


def archive(folder: Path) -> Path:
    """Cines of some patients, with a duplicate, a stranger in a study, and files that are none."""
    patients(folder, 6)
    cine(folder / "0-0 again.dcm", "P0", "1.2.3.0.0", "1.2.3.0.0.1", np.zeros((4, 16, 16), np.uint8))
    cine(folder / "zz.dcm", "Q", "1.2.3.1.0", "1.2.3.1.0.2")
    (folder / "notes.txt").write_text("no cine")
    return folder


def test_a_second_run_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = archive(tmp_path / "in"), tmp_path / "out"
    first = ingest(source, output)
    assert first.num_converted == 15
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    monkeypatch.setattr(workers, "_stream", None)  # nothing may be converted
    second = ingest(source, output)
    assert second.num_converted == 0 and second.description == first.description
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_new_files_join_and_nobody_moves(tmp_path: Path) -> None:
    whole, source, output = archive(tmp_path / "whole"), tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (whole / "zz.dcm").unlink()
    chosen = random.Random(0).sample(sorted(whole.iterdir()), 8)
    for number, path in enumerate(chosen):
        path.rename(source / path.name)
        if number in (3, 7):
            ingest(source, output)
    splits = {row["study_id"]: row["split"] for row in rows(output, "studies")}
    for path in sorted(whole.iterdir()):
        path.rename(source / path.name)
    summary = ingest(source, output)
    assert summary.num_converted == 6
    assert by_reason(summary) == {"duplicate": 1, "not_dicom": 1}
    assert splits.items() <= {row["study_id"]: row["split"] for row in rows(output, "studies")}.items()
    assert content(output) == alone(source, tmp_path / "alone", tmp_path / "out.key")


def test_a_study_keeps_the_patient_it_came_with(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    cine(source / "b.dcm", "P", "1.1", "1.1.1")
    ingest(source, output)
    (study,) = rows(output, "studies")
    cine(source / "a.dcm", "Q", "1.1", "1.1.2")
    assert by_reason(ingest(source, output)) == {"conflicting_patient": 1}
    assert rows(output, "studies") == [study]


def test_a_study_never_changes_its_split_unasked(tmp_path: Path) -> None:
    source, output = patients(tmp_path / "in", 4), tmp_path / "out"
    ingest(source, output, val_fraction=0, test_fraction=0)
    with pytest.raises(DataError, match=r"8 of 8 studies would move to another split.*--resplit"):
        ingest(source, output, val_fraction=0, test_fraction=1)
    assert {row["split"] for row in rows(output, "studies")} == {"train"}
    summary = ingest(source, output, val_fraction=0, test_fraction=1, resplit=True)
    assert {row["split"] for row in rows(output, "studies")} == {"test"} and summary.num_converted == 0


def test_a_file_that_changed_is_read_again_and_one_that_is_gone_stays_until_told(tmp_path: Path) -> None:
    source, output = patients(tmp_path / "in", 2), tmp_path / "out"
    ingest(source, output)
    old = {row["video_id"]: row["uri"] for row in rows(output, "videos")}
    cine(source / "0-0.dcm", "P0", "1.2.3.0.0", "1.2.3.0.0.1", frames=None, Rows=8, Columns=32)
    (source / "1-1.dcm").unlink()
    summary = ingest(source, output)
    assert (summary.num_converted, summary.num_gone) == (1, 1)
    new = {row["video_id"]: row["uri"] for row in rows(output, "videos")}
    assert new.keys() == old.keys() and sum(new[video] != old[video] for video in new) == 1
    assert {str(path.relative_to(output)) for path in (output / "videos").rglob("*.mp4")} == set(new.values())
    assert by_reason(ingest(source, output, drop_missing=True)) == {}
    assert content(output) == alone(source, tmp_path / "alone", tmp_path / "out.key")


def test_a_duplicate_takes_the_place_of_a_first_file_that_is_gone(tmp_path: Path) -> None:
    source, output = archive(tmp_path / "in"), tmp_path / "out"
    ingest(source, output)
    (source / "0-0 again.dcm").unlink()  # sorts before 0-0.dcm, so it was the one that was kept
    summary = ingest(source, output, drop_missing=True)
    assert summary.num_converted == 1 and "duplicate" not in by_reason(summary)
    assert content(output) == alone(source, tmp_path / "alone", tmp_path / "out.key")


def test_videos_that_someone_removed_are_made_again(tmp_path: Path) -> None:
    source, output = patients(tmp_path / "in", 2), tmp_path / "out"
    ingest(source, output)
    before = content(output)
    gone, kept = sorted((output / "videos").rglob("*.mp4"))[:2]
    gone.unlink()
    (kept.parent / "leftover.mp4").write_bytes(b"of nobody")
    assert ingest(source, output).num_converted == 1
    assert content(output) == before


def test_what_other_commands_added_stays(tmp_path: Path) -> None:
    source, output = patients(tmp_path / "in", 2), tmp_path / "out"
    ingest(source, output)
    videos = [row["video_id"] for row in rows(output, "videos")]
    box = {"segment": "mid_rca", "frame": 1, "x0": 0.25, "y0": 0.25, "x1": 0.5, "y1": 0.5}
    added = {"coronary_tree": "right", "boxes": [box], "attributes": {"coronary_tree_source": "triage"}}
    with changing(str(output)) as folder:
        update_videos(folder, dict.fromkeys(videos[:2], added))
    cine(source / "new.dcm", "P9", "1.9", "1.9.1")
    changed = load_or_create_key(tmp_path / "out.key").id_of("video", "1.2.3.0.0.1")
    cine(source / "0-0.dcm", "P0", "1.2.3.0.0", "1.2.3.0.0.1", np.zeros((3, 8, 8), np.uint8))  # other pictures
    said = tmp_path / "videos.csv"
    said.write_text("sop_instance_uid,coronary_tree\n1.2.3.0.0.1,left\n")
    ingest(source, output, videos=said)
    after = {row["video_id"]: row for row in rows(output, "videos")}
    assert len(after) == 5
    for video in videos:
        kept = video in videos[:2] and video != changed
        tree = "left" if video == changed else "right" if kept else None
        assert (after[video]["coronary_tree"], after[video]["boxes"]) == (tree, [box] if kept else None)
        assert ("coronary_tree_source" in dict(after[video]["attributes"])) is kept


def test_other_options_read_every_file_anew(tmp_path: Path) -> None:
    source, output = patients(tmp_path / "in", 2), tmp_path / "out"
    ingest(source, output)
    summary = ingest(source, output, max_side=8)
    assert summary.num_converted == 4 and "every file was read anew" in summary.notes[-1]
    assert {row["height"] for row in rows(output, "videos")} == {8}
    assert content(output) == alone(source, tmp_path / "alone", tmp_path / "out.key", max_side=8)


def test_files_that_name_nobody_belong_to_the_studys_patient(tmp_path: Path) -> None:
    source = tmp_path / "in"
    cine(source / "a.dcm", "", "1.1", "1.1.1")
    cine(source / "b.dcm", "P", "1.1", "1.1.2")
    cine(source / "c.dcm", "Q", "1.1", "1.1.3")
    cine(source / "d.dcm", "", "1.2", "1.2.1")
    summary = ingest(source, tmp_path / "out")
    assert by_reason(summary) == {"conflicting_patient": 1} and summary.unnamed_studies == 1
    key = load_or_create_key(tmp_path / "out.key")
    patients_of = {row["study_id"]: row["patient_id"] for row in rows(tmp_path / "out", "studies")}
    assert patients_of[key.id_of("study", "1.1")] == key.id_of("patient", "P")


def test_of_two_files_of_a_video_the_whole_one_stays(tmp_path: Path) -> None:
    source = tmp_path / "in"
    frames = np.zeros((12, 16, 16), np.uint8)
    for name in ("a.dcm", "b.dcm", "c.dcm"):
        cine(source / name, "P", "1.1", "1.1.1", frames)
    (source / "a.dcm").write_bytes((source / "a.dcm").read_bytes()[: -2 * 256])
    summary = ingest(source, tmp_path / "out")
    (video,) = rows(tmp_path / "out", "videos")
    assert (video["num_frames"], video["partial"], by_reason(summary)) == (12, False, {"duplicate": 2})
    for name in ("b.dcm", "c.dcm"):
        (source / name).unlink()
    ingest(source, tmp_path / "out", drop_missing=True)
    (video,) = rows(tmp_path / "out", "videos")
    assert (video["num_frames"], video["partial"]) == (10, True)


def test_two_ingests_of_one_dataset_at_once(tmp_path: Path) -> None:
    source, output = patients(tmp_path / "in", 1), tmp_path / "out"
    ingest(source, output)
    with FileLock(tmp_path / "out.journal" / ".lock"), pytest.raises(DataError, match="another ingest is at work"):
        ingest(source, output)


def test_tables_that_another_command_is_changing_are_left_to_it(tmp_path: Path) -> None:
    source, output = patients(tmp_path / "in", 1), tmp_path / "out"
    ingest(source, output)
    before = content(output)
    cine(source / "new.dcm", "N", "1.9", "1.9.1")
    with changing(str(output)), pytest.raises(DataError, match="being changed by another process"):
        ingest(source, output)
    assert content(output)["card"] == before["card"]
    summary = ingest(source, output)
    assert summary.num_converted == 0  # it was read while the tables were held
    assert summary.description["counts"]["ingested"] == 3


def test_what_the_file_system_refused_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = patients(tmp_path / "in", 1), tmp_path / "out"

    def refused(paths: list[bytes], work: Any, *rest: Any) -> Iterator[list[tuple[bytes, dict[str, Any]]]]:
        source_ids = [work.rules.key.id_of("source", path) for path in paths]
        records = [{"source": name, "reason": "unreadable", "detail": "an I/O error"} for name in source_ids]
        yield list(zip(paths, records, strict=True))

    with monkeypatch.context() as patch:
        patch.setattr(workers, "_stream", refused)
        assert by_reason(ingest(source, output)) == {"unreadable": 2}
    summary = ingest(source, output)
    assert (summary.num_converted, by_reason(summary)) == (2, {})


def test_any_file_system_will_do(tmp_path: Path) -> None:
    source = archive(tmp_path / "in")
    here = fs.LocalFileSystem()
    places = [Place(fs.SubTreeFileSystem(str(tmp_path), here), name) for name in ("in", "there")]
    assert all(place.local is None for place in places)
    with pytest.raises(DataError, match="name a key file with --key"):
        ingest(*places)
    for _ in range(2):  # the second does nothing
        summary = ingest(*places, key_path=tmp_path / "out.key")
    assert summary.num_converted == 0
    assert content(tmp_path / "there") == alone(source, tmp_path / "alone", tmp_path / "out.key")
    with pytest.raises(DataError, match="no such folder"):
        ingest(Place(places[0].filesystem, "none"), places[1], key_path=tmp_path / "out.key")


def test_a_full_disk_ends_with_a_message_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    source, output = patients(tmp_path / "in", 3), tmp_path / "out"
    monkeypatch.setattr(workers, "FILES_PER_TASK", 1)
    convert_batch = workers._convert_batch

    def on_a_full_disk(batch: dict[str, Any], work: Any) -> Any:
        class Full(Place):
            def put(self, file: Path, name: str) -> None:
                raise OSError(28, "No space left on device")

        if bytes(batch["path"][0]) == b"2-1.dcm":
            work = replace(work, target=Full(work.target.filesystem, work.target.root))
        return convert_batch(batch, work)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "_convert_batch", on_a_full_disk)
        with pytest.raises(DataError, match=r"cannot write a video .*No space left on device.*run again"):
            ingest(source, output)
    assert not (output / "dataset.json").exists()
    assert ingest(source, output).num_converted < 6
    assert content(output) == alone(source, tmp_path / "alone", tmp_path / "out.key")


def test_a_journal_that_was_torn_is_read_up_to_there(tmp_path: Path) -> None:
    place = {"input": "a"}
    first, second = Found(b"x \xff", 1, 2), Found(b"y", 3, 4)
    journal = Journal(tmp_path, place, {})
    journal.add(first, {"source": "1"})
    journal.add(second, {"source": "2"})
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes()[:-5])
    journal = Journal(tmp_path, place, {})
    assert (journal.record_of(first), journal.record_of(second)) == ({"source": "1"}, None)
    assert journal.record_of(first._replace(modified=5)) is None
    journal.add(second, {"source": "3"})
    journal.close()
    assert Journal(tmp_path, place, {}).record_of(second) == {"source": "3"}
    other = Journal(tmp_path, place, {"other": 1})
    assert other.files() == [] and other.is_of_other_rules
    assert len(Journal(tmp_path, place, {}).files()) == 2  # until the other is finished
    other.keep([])
    assert Journal(tmp_path, place, {}).files() == []
    with pytest.raises(DataError, match="made with the input a, and this is b"):
        Journal(tmp_path, {"input": "b"}, {})
    journal.path.write_text("nothing\n")
    with pytest.raises(DataError, match="no journal of an ingest"):
        Journal(tmp_path, place, {})


def journaled(folder: Path) -> int:
    """Bytes of the records so far."""
    return sum(path.stat().st_size for path in folder.glob("records-*.jsonl"))


@pytest.mark.long
def test_killed_at_any_moment_it_ends_as_undisturbed(tmp_path: Path) -> None:
    source, output, chance = archive(tmp_path / "in"), tmp_path / "out", random.Random(0)
    patients(source / "more", 150)
    code = (  # small tasks, so that there is something left to kill
        "from data_prep.dicom import ingest, workers; workers.FILES_PER_TASK = 2; "
        f"ingest.ingest({str(source)!r}, {str(output)!r})"
    )
    kills = 0
    while kills < 5:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
        known = journaled(tmp_path / "out.journal")
        while process.poll() is None and journaled(tmp_path / "out.journal") <= known + 300:
            time.sleep(0.05)
        time.sleep(chance.random() * 0.3)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == 5
    ingest(source, output)
    assert content(output) == alone(source, tmp_path / "alone", tmp_path / "out.key")
    assert pq.read_table(output / "videos.parquet").num_rows == 300  # the first twelve stand twice in the archive


def test_summary_says_what_is_new(tmp_path: Path) -> None:
    summary = ingest(patients(tmp_path / "in", 1), tmp_path / "out")
    assert isinstance(summary, Summary) and (summary.num_converted, summary.num_gone) == (2, 0)

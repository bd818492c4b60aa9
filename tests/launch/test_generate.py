"""Reports of one study or video: every clip once, the truth beside it, and one clear error for each mistake."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import CheckpointError, ConfigError, DataError
from deepcoro.inference.load import load
from deepcoro.inference.reports import ReportWriter
from deepcoro.launch.generate import generate
from deepcoro.launch.generate_units import find_split, generate_study
from deepcoro.launch.writing import How


def test_each_clip_of_a_study_is_written_once_beside_the_truth(make_run, capsys):
    run = make_run()
    rows = generate(run, "s0")
    # v1 was made before v0. The findings are of both trees; a clip is told those of its own.
    assert [(row.unit_id, row.tree) for row in rows] == [("v1", "right"), ("v0", "left")]
    printed = capsys.readouterr().out
    assert printed.startswith(f"{run}, checkpoint 5, trained weights, study s0 of split train\n\nv1  right\n  true ")
    right, left = printed.split("\n\n")[1:]
    assert "Mid RCA: chronic total occlusion" in right and "LAD" not in right.splitlines()[1]
    assert "Proximal LAD: 80%" in left and "RCA" not in left.splitlines()[1]
    assert all(f"  written  {row.text or '(empty)'}" in printed for row in rows)


def test_what_is_written_is_what_the_model_writes_of_these_frames(make_run):
    from deepcoro.data.reader import UnitReader

    run = make_run()
    trained = load(run, 3)
    units = PreparedDataset.open(trained.config.data.path).units("train")
    unit = [units.video_rows(number)[0]["video_id"] for number in range(len(units))].index("v2")
    batch = UnitReader(trained.config, units, None, training=False).read(np.array([unit]), np.array([unit]))
    (row,) = generate_study(run, "s1", how=How(checkpoint="3"))
    assert [row.text] == trained.write_reports(torch.from_numpy(batch["clip"]))
    with pytest.raises(ValueError, match=r"valid \[B, V\] of bool, .* received torch.int64"):
        trained.write_reports(torch.from_numpy(batch["clip"]), torch.ones(1, 1, dtype=torch.long))


def test_a_whole_study_is_one_text(make_run, capsys):
    (row,) = generate(make_run("data.unit=study", "data.num_videos=2"), "s0")
    assert (row.unit_id, row.tree) == ("s0", None)
    printed = capsys.readouterr().out
    assert "\ns0\n" in printed and "LAD" in printed and "RCA" in printed


def test_a_cine_that_cannot_be_read_is_told_and_not_invented(make_run, capsys):
    (row,) = generate(make_run(), "s4")
    assert row.text is None and "v6.avi" in row.problem
    assert "no video could be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("study", "split", "says"),
    [
        ("s00", None, r"no study 's00'; the nearest are s0 \(train\)"),
        ("quite-another", None, "no study 'quite-another'; none is like it"),
        ("s6", "val", "s6 stands in split test, and not in val"),
    ],
)
def test_a_study_that_is_not_there_names_the_nearest_or_its_split(dataset_folder, study, split, says):
    with pytest.raises(DataError, match=says):
        find_split(PreparedDataset.open(dataset_folder), study, split)


def test_a_study_is_found_wherever_it_stands(dataset_folder):
    dataset = PreparedDataset.open(dataset_folder)
    assert [find_split(dataset, study) for study in ("s0", "s5", "s6")] == ["train", "val", "test"]
    assert find_split(dataset, "s6", "test") == "test"


def test_a_filter_that_leaves_nothing_of_the_study_is_named(make_run):
    with pytest.raises(DataError, match="acquisition == 'pci'.*leaves no video of study s1"):
        generate(make_run("data.filter=acquisition == 'pci'"), "s1")


def test_a_run_without_captioning_or_without_that_checkpoint_is_refused(make_run):
    with pytest.raises(CheckpointError, match="no checkpoint '4'"):
        generate(make_run(), "s0", checkpoint="4")
    folder = make_run() / "checkpoints" / "3"
    assert load(folder).checkpoint == folder
    for chosen in (5, "best"):
        with pytest.raises(CheckpointError, match=f"is a checkpoint itself, and {chosen!r} would choose"):
            load(folder, chosen)
    with pytest.raises(ConfigError, match="trained without captioning"):
        generate(make_run("loss.weights.captioning=0"), "s0")


def test_json_goes_to_a_file_that_was_not_there_and_a_picture_beside_it(make_run, tmp_path, capsys):
    run, output, picture = make_run(), tmp_path / "s0.json", tmp_path / "s0.png"
    asked = {"form": "json", "output": output, "picture": picture, "probabilities": False}
    rows = generate(run, "s0", **asked)
    told = json.loads(output.read_text())
    assert {key: told[key] for key in ("run", "checkpoint", "weights", "study_id", "split")} == {
        "run": "run", "checkpoint": "5", "weights": "trained", "study_id": "s0", "split": "train",
    }  # fmt: skip
    assert [report["unit_id"] for report in told["reports"]] == ["v1", "v0"]
    assert [report["text"] for report in told["reports"]] == [row.text for row in rows]
    assert "Proximal LAD: 80%" in told["reports"][1]["true"]
    with Image.open(picture) as sheet:
        assert sheet.height > 600  # two rows of frames
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match="is there already"):
        generate(run, "s0", **asked)


def test_a_video_file_is_read_as_the_dataset_reads_it(make_run, dataset_folder, capsys, monkeypatch):
    run, file = make_run(), str(Path(dataset_folder) / "videos" / "v2.avi")
    (of_study,) = generate(run, "s1")
    (of_video,) = generate(run, video=file)
    assert (of_video.unit_id, of_video.text) == ("video", of_study.text)
    printed = capsys.readouterr().out.split("\n\n")[-1]
    assert printed.startswith("video\n  written  ") and "true" not in printed
    studies = make_run("data.unit=study", "data.num_videos=2")
    seen = []
    write = ReportWriter.write
    monkeypatch.setattr(ReportWriter, "write", lambda self, rows, units: seen.append(rows) or write(self, rows, units))
    generate(studies, video=file, angles=(-30.0, 20.0))
    assert seen[0]["angles"].tolist() == [[[-30.0, 20.0]]]


def test_angles_that_nothing_looks_at_and_files_that_are_no_cines_are_refused(make_run, dataset_folder, tmp_path):
    run, file = make_run(), str(Path(dataset_folder) / "videos" / "v2.avi")
    with pytest.raises(ConfigError, match="--angles would do nothing"):
        generate(run, video=file, angles=(30.0, 0.0))
    (tmp_path / "x.dcm").write_bytes(b"\0" * 128 + b"DICM")
    for path, says in (
        (tmp_path / "x.dcm", "python -m data_prep dicom"),
        (tmp_path / "none.avi", "missing or empty"),
        (Path(dataset_folder) / "dataset.json", "cannot be decoded"),
        (Path(dataset_folder) / "videos" / "v6.avi", "cannot be decoded|holds"),
    ):
        with pytest.raises(DataError, match=says):
            generate(run, video=str(path))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "none of them is given"),
        ({"study": "s0", "video": "x"}, "--study and --video"),
        ({"study": "s0", "limit": 3}, "--limit does nothing beside --study: it is for --data"),
        ({"study": "s0", "angles": (0.0, 0.0)}, "--angles does nothing"),
        ({"video": "x", "split": "any"}, "--split does nothing beside --video: it is for --study and --data"),
        ({"data": "x", "output": Path("o"), "form": "json"}, "--format does nothing beside --data"),
        ({"data": "x"}, "needs --output DIR"),
        ({"data": "x", "picture": Path("p.png")}, "needs --limit N, 48 at most"),
        ({"data": "x", "picture": Path("p.png"), "limit": 12, "probabilities": True}, "a column of --output"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_loaded(given, says):
    with pytest.raises(ConfigError, match=says):
        generate("no/such/run", **given)


def test_what_could_not_be_written_in_the_end_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(DataError, match="is there already"):
        generate("no/such/run", "s0", output=tmp_path)
    for where in ("output", "picture"):
        with pytest.raises(DataError, match="there is no folder"):
            generate("no/such/run", "s0", **{where: tmp_path / "no" / "such.png"})
        with pytest.raises(ConfigError, match=f"--{where} s3:.* is a URI"):
            generate("no/such/run", "s0", **{where: Path("s3://bucket/x")})
    with pytest.raises(ConfigError, match="are both"):
        generate("no/such/run", "s0", output=tmp_path / "x", picture=tmp_path / "." / "x")


def test_probabilities_are_told_and_in_json_they_are_left_out_where_the_tokenizer_cannot(make_run, monkeypatch, capsys):
    run = make_run("captioning.max_position_embeddings=160", "captioning.max_generation_length=150")
    written = "Left coronary tree. Left main: normal. Proximal LAD: 80% stenosis (severe). LCX: normal."
    monkeypatch.setattr(
        "deepcoro.inference.reports.write_row_ids",
        lambda model, words, *seen: torch.from_numpy(words.encode([written])[0][:, 1:]).long(),
    )
    (row,) = generate(run, "s1", form="json", structured=True)
    told = json.loads(capsys.readouterr().out)["reports"][0]
    assert row.said.findings and told["probabilities"] and len(told["findings"]) == len(row.said.findings)
    assert all(0 <= finding["sentence_probability"] <= 1 for finding in told["findings"])
    generate(run, "s1", probabilities=True, structured=True)
    known = row.probability(row.said.findings[0].segment)
    assert f"{known.segment}: significant with probability {known.significant:.3f}, this" in capsys.readouterr().out

    def refuse(*_):
        raise ConfigError("the tokenizer cannot write")

    monkeypatch.setattr("deepcoro.inference.reports.report_automaton", refuse)
    generate(run, "s1", form="json")
    out, err = capsys.readouterr()
    assert json.loads(out)["reports"][0]["probabilities"] is None and "tokenizer cannot write" in err
    with pytest.raises(ConfigError, match="tokenizer cannot write"):
        generate(run, "s1", form="json", probabilities=True)


def test_beams_and_the_canonical_wording_can_be_asked_for(make_run):
    run = make_run("captioning.max_position_embeddings=160", "captioning.max_generation_length=150")
    trained = load(run)
    other = trained.writing_as(num_beams=3)
    assert trained.model.config.captioning.num_beams == 1 != other.model.config.captioning.num_beams
    plain, searched, kept = (
        generate_study(run, "s1", how=how)[0] for how in (How(), How(num_beams=3), How(structured=True))
    )
    assert not kept.said.unread and kept.said.trees and not kept.problem
    assert plain.text != kept.text and searched.text != kept.text
    with pytest.raises(ConfigError, match="too short"):
        generate(make_run(), "s1", structured=True)

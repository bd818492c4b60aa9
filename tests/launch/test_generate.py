"""Reports of one study: every clip once, the truth beside it, and one clear error for each mistake."""

import numpy as np
import pytest
import torch

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import CheckpointError, ConfigError, DataError
from deepcoro.inference.load import load
from deepcoro.launch.generate import find_split, generate
from deepcoro.training.checkpoint import save_checkpoint


@pytest.fixture
def make_run(tmp_path, tiny_config, tiny_model, dataset_folder, report_tokenizer, text_folder):
    def make(*assignments):
        from deepcoro.models.text_encoder import load_tokenizer

        config = tiny_config(f"data.path={dataset_folder}", *assignments)
        load_tokenizer(str(text_folder)).save_pretrained(tmp_path / "tokenizer")
        for step in (3, 5):
            save_checkpoint(tmp_path, step, tiny_model(config), {"step": step}, config, "made-for-tests")
        return tmp_path

    return make


def test_each_clip_of_a_study_is_written_once_beside_the_truth(make_run, capsys):
    run = make_run()
    rows = generate(run, "s0")
    # v1 was made before v0. The findings are of both trees; a clip is told those of its own.
    assert [(row.unit_id, row.tree) for row in rows] == [("v1", "right"), ("v0", "left")]
    assert "Mid RCA: chronic total occlusion" in rows[0].true and "LAD" not in rows[0].true
    assert "Proximal LAD: 80%" in rows[1].true and "RCA" not in rows[1].true
    assert all(isinstance(row.written, str) for row in rows)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{run}, checkpoint 5, trained weights, study s0 of split train\n")
    assert all(f"written  {row.written}" in printed and f"true     {row.true}" in printed for row in rows)


def test_what_is_written_is_what_the_model_writes_of_these_frames(make_run):
    from deepcoro.data.reader import UnitReader

    run = make_run()
    trained = load(run, 3)
    units = PreparedDataset.open(trained.config.data.path).units("train")
    unit = [units.video_rows(number)[0]["video_id"] for number in range(len(units))].index("v2")
    batch = UnitReader(trained.config, units, None, training=False).read(np.array([unit]), np.array([unit]))
    (row,) = generate(run, "s1", checkpoint="3")
    assert [row.written] == trained.write_reports(torch.from_numpy(batch["clip"]))
    with pytest.raises(ValueError, match=r"valid \[B, V\] of bool, .* received torch.int64"):
        trained.write_reports(torch.from_numpy(batch["clip"]), torch.ones(1, 1, dtype=torch.long))


def test_a_whole_study_is_one_text(make_run):
    (row,) = generate(make_run("data.unit=study", "data.num_videos=2"), "s0")
    assert (row.unit_id, row.tree) == ("s0", None)
    assert "LAD" in row.true and "RCA" in row.true


def test_a_cine_that_cannot_be_read_is_told_and_not_invented(make_run, capsys):
    (row,) = generate(make_run(), "s4")
    assert row.written is None and "v6.avi" in row.problem
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

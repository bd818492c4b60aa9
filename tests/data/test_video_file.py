"""A file by itself is read as a dataset that has it reads it."""

import numpy as np
import pytest

from deepcoro.data.decode import decode_frames, probe
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.data.video_file import video_units
from deepcoro.errors import DataError


@pytest.fixture(scope="module")
def file(write_video, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "cine.avi"
    frames = np.random.default_rng(0).integers(0, 256, (17, 32, 48), dtype=np.uint8)
    write_video(path, frames, fps=12)
    return path


def test_what_a_file_says_of_itself(file):
    facts = probe(str(file))
    assert (facts.num_frames, facts.fps, facts.height, facts.width) == (17, 12.0, 32, 48)
    assert len(decode_frames(str(file), np.arange(17), facts.num_frames)) == 17


def test_it_is_sampled_and_cropped_as_in_a_dataset(file, make_dataset, tiny_config, tmp_path):
    of_table = {"study_id": "s", "uri": str(file), "num_frames": 17, "fps": 12.0, "height": 32, "width": 48}
    angles = {"primary_angle": -30.0, "secondary_angle": 20.0}
    folder = make_dataset(tmp_path, [{"study_id": "s"}], [of_table | angles])
    zero, config = np.zeros(1, int), tiny_config()
    rows = [
        UnitReader(config, units, None, training=False).read(zero, zero)
        for units in (video_units(str(file), (-30.0, 20.0)), PreparedDataset.open(folder).units("train"))
    ]
    assert rows[0]["valid"].all() and rows[0]["unit_id"].tolist() == ["video"]
    for name in ("clip", "angles", "view_index"):
        assert np.array_equal(rows[0][name], rows[1][name]), name
    study = video_units(str(file), whole_study=True)
    assert len(study) == 1 and study.num_videos(0) == 1 and study.whole_study
    assert np.isnan(UnitReader(config, study, None, training=False).read(zero, zero)["angles"]).all()


def test_what_is_no_cine_is_refused(file, write_video, tmp_path):
    write_video(tmp_path / "one.avi", np.zeros((1, 32, 32), np.uint8))
    (tmp_path / "x.dcm").touch()
    (tmp_path / "unnamed").write_bytes(b"\0" * 128 + b"DICM and more")
    (tmp_path / "half.avi").write_bytes(file.read_bytes()[:300])
    (tmp_path / "text.avi").write_text("no video")
    for name, says in (
        ("one.avi", "holds 1 frame"),
        ("x.dcm", "python -m data_prep dicom"),
        ("unnamed", "is a DICOM file"),
        ("half.avi", "cannot be decoded|holds"),
        ("text.avi", "cannot be decoded"),
        ("none.avi", "missing or empty"),
    ):
        with pytest.raises(DataError, match=says):
            video_units(str(tmp_path / name))

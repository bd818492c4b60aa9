"""Windows with and without a lesion: where they lie, what is cut, and that what can be seen is told."""

import numpy as np
import pytest
import torch

from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import DataError
from experiments.windows import cut, measure, place_windows, read_cines, teach

SIZE, SIDE = 64, 32
ANGLES = {"primary_angle": 30.0, "secondary_angle": 10.0}


def box(segment, left, top, side=8):
    edges = {"x0": left / SIZE, "y0": top / SIZE, "x1": (left + side) / SIZE, "y1": (top + side) / SIZE}
    return [{"segment": segment, "frame": frame, **edges} for frame in range(8)]


@pytest.fixture(scope="module")
def cines(make_dataset, write_video, tmp_path_factory):
    """Of 24 patients one cine each, noise of 64 x 64; every other has a dark spot of 8 x 8, with a box around it."""
    folder = tmp_path_factory.mktemp("windows")
    (folder / "videos").mkdir()
    chance = np.random.default_rng(0)
    studies, videos = [], []
    for number in range(24):
        frames = chance.integers(100, 160, (8, SIZE, SIZE)).astype(np.uint8)
        boxes = []
        if number % 2 == 0:
            left, top = (int(edge) for edge in chance.integers(16, 40, 2))
            frames[:, top : top + 8, left : left + 8] = 20
            boxes = box("prox_lad", left, top)
        write_video(folder / "videos" / f"v{number}.avi", frames)
        studies.append({"study_id": f"s{number}", "split": "val" if number >= 16 else "train"})
        row = {"study_id": f"s{number}", "coronary_tree": "left", "num_frames": 8, "boxes": boxes, **ANGLES}
        videos.append(row | {"height": SIZE, "width": SIZE})
    return PreparedDataset.open(make_dataset(folder, studies, videos))


@pytest.fixture(scope="module")
def config(tiny_config):
    size = ("data.frame_size=64", "data.num_frames=4", "video_encoder.tubelet=[2,16,16]", "data.sample_fps=15")
    return tiny_config(*size, "data.pixel_mean=130", "data.pixel_std=20")


def test_each_lesion_has_a_window_at_its_place_in_another_patients_cine_without_one(cines):
    units = cines.units("train", "video")
    windows = place_windows(units, np.arange(len(units)), SIZE, 0)
    assert windows.there.tolist() == [True, False] * 8
    assert (windows.x[::2] == windows.x[1::2]).all()
    assert (windows.y[::2] == windows.y[1::2]).all()
    for ill, other, x, y in zip(windows.cines[::2], windows.cines[1::2], windows.x[::2], windows.y[::2], strict=True):
        own, there = (units.video_rows(int(cine))[0]["boxes"] for cine in (ill, other))
        assert ill != other
        assert (own[0]["x0"] + own[0]["x1"]) / 2 * SIZE == pytest.approx(x)
        assert (own[0]["y0"] + own[0]["y1"]) / 2 * SIZE == pytest.approx(y)
        assert all(
            abs((b["x0"] + b["x1"]) / 2 * SIZE - x) >= 12 or abs((b["y0"] + b["y1"]) / 2 * SIZE - y) >= 12
            for b in there
        )


def test_a_cine_with_a_lesion_at_the_place_itself_is_no_pair(make_dataset, tmp_path):
    boxes = [box("prox_lad", 20, 20), box("mid_lad", 22, 18), [], box("d1", 50, 50)]
    videos = [{"study_id": f"s{n}", "coronary_tree": "left", "boxes": b, **ANGLES} for n, b in enumerate(boxes)]
    folder = make_dataset(tmp_path, [{"study_id": f"s{number}"} for number in range(4)], videos)
    units = PreparedDataset.open(folder).units("train", "video")
    for seed in range(8):
        windows = place_windows(units, np.arange(4), SIZE, seed)
        chosen = windows.cines[1::2][windows.x[1::2] < 32]
        assert len(chosen) == 2
        assert set(chosen.tolist()) <= {2, 3}


def test_cines_of_other_views_or_trees_are_no_pair(make_dataset, tmp_path):
    rows = [
        {"boxes": box("prox_lad", 20, 20), "coronary_tree": "left", **ANGLES},
        {"boxes": [], "coronary_tree": "right", **ANGLES},
        {"boxes": [], "coronary_tree": "left", "primary_angle": -30.0, "secondary_angle": 10.0},
    ]
    studies = [{"study_id": f"s{number}"} for number in range(3)]
    folder = make_dataset(tmp_path, studies, [{"study_id": f"s{n}", **row} for n, row in enumerate(rows)])
    units = PreparedDataset.open(folder).units("train", "video")
    with pytest.raises(DataError, match="same view"):
        place_windows(units, np.arange(3), SIZE, 0)


def test_windows_are_cut_around_their_middle_and_stay_inside(cines, config):
    units = cines.units("train", "video")
    numbers = np.arange(len(units))
    clips, windows = read_cines(config, units, numbers), place_windows(units, numbers, SIZE, 0)
    found = cut(clips, windows, np.array([0, 1]), SIDE)
    left, top = int(windows.x[0] - SIDE / 2), int(windows.y[0] - SIDE / 2)
    assert torch.equal(found[0], torch.from_numpy(clips[windows.cines[0], :, top : top + SIDE, left : left + SIDE]))
    assert found[0, :, 12:20, 12:20].float().mean() < 60 < 90 < found[1].float().mean()
    pushed = cut(clips, windows, np.array([0]), SIDE, np.array([[999.0, -999.0]]))
    assert torch.equal(pushed[0], torch.from_numpy(clips[windows.cines[0], :, :SIDE, SIZE - SIDE :]))


def test_what_can_be_seen_is_told_and_what_cannot_is_not(cines, config):
    train, val = (cines.units(split, "video") for split in ("train", "val"))
    shown, learnt = (place_windows(units, np.arange(len(units)), SIZE, 0) for units in (val, train))
    clips, held_out = (read_cines(config, units, np.arange(len(units))) for units in (train, val))
    patients = val.column("patient_id")[shown.cines]
    judge = teach(config, clips, learnt, SIDE, 30)
    assert measure(judge, held_out, shown, SIDE, patients).value == 1.0
    noise = np.random.default_rng(1).integers(100, 160, held_out.shape).astype(np.uint8)
    assert measure(judge, noise, shown, SIDE, patients).value < 0.9

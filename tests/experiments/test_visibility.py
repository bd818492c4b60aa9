"""The probe tells what can be seen, of the segments that a cine shows, and how large the lesions are."""

import numpy as np
import pytest

from deepcoro.data.tables import PreparedDataset
from experiments.visibility import auroc, lesion_pixels, measure_probe, train_probe

LAD = {"segment": "prox_lad", "stenosis": 80, "occlusion": "none"}
BOX = {"segment": "prox_lad", "x0": 0.25, "y0": 0.5, "x1": 0.5, "y1": 0.625}  # of 24 pixels 6 wide and 3 high


@pytest.fixture(scope="module")
def striped_if_diseased(make_dataset, write_video, tmp_path_factory):
    """Left trees of 24 patients, each other one with a stenosis of the proximal LAD: its cine has upright stripes, the
    others' lie."""
    folder = tmp_path_factory.mktemp("visible")
    (folder / "videos").mkdir()
    noise = np.random.default_rng(0)
    studies, videos = [], []
    for number in range(24):
        ill = number % 2 == 0
        lying = np.where(np.arange(32) % 4 < 2, 60, 160)[:, None] + noise.integers(0, 40, (8, 32, 32))
        frames = (lying.swapaxes(1, 2) if ill else lying).astype(np.uint8)
        write_video(folder / "videos" / f"v{number}.avi", frames)
        findings = [LAD] if ill else []
        split = "test" if number >= 16 else "train"
        studies.append({"study_id": f"s{number}", "split": split, "dominance": "right", "findings": findings})
        boxes = [BOX | {"frame": frame} for frame in (2, 3)] if ill else []
        videos.append({"study_id": f"s{number}", "coronary_tree": "left", "num_frames": 8, "boxes": boxes})
    return PreparedDataset.open(make_dataset(folder, studies, videos))


def test_what_can_be_seen_is_told(striped_if_diseased, tiny_config):
    config = tiny_config("training.batch_size=8", "optim.lr=0.003")
    train, test = (striped_if_diseased.units(split, "video") for split in ("train", "test"))
    found = measure_probe(train_probe(config, train, 40), config, test)
    assert found["segment_auroc"].value == found["segment_auroc/prox_lad"].value == 1.0
    assert set(found) == {"segment_auroc", "segment_auroc/prox_lad"}  # nobody has any other segment diseased
    assert lesion_pixels(config, test).tolist() == [3.0] * 4


def test_auroc_is_over_the_rows_that_show_the_segment():
    there, shown = np.array([1, 0, 1, 0, 1]), np.array([1, 1, 1, 1, 0])
    assert auroc(there, shown, np.array([0.9, 0.1, 0.2, 0.3, -9.0])) == 3 / 4
    assert np.isnan(auroc(there, np.array([1, 0, 1, 0, 1]), np.zeros(5)))

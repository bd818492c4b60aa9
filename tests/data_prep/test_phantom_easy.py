"""The easy preset is what it was when the demo's figures were taken: the same patients, words and pixels.

The hashes were recorded before the rich presets came. Pixels go through exp, pow and Poisson draws, whose last bits
may differ between processors: where they do, patients and words are still compared.
"""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest

from data_prep.phantom.generate import write_phantom

RECORDED = {
    "small": {
        "parameters": {"num_studies": 4, "seed": 11, "size": 64, "num_frames": 3, "fps": 15},
        "reports": "a28a2ac4823d76d243e173612bf9666e352dd487cf70c37e26a30485e5cb5dd4",
        "videos": "d526e857721fb4e7ac7b76670d0d4abb4786675bcaa36fdbc004aa5df7229113",
        "frames": "64c7fa20b311eaaecc8e34c80afa9cff628c3e3ed23d545d0105ff90edd0b7c8",
    },
    "demo": {
        "parameters": {"num_studies": 3, "seed": 0, "size": 96, "num_frames": 16, "fps": 10.0},
        "reports": "be80403eecef554f2f1eedaf89d0ab810d65a76fb3a2184524daf3ab05e56439",
        "videos": "386648f41b5fa8a37a1e9a2dc1f543c16c167792de89e24f78d8eb2144300701",
        "frames": "4448fe626baf87fedac5baa954aa4176d6ea6fac368d42bc24d699c54258033b",
    },
}
ARITHMETIC = "517f7bfa1e4d0a78e5542a1700fd6fe4884af5f81f5384f068bf085e9b91ddf8"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def arithmetic() -> str:
    """Hash of the functions that decide pixels, at places where nothing of the phantom is involved."""
    x = np.linspace(-8, 2, 1000, dtype=np.float32)
    drawn = np.random.default_rng(0).poisson(np.exp(x) * 50)
    powers = np.exp(x).tobytes() + (np.abs(x) ** np.float32(0.6)).tobytes() + drawn.tobytes()
    return sha(powers + np.sin(np.linspace(0, 9, 1000)).tobytes() + np.exp(np.linspace(-9, 9, 1000)).tobytes())


@pytest.fixture(scope="module", params=list(RECORDED))
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("easy") / "archive"
    write_phantom(folder, **RECORDED[request.param]["parameters"])
    return folder, RECORDED[request.param]


def test_patients_and_words_are_what_they_were(made):
    folder, recorded = made
    columns = ["study_id", "patient_id", "split", "dominance", "report", "findings", "lvef"]
    reports = pq.read_table(folder / "reports.parquet").select(columns).to_pylist()
    assert sha(json.dumps(reports, sort_keys=True).encode()) == recorded["reports"]
    columns = ["sop_instance_uid", "coronary_tree", "acquisition"]
    videos = pq.read_table(folder / "videos.parquet").select(columns).to_pylist()
    assert sha(json.dumps(videos, sort_keys=True).encode()) == recorded["videos"]


def test_pixels_are_what_they_were(made):
    if arithmetic() != ARITHMETIC:
        pytest.skip("this processor rounds exp, pow or Poisson draws otherwise than the one that recorded")
    folder, recorded = made
    files = sorted((folder / "dicom").rglob("*.dcm"))
    assert sha(b"".join(pydicom.dcmread(path).PixelData for path in files)) == recorded["frames"]

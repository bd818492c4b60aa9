"""Both decoders read the frames that were written, and damage is always said."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from deepcoro.data import decode
from deepcoro.data.decode import decode_frames, local_copy
from deepcoro.errors import DataError

REAL = Path(__file__).parents[3] / "shared" / "data" / "video"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real videos at {REAL}")


@pytest.fixture(scope="module")
def cine(write_video, tmp_path_factory):
    """20 frames of smooth texture, each with its number as brightness, and the file that holds them."""
    path = tmp_path_factory.mktemp("video") / "cine.avi"
    y, x = np.mgrid[0:48, 0:64]
    texture = 60 + 20 * np.sin(x / 9) + 20 * np.cos(y / 7)
    frames = np.stack([texture + 5 * t for t in range(20)]).round().astype(np.uint8)
    write_video(path, frames)
    return str(path), frames


@pytest.fixture(params=["decord", "av"])
def reader(request, monkeypatch):
    """Each decoder in turn behind ``decode_frames``."""
    if request.param == "decord":
        pytest.importorskip("decord")
    else:
        monkeypatch.setattr(decode, "decord", None)
    return request.param


@pytest.mark.parametrize("indices", [[0, 5, 19], [19, 0, 7, 7, 3], [2, 2, 2], list(range(20))])
def test_the_frames_asked_for_come_in_the_order_asked(cine, reader, indices):
    path, frames = cine
    read = decode_frames(path, np.array(indices), 20)
    assert (read.dtype, read.shape) == (np.uint8, (len(indices), 48, 64))
    assert np.abs(read.astype(int) - frames[indices]).max() <= 4  # neighbours differ by 5


def test_all_decoders_agree_to_the_last_grey_level(cine):
    pytest.importorskip("decord")
    path, _ = cine
    wanted = np.array([3, 0, 19, 3])
    with av.open(path) as container:
        found_pictures, pictures = decode._read_pictures(container, wanted, 20)
    assert found_pictures == 20 and np.array_equal(pictures, decode._read_av(path, wanted, 20)[1])
    found, frames = decode._read_decord(path, wanted, 20)
    found_av, frames_av = decode._read_av(path, wanted, 20)
    assert found == found_av == 20
    assert np.array_equal(frames, frames_av)


def test_dark_and_bright_keep_their_levels(write_video, tmp_path, reader):
    frames = np.stack([np.full((32, 32), level, np.uint8) for level in (0, 10, 128, 245, 255)])
    write_video(tmp_path / "levels.avi", frames)
    read = decode_frames(str(tmp_path / "levels.avi"), np.arange(5), 5)
    assert np.abs(read.astype(int) - frames).max() <= 4  # a limited range would move either end by 16


@pytest.mark.parametrize("width", [16, 24, 48, 50, 72, 96])
def test_any_width_can_be_read(write_video, ramp_frames, tmp_path, reader, width):
    frames = ramp_frames(4, 96)[:, :32, :width]
    write_video(tmp_path / "narrow.avi", frames)
    read = decode_frames(str(tmp_path / "narrow.avi"), np.array([1, 3]), 4)
    assert np.abs(read.astype(int) - frames[[1, 3]]).max() <= 4


@pytest.mark.parametrize("said", [19, 21, 1])
def test_another_number_of_frames_than_the_tables_is_an_error(cine, reader, said):
    with pytest.raises(DataError, match=f"holds 20 frames, the table says {said}"):
        decode_frames(cine[0], np.array([0]), said)


def test_missing_and_empty_files_are_errors(tmp_path, reader):
    (tmp_path / "empty.avi").touch()
    for name in ("empty.avi", "none.avi", "."):
        with pytest.raises(DataError, match="missing or empty"):
            decode_frames(str(tmp_path / name), np.array([0]), 1)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_an_error(cine, tmp_path, reader, share):
    whole = Path(cine[0]).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut\.avi"):
        decode_frames(str(cut), np.array([0, 19]), 20)


def test_a_file_that_is_no_video_is_an_error(tmp_path, reader):
    (tmp_path / "noise.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(DataError, match=r"noise\.avi: cannot be decoded"):
        decode_frames(str(tmp_path / "noise.avi"), np.array([0]), 1)


def test_a_uri_is_fetched_to_a_file_that_is_gone_afterwards(cine):
    with local_copy(f"file://{cine[0]}") as path:
        assert path != cine[0]
        assert Path(path).read_bytes() == Path(cine[0]).read_bytes()
    assert not Path(path).exists()
    with local_copy(cine[0]) as path:
        assert path == cine[0]
    with pytest.raises(DataError, match="cannot be fetched"), local_copy("file:///nowhere/x.avi"):
        pass


@needs_real
@pytest.mark.real_data
def test_a_real_zero_byte_file_is_refused(reader):
    with pytest.raises(DataError, match="missing or empty"):
        decode_frames(str(REAL / "moviepy__result.webm"), np.array([0]), 1)


@needs_real
@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    ["decord__unordered.mov", "decord__video_0.mov", "torchcodec__h265_video.mp4", "mmaction2__test.avi",
     "torchcodec__h264_10bits.mp4", "mmaction2__part_0.mp4"],
)  # fmt: skip
def test_real_files_decode_to_the_frames_that_are_in_them(name, reader):
    path = REAL / name
    count, grey = 0, {}
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if count in (0, 2, 4):
                grey[count] = np.asarray(Image.fromarray(frame.to_ndarray(format="rgb24")).convert("L"), int)
            count += 1
    wanted = np.array(sorted(grey))
    read = decode_frames(str(path), wanted, count)
    assert read.shape == (len(wanted), *grey[0].shape)
    for place, index in enumerate(wanted):
        assert np.abs(read[place] - grey[index]).mean() < 6  # chroma is enlarged in more than one way
    with pytest.raises(DataError, match=f"the table says {count + 1}"):
        decode_frames(str(path), wanted, count + 1)


@needs_real
@pytest.mark.real_data
def test_a_real_damaged_file_is_refused_with_its_name(reader):
    path = str(REAL / "decord__corrupted.mp4")
    with av.open(path) as container:
        promised = container.streams.video[0].frames  # its header promises frames that cannot be decoded
    with pytest.raises(DataError, match=r"decord__corrupted\.mp4: cannot be decoded"):
        decode_frames(path, np.arange(0, promised, 7), promised)

"""A prepared video gives back what was written, in both readers, or is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from data_prep.dicom.encode import write_video


@pytest.mark.parametrize(("height", "width"), [(64, 64), (75, 101)])
@pytest.mark.parametrize("fps", [Fraction(15), Fraction(1000, 33), Fraction(15, 2)])
def test_both_readers_give_back_what_was_written(tmp_path: Path, height: int, width: int, fps: Fraction) -> None:
    y, x, t = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), np.arange(7), indexing="ij")
    frames = (127.5 + 127.5 * np.sin(6 * x + 4 * y + 0.5 * t)).astype(np.uint8).transpose(2, 0, 1)
    frames[:, :16, :16], frames[:, :16, 16:32] = 0, 255
    path = tmp_path / "video.mp4"
    written = write_video(path, frames, fps)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == fps
        by_av = np.stack([picture.to_ndarray(format="gray") for picture in container.decode(video=0)])
    reader = decord.VideoReader(str(path))
    in_turn = reader.get_batch(range(len(reader))).asnumpy()
    by_decord = in_turn[..., 1]
    assert (written.num_frames, written.height, written.width) == frames.shape == by_decord.shape == by_av.shape
    assert np.array_equal(in_turn[..., 0], in_turn[..., 2])
    for decoded in (by_av, by_decord):
        error = ((decoded.astype(float) - frames) ** 2).mean()
        assert 10 * np.log10(255**2 / error) > 38
        assert (decoded.min(), decoded.max()) == (0, 255)
        assert decoded[:, 2:14, 2:14].max() <= 1 and decoded[:, 2:14, 18:30].min() >= 254
    assert np.abs(by_av.astype(int) - by_decord).max() <= 2
    for index in (6, 0, 3):
        assert np.array_equal(reader[index].asnumpy(), in_turn[index])
    assert written.sums.count == frames.size
    assert written.sums.total == frames.astype(int).sum()
    assert written.sums.squares == (frames.astype(int) ** 2).sum()


def test_a_video_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, np.zeros((9, 32, 32), np.uint8), Fraction(15))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(av.FFmpegError):
        av.open(str(path))


def test_frames_of_two_sizes_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frame 1"):
        write_video(tmp_path / "a.mp4", [np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)], Fraction(15))
    with pytest.raises(ValueError, match="no frame"):
        write_video(tmp_path / "b.mp4", [], Fraction(15))

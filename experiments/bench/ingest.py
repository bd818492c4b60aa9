"""Frames a second through the DICOM door on one core, beside a bare loop of pydicom and the encoder on the same files.

python -m experiments.bench.ingest [--quick]

The bare loop decodes with pydicom, brings the stored values to 8 bits by a shift and encodes: no checks, no window, no
ids, no corners looked at, no sums. The files are phantom cines of 512x512, written again in the ways in which archives
keep them. The last kind has more than 8 bits and no window: there the door decodes twice, the first time for the
percentiles, and that is shown apart.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import click
import numpy as np
import openjpeg
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import iter_pixels
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from data_prep.dicom.convert import Rules, convert
from data_prep.dicom.encode import CODEC, QUALITY
from data_prep.dicom.identity import Key
from data_prep.phantom.generate import write_phantom
from experiments.bench.paired import Pairs, machine, print_json, time_pairs

TWICE = "RLE, 12 bits, no window (decoded twice)"


@click.command()
@click.option("--quick", is_flag=True, help="Fewer and smaller cines, three pairs.")
def main(quick: bool) -> None:
    """The bar is 0.8 of the bare loop, and 1.5 GB a worker."""
    size, num_frames, num_pairs = (256, 32, 3) if quick else (512, 64, 5)
    with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as name:
        folder = Path(name)
        files = make_files(folder, size, num_frames)
        print(f"cines of {num_frames} frames of {size}x{size}, one core, {machine()}")
        timed = {kind: time_kind(folder, paths, num_pairs) for kind, paths in files.items()}
        large = measure_memory(folder, 1000 if quick else 2000)
    figures: dict[str, object] = {"large_file_bytes": large[0], "peak_rss_bytes": large[1], "device": machine()}
    for kind, pairs in timed.items():
        rates = [num_frames * len(files[kind]) / float(np.median(seconds)) for seconds in (pairs.ours, pairs.theirs)]
        low, high = pairs.interval
        print(
            f"  {kind:<42}{rates[0]:7.1f} beside {rates[1]:7.1f} frames/s: {pairs.ratio:.2f} ({low:.2f} to {high:.2f})"
        )
        figures[kind] = {"ours": rates[0], "bare": rates[1], "ratio": pairs.ratio, "low": low, "high": high}
    once = [pairs for kind, pairs in timed.items() if kind != TWICE]
    together = Pairs(sum(pairs.ours for pairs in once), sum(pairs.theirs for pairs in once))  # type: ignore[arg-type]
    low, high = together.interval
    print(f"  all but the last together: {together.ratio:.2f} of the bare loop ({low:.2f} to {high:.2f})")
    print(f"  peak memory of a process on a file of {large[0] / 1e6:,.0f} MB: {large[1] / 1e6:,.0f} MB")
    print_json("ingest", together.ratio, "higher", figures | {"low": low, "high": high})


def time_kind(folder: Path, paths: list[Path], num_pairs: int) -> Pairs:
    """Seconds of the door and of the bare loop over the same files."""
    rules = rules_for(folder)

    def door() -> None:
        for path in paths:
            record = convert(str(path.relative_to(folder)).encode(), rules)
            assert "video" in record, record

    def bare() -> None:
        for path in paths:
            bare_loop(path, folder / "bare.mp4")

    return time_pairs(door, bare, num_pairs)


def bare_loop(source: Path, target: Path) -> None:
    """Decode with pydicom, shift to 8 bits, encode; the luma goes straight into its plane, as it does in the door."""
    header = dcmread(source, stop_before_pixels=True)
    shift = header.BitsStored - 8
    with av.open(str(target), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(CODEC, rate=Fraction(15)))
        stream.height, stream.width, stream.pix_fmt = header.Rows, header.Columns, "yuvj420p"
        stream.codec_context.qmin = stream.codec_context.qmax = QUALITY
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(iter_pixels(source)):
            picture = av.VideoFrame(header.Columns, header.Rows, "yuvj420p")
            luma, *chroma = (np.frombuffer(memoryview(p), np.uint8).reshape(-1, p.line_size) for p in picture.planes)
            luma[: header.Rows, : header.Columns] = frame >> shift
            for plane in chroma:
                plane[:] = 128
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def make_files(folder: Path, size: int, num_frames: int) -> dict[str, list[Path]]:
    """Phantom cines in four ways of keeping them; 12-bit ones are the 8-bit pictures with four bits of noise below."""
    write_phantom(folder / "phantom", 1, size=size, num_frames=num_frames, val_fraction=0, test_fraction=0)
    sources = sorted((folder / "phantom").rglob("*.dcm"))
    kinds: dict[str, Callable[[Dataset], Dataset]] = {
        "uncompressed, 8 bits": lambda dataset: dataset,
        "JPEG baseline, 8 bits": as_jpeg,
        "JPEG 2000 lossless, 12 bits": as_jpeg_2000,
        TWICE: as_rle,
    }
    files: dict[str, list[Path]] = {}
    for number, (kind, change) in enumerate(kinds.items()):
        files[kind] = [folder / f"{number}-{at}.dcm" for at in range(len(sources))]
        for source, path in zip(sources, files[kind], strict=True):
            change(dcmread(source)).save_as(path, enforce_file_format=True)
    return files


def as_jpeg(dataset: Dataset) -> Dataset:
    """JPEG baseline of quality 90."""
    streams = []
    for frame in dataset.pixel_array:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=90)
        streams.append(file.getvalue())
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return with_streams(dataset, streams)


def as_jpeg_2000(dataset: Dataset) -> Dataset:
    """JPEG 2000, with a window."""
    frames = twelve_bits(dataset)
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    return with_streams(dataset, [openjpeg.encode(frame, 12) for frame in frames])


def as_rle(dataset: Dataset) -> Dataset:
    """Run lengths, without a window."""
    frames = twelve_bits(dataset)
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.compress(RLELossless, generate_instance_uid=False)
    return dataset


def twelve_bits(dataset: Dataset) -> np.ndarray:
    """The cine with four more bits, and a header that says so."""
    frames = dataset.pixel_array.astype(np.uint16) * 16
    frames += np.random.default_rng(0).integers(0, 16, frames.shape, dtype=np.uint16)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    return frames


def with_streams(dataset: Dataset, streams: list[bytes]) -> Dataset:
    """The compressed frames as its pixel data."""
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].is_undefined_length = True
    return dataset


def measure_memory(folder: Path, num_frames: int) -> tuple[int, int]:
    """Bytes of one large file, and the peak memory of a fresh process that converts it."""
    dataset = dcmread(folder / "0-0.dcm")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 512, 512, num_frames
    frame = np.random.default_rng(0).integers(0, 4096, (512, 512), dtype=np.uint16).tobytes()
    dataset.PixelData = b""
    dataset["PixelData"].VR = "OW"
    path = folder / "large.dcm"
    dataset.save_as(path, enforce_file_format=True)
    with path.open("r+b") as file:  # the pixels are appended frame by frame, the length of the last element mended
        file.seek(-4, os.SEEK_END)
        file.write((num_frames * len(frame)).to_bytes(4, "little"))
        for _ in range(num_frames):
            file.write(frame)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return path.stat().st_size, pool.submit(peak_of, folder).result()


def peak_of(folder: Path) -> int:
    """Peak resident bytes of this process after it converted the large file."""
    record = convert(b"large.dcm", rules_for(folder))
    assert "video" in record, record
    # Of this program alone: the peak that getrusage tells began in the process that started this one.
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def rules_for(folder: Path) -> Rules:
    """Rules that take everything."""
    (folder / "videos").mkdir(exist_ok=True)
    return Rules(folder, folder / "videos", Key(bytes(32)), None, None)


if __name__ == "__main__":
    main()

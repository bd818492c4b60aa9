"""Which format prepared videos should have: size, likeness and the time to read 16 frames out of the middle.

python -m experiments.bench.storage [--quick]

Phantom cines, and the real one where ../shared/data is there, written in each format at 512 and at 256 pixels. The
frames asked for are random, as in training; formats take turns, so that a machine whose speed drifts slows all alike.
Two readers are timed: decord, and the one that training uses (`deepcoro.data.decode`, which reads motion JPEG packet
by packet and everything else through decord).
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import click
import decord
import numpy as np
import torch
from av.video.reformatter import ColorRange
from torchmetrics.functional.image import structural_similarity_index_measure

from data_prep.dicom.encode import QUALITY
from data_prep.dicom.pixels import fit
from data_prep.phantom.cines import take_cines
from data_prep.phantom.preset import preset_named
from data_prep.phantom.study import draw_patient
from deepcoro.data.decode import decode_frames
from experiments.bench.paired import machine, print_json

REAL = Path(__file__).resolve().parents[3] / "shared/data/xa_dicom/rubo_0002_coronary_RCA_96f_jpegbaseline.dcm"
CLIP_FRAMES = 16
Readers = dict[str, Callable[[str, np.ndarray, int], np.ndarray]]


@dataclass(frozen=True)
class Format:
    """An encoder with its options; all keep the full range of grey."""

    name: str
    codec: str
    pixels: str = "yuvj420p"
    quality: int | None = None  # quantiser of motion JPEG
    options: dict[str, str] = field(default_factory=dict)
    suffix: str = "mp4"


FORMATS = (
    *(Format(f"MJPEG q{quality}", "mjpeg", quality=quality) for quality in (2, 3, 5, 8)),
    *(Format(f"H.264 all-intra, crf {crf}", "libx264", options={"crf": crf, "g": "1"}) for crf in ("18", "23")),
    *(
        Format(f"H.264 key each 8, crf {crf}", "libx264", options={"crf": crf, "g": "8", "bf": "0"})
        for crf in ("18", "23")
    ),
    Format("FFV1 (lossless)", "ffv1", "gray", options={"g": "1"}, suffix="mkv"),
)
DEFAULT = f"MJPEG q{QUALITY}"


@click.command()
@click.option("--quick", is_flag=True, help="One phantom patient, few frames and reads.")
def main(quick: bool) -> None:
    """Prints a table a size; the figure is the fastest other lossy format's time over that of the default."""
    formats = [form for form in FORMATS if form.codec in av.codecs_available]
    for form in (form for form in FORMATS if form not in formats):
        print(f"{form.name}: this FFmpeg has no {form.codec}")
    readers: Readers = {"decord": by_decord, "training's reader": decode_frames}
    figures: dict[str, object] = {"device": machine()}
    ratios = []
    for size in (512, 256):
        cines = make_cines(size, quick)
        with tempfile.TemporaryDirectory(prefix="deepcoro-bench-") as folder:
            rows = measure(formats, cines, Path(folder), readers, num_reads=3 if quick else 12)
        print(f"\n{len(cines)} cines, {len(cines[0])} and more frames of {size}x{size}, one core, {machine()}")
        print(f"  {'format':<26}{'bytes a frame':>14}{'PSNR dB':>9}{'SSIM':>8}", end="")
        print("".join(f"{reader + ', ms':>24}" for reader in readers))
        for name, row in rows.items():
            print(f"  {name:<26}{row['bytes']:>14,.0f}{row['psnr']:>9.1f}{row['ssim']:>8.4f}", end="")
            print("".join(f"{row[reader]:>24.1f}" for reader in readers))
        # JSON knows no infinity.
        figures[str(size)] = {
            name: {key: value if np.isfinite(value) else None for key, value in row.items()}
            for name, row in rows.items()
        }
        others = [row["training's reader"] for name, row in rows.items() if not name.startswith(("MJPEG", "FFV1"))]
        if others:
            ratios.append(min(others) / rows[DEFAULT]["training's reader"])
    print(
        f"\n{CLIP_FRAMES} frames of {DEFAULT}, the default, are read {min(ratios or [1.0]):.1f} times as fast", end=""
    )
    print(" as those of the fastest other lossy codec")
    print_json("storage", min(ratios or [1.0]), "higher", figures)


def make_cines(size: int, quick: bool) -> list[np.ndarray]:
    """Grey cines [T, size, size] uint8: phantoms, and the real one."""
    preset = preset_named("easy")
    patients = [draw_patient(3, index, preset) for index in range(1 if quick else 2)]
    cines = [cine.frames for p in patients for cine in take_cines(p, 3, preset, size, 24 if quick else 64, 15.0)]
    if REAL.is_file():
        from pydicom.pixels import iter_pixels

        cines.append(np.stack([fit(frame, size) for frame in iter_pixels(REAL)][: 32 if quick else None]))
    return cines


def measure(
    formats: list[Format], cines: list[np.ndarray], folder: Path, readers: Readers, num_reads: int
) -> dict[str, dict[str, float]]:
    """A row for each format, each value a mean over the cines (times: a median over all reads)."""
    rows: dict[str, dict[str, list[float]]] = {form.name: defaultdict(list) for form in formats}
    paths: dict[tuple[str, int], Path] = {}
    for number, cine in enumerate(cines):
        for at, form in enumerate(formats):
            path = paths[form.name, number] = folder / f"{number}-{at}.{form.suffix}"
            write(path, cine, form)
            decoded = by_decord(str(path), np.arange(len(cine)), len(cine))
            error = np.mean((decoded.astype(np.float32) - cine) ** 2)
            row = rows[form.name]
            row["bytes"].append(path.stat().st_size / len(cine))
            row["psnr"].append(float(10 * np.log10(255**2 / error)) if error else float("inf"))
            row["ssim"].append(likeness(decoded[::8], cine[::8]))
    rng = np.random.default_rng(0)
    for _ in range(num_reads):
        for number, cine in enumerate(cines):
            indices = np.sort(rng.choice(len(cine), CLIP_FRAMES, replace=False))
            for form in formats:
                for name, read in readers.items():
                    begin = time.perf_counter()
                    frames = read(str(paths[form.name, number]), indices, len(cine))
                    rows[form.name][name].append(1000 * (time.perf_counter() - begin))
                    assert frames.shape == (CLIP_FRAMES, *cine.shape[1:])
    return {
        name: {key: float(np.median(row[key]) if key in readers else np.mean(row[key])) for key in row}
        for name, row in rows.items()
    }


def write(path: Path, cine: np.ndarray, form: Format) -> None:
    """Encode grey frames, full range."""
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(form.codec, rate=Fraction(15), options=form.options))
        stream.height, stream.width = cine.shape[1:]
        stream.pix_fmt = form.pixels
        stream.codec_context.color_range = ColorRange.JPEG
        stream.codec_context.thread_count = 1
        if form.quality is not None:
            stream.codec_context.qmin = stream.codec_context.qmax = form.quality
        for number, frame in enumerate(cine):
            picture = av.VideoFrame(frame.shape[1], frame.shape[0], form.pixels)
            picture.color_range = ColorRange.JPEG
            luma, *chroma = (np.frombuffer(memoryview(p), np.uint8).reshape(-1, p.line_size) for p in picture.planes)
            luma[: frame.shape[0], : frame.shape[1]] = frame
            for plane in chroma:
                plane[:] = 128
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def by_decord(path: str, indices: np.ndarray, num_frames: int) -> np.ndarray:
    """Frames through decord, as uint8 [T, H, W]."""
    reader = decord.VideoReader(path, num_threads=1)
    assert len(reader) == num_frames
    return reader.get_batch(indices).asnumpy()[..., 0]


def likeness(decoded: np.ndarray, cine: np.ndarray) -> float:
    """Structural similarity over frames, at most 1."""
    pair = (torch.from_numpy(np.ascontiguousarray(frames)).float()[:, None] for frames in (decoded, cine))
    return float(structural_similarity_index_measure(*pair, data_range=255.0))


if __name__ == "__main__":
    main()

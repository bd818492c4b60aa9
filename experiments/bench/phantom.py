"""Phantom frames a second on one core, of every preset and size; the easy ones also disc by disc in a plain loop.

python -m experiments.bench.phantom [--quick]
"""

from __future__ import annotations

import time
from functools import partial
from unittest import mock

import click
import numpy as np

from data_prep.phantom import opacity
from data_prep.phantom.cines import take_cines
from data_prep.phantom.preset import PRESETS, preset_named
from data_prep.phantom.study import draw_patient
from experiments.bench.paired import machine, print_json, time_pairs

SIZES = (128, 256)


def plain_thickness(x: np.ndarray, y: np.ndarray, radius: np.ndarray, height: np.ndarray, size: int) -> np.ndarray:
    """What ``render.thickness`` computes, one disc after the other; the clear form it is tested against."""
    maps = np.zeros((len(x), size, size))
    for frame in range(len(x)):
        for px, py, r, h in zip(x[frame], y[frame], radius[frame], height[frame], strict=True):
            column, row = int(np.rint(px)), int(np.rint(py))
            if abs(h) <= 1e-4 or not (0 <= column < size and 0 <= row < size):
                continue
            reach = int(np.ceil(max(r, 0.5) + 0.5))
            rows, columns = np.mgrid[row - reach : row + reach + 1, column - reach : column + reach + 1]
            cover = np.clip(max(r, 0.5) + 0.5 - np.hypot(columns - px, rows - py), 0, 1)
            cover *= h * np.pi * r**2 / cover.sum()
            inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
            maps[frame, rows[inside], columns[inside]] += cover[inside]
    return maps.astype(np.float32)


def frames_per_second(preset_name: str, size: int, num_patients: int) -> float:
    """Frames for every second that the processor worked: waiting for others on the machine does not count."""
    preset = preset_named(preset_name)
    num_frames = preset.realism.num_frames if preset.realism else 24
    list(take_cines(draw_patient(0, 0, preset), 0, preset, size, 4, 15.0))  # warm
    start, made = time.process_time(), 0
    for index in range(num_patients):
        made += sum(
            len(cine.frames) for cine in take_cines(draw_patient(0, index, preset), 0, preset, size, num_frames, 15.0)
        )
    return made / (time.process_time() - start)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer patients and pairs.")
def main(quick: bool) -> None:
    """The bars: 150 frames a second at 128x128, and 40 at 256x256 with the standard preset."""
    speeds = {f"{name}_{size}": frames_per_second(name, size, 1 if quick else 4) for name in PRESETS for size in SIZES}
    print("frames a second of processor time, anatomy and noise included")
    print("  preset    " + "".join(f"{f'{size}x{size}':>10}" for size in SIZES))
    for name in PRESETS:
        print(f"  {name:10}" + "".join(f"{speeds[f'{name}_{size}']:10.0f}" for size in SIZES))
    preset = preset_named("easy")
    num_patients = 1 if quick else 2
    num_frames = num_patients * 2 * 24

    def draw() -> list[np.ndarray]:
        patients = [draw_patient(0, index, preset) for index in range(num_patients)]
        return [cine.frames for p in patients for cine in take_cines(p, 0, preset, 128, 24, 15.0)]

    def draw_plainly() -> list[np.ndarray]:
        with mock.patch.object(opacity, "thickness", plain_thickness):
            return draw()

    differing = max(np.abs(a.astype(int) - b).max() for a, b in zip(draw(), draw_plainly(), strict=True))
    pairs = time_pairs(partial(draw), draw_plainly, num_pairs=3 if quick else 5)
    low, high = pairs.interval
    rate = num_frames / float(np.median(pairs.ours))
    print(f"{num_frames} frames of 128x128, easy preset, {machine()}")
    print(f"  vectorised  {rate:8.1f} frames/s")
    plain_rate = num_frames / float(np.median(pairs.theirs))
    print(f"  plain loop  {plain_rate:8.1f} frames/s   (largest difference: {differing} grey levels)")
    print(f"  times faster {pairs.ratio:7.2f}   (95% interval {low:.2f} to {high:.2f}, {len(pairs.ours)} pairs)")
    figures = {"frames_per_second": rate, "low": low, "high": high, "largest_difference": int(differing)} | speeds
    print_json("phantom", pairs.ratio, "higher", figures | {"device": machine()})


if __name__ == "__main__":
    main()

"""Look at phantoms beside a real cine: `python -m data_prep.phantom.compare --real FILE.dcm --output PNG`.

The first row is the real cine, then one row for each phantom cine of the presets; time runs to the right.
"""

from pathlib import Path

import click
import numpy as np
import pydicom
from PIL import Image

from data_prep.phantom.cines import take_cines
from data_prep.phantom.preset import PRESETS, preset_named
from data_prep.phantom.study import Cine, draw_patient
from deepcoro.errors import UserError
from deepcoro.reports.grammar import render_report

MOMENTS = (0.05, 0.25, 0.45, 0.65, 0.9)  # of a cine's length


@click.command()
@click.option("--real", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="PNG to write.")
@click.option("--preset", "presets", multiple=True, default=tuple(PRESETS), show_default=True, help="May be repeated.")
@click.option("--num-studies", type=int, default=1, show_default=True, help="Of every preset; one cine of each tree.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--size", type=int, default=256, show_default=True, help="Pixels along a side of one picture.")
def compare(real: Path, output: Path, presets: tuple[str, ...], num_studies: int, seed: int, size: int) -> None:
    """Put frames of a real cine and of phantoms into one PNG."""
    rows = [strip(read_grey(real), size)]
    for preset in map(preset_named, presets):
        for index in range(num_studies):
            patient = draw_patient(seed, index, preset)
            shown: dict[str, Cine] = {}
            for cine in take_cines(patient, seed, preset, size, 36, 15.0):
                shown.setdefault(cine.tree, cine)
            rows += [strip(cine.frames, size) for cine in shown.values()]
            click.echo(f"{preset.name} {index}: {render_report(patient.findings, patient.dominance)}")
    Image.fromarray(np.concatenate(rows)).save(output)
    click.echo(f"first row {real.name}, then {len(rows) - 1} phantom cines: {output}")


def read_grey(path: Path) -> np.ndarray:
    """Return the frames of a grey DICOM cine as uint8 [T, H, W], its full range of values spread over 0 to 255."""
    frames = pydicom.dcmread(path).pixel_array
    if frames.ndim != 3:
        raise UserError(
            f"{path} is not a grey cine: its pixels have shape {frames.shape}, expected (frames, rows, columns)"
        )
    low, high = frames.min(), frames.max()
    return ((frames - low) * (255.0 / max(high - low, 1))).astype(np.uint8)


def strip(frames: np.ndarray, size: int) -> np.ndarray:
    """Return moments of a cine [T, H, W] side by side, each `size` pixels square."""
    chosen = [frames[int(moment * (len(frames) - 1))] for moment in MOMENTS]
    return np.concatenate(
        [np.array(Image.fromarray(f).resize((size, size), Image.Resampling.BOX)) for f in chosen], axis=1
    )


if __name__ == "__main__":
    compare()

"""The command: `python -m data_prep phantom --output data/phantom --num-studies 480`."""

import sys
from pathlib import Path

import click

from data_prep.phantom.preset import PRESETS, preset_named, with_views


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to make; absent or empty.")
@click.option("--num-studies", type=int, default=480, show_default=True, help="Patients, with one study each.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same files.")
@click.option("--preset", default="easy", show_default=True, help=f"How hard it is to read: {', '.join(PRESETS)}.")
@click.option("--size", type=int, default=128, show_default=True, help="Width and height, pixels.")
@click.option("--num-frames", type=int, help="Frames a cine; by default 24, in standard and hard 48.")
@click.option(
    "--fps",
    type=float,
    default=15.0,
    show_default=True,
    help="Frames a second. Standard and hard mix rates; their cines last as long as --num-frames at --fps.",
)
@click.option(
    "--views",
    type=(int, int),
    metavar="LOW HIGH",
    help="Cines a study, drawn from LOW to HIGH (2 to 9); standard and hard only, by default 2 8.",
)
@click.option("--masks", is_flag=True, help="Also write vessel masks: masks/<SOPInstanceUID>.npz.")
@click.option("--num-processes", type=int, default=1, show_default=True, help="Does not change the result.")
def phantom(
    output: Path,
    num_studies: int,
    seed: int,
    preset: str,
    size: int,
    num_frames: int | None,
    fps: float,
    views: tuple[int, int] | None,
    masks: bool,
    num_processes: int,
) -> None:
    """Make phantom angiograms with known truth: DICOM files, reports.parquet and videos.parquet."""
    from data_prep.phantom.generate import write_phantom  # numpy, scipy and pydicom only when it runs

    made = write_phantom(
        output,
        num_studies,
        seed,
        preset_named(preset) if views is None else with_views(preset_named(preset), views),
        size,
        num_frames,
        fps,
        num_processes=num_processes,
        masks=masks,
        on_progress=_show_progress,
    )
    splits = ", ".join(f"{count} {split}" for split, count in made.splits.items())
    verb = f"made in {made.seconds:.0f} s" if made.made else "was there already"
    click.echo(
        f"phantom: {made.num_studies} studies ({splits}), {made.num_videos} cines, {made.num_frames} frames; "
        f"{made.diseased_share:.0%} of trees diseased; {verb}: {made.output}"
    )


def _show_progress(done: int, total: int) -> None:
    """Keep one line on a terminal; print nothing to a file but the last one."""
    if sys.stderr.isatty() or done == total:
        click.echo(f"\rphantom: {done}/{total} studies", nl=done == total, err=True)

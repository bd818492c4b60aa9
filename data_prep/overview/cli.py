"""The command: `python -m data_prep overview data/x [--no-pixels] [--sheet sheet.png]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from deepcoro.errors import DataError

LEAKAGE = 1  # exit code; a dataset that cannot be read, wholly or in part, ends with 2


@click.command()
@click.argument("dataset")
@click.option("--no-pixels", is_flag=True, help="Only the tables: no video is opened, and none compared with another.")
@click.option("--sheet", type=click.Path(dir_okay=False, path_type=Path), help="Write middle frames to this PNG.")
@click.option("--sample", type=click.IntRange(min=1), default=64, show_default=True, help="Videos whose grey is read.")
@click.pass_context
def overview(ctx: click.Context, dataset: str, no_pixels: bool, sheet: Path | None, sample: int) -> None:
    """Count what a prepared dataset holds (a folder or a URI), and look for leakage between its splits.

    Ends with 0; with 1 where a patient stands in two splits or a video is equal to one of another split; with 2 where
    a table or a video is missing or damaged.
    """
    if no_pixels and sheet is not None:
        raise click.UsageError("--sheet needs the pixels that --no-pixels leaves out")
    from data_prep.overview import counts, leakage, pixels, tables, text  # numpy, pyarrow and Pillow only when it runs

    prepared = tables.read_prepared(dataset)
    lines = [*text.header(prepared), *text.counts_as_text(counts.count(prepared))]
    click.echo("\n".join(lines))
    unreadable: dict[str, str] = {}
    videos = None
    if not no_pixels:
        grey = pixels.measure_intensities(prepared, sample)
        click.echo("\n".join(text.intensities_as_text(grey, prepared.card)))
        videos = leakage.equal_videos(prepared, _show_progress())
        unreadable = {**grey.unreadable, **videos.unreadable}
        if sheet is not None and prepared.videos.num_rows:
            unreadable.update(pixels.write_sheet(prepared, sheet))
            click.echo(f"\ncontact sheet: {sheet}")
    patients = leakage.patients_in_two_splits(prepared.studies)
    click.echo("\n".join(text.leakage_as_text(patients, leakage.equal_reports(prepared.studies), videos)))
    trouble = None
    if unreadable:
        name, reason = next(iter(unreadable.items()))
        trouble = f"{dataset}: {len(unreadable):,} videos that were opened cannot be read, the first {name}: {reason}"
    if patients or (videos and videos.across):
        if trouble:
            click.echo(f"error: {trouble}", err=True)
        ctx.exit(LEAKAGE)
    if trouble:
        raise DataError(f"{trouble}\nput the files back, or prepare the dataset again")


def _show_progress() -> Callable[[int, int], None]:
    """One line that is rewritten on a terminal; elsewhere nothing."""
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if sys.stderr.isatty() and (done == total or time.monotonic() - last > 0.5):
            last = time.monotonic()
            click.echo(f"\r{done:,} of {total:,} files compared", nl=done == total, err=True)

    return show

"""`python -m data_prep predecessor`: the predecessor's table and videos to a prepared dataset."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from data_prep.closing import count_lines
from data_prep.predecessor.ingest import Summary, ingest

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--input", "table", type=FILE, required=True, help="Its table: CSV (commas or α), Parquet, JSON lines.")
@click.option("--videos", type=FOLDER, required=True, help="Folder that FileName is looked up in: AVI or MP4 files.")
@click.option("--output", type=FOLDER, required=True, help="Folder of the prepared dataset.")
@click.option(
    "--class", "classes", multiple=True, metavar="COLUMN:VALUE=MEANING", help="What a value means; repeatable."
)
@click.option("--key", "key_path", type=FILE, help="Key file [OUTPUT.key].")
@click.option("--val-fraction", type=click.FloatRange(0, 1), default=0.1, show_default=True)
@click.option("--test-fraction", type=click.FloatRange(0, 1), default=0.2, show_default=True)
@click.option("--num-cpus", "num_processes", type=click.IntRange(min=1), help="Worker processes [one a CPU].")
def predecessor(**options: object) -> None:
    """Make a prepared dataset of the predecessor's table; a row that cannot be used is set aside with its reason.

    Words such as "left coronary" or "right dominant" in main_structure_class and dominance_class are known. Numbers are
    not, since their order differs from table to table: say it, as in --class main_structure_class:0=left --class
    dominance_class:1=right --class calcif:1=minimal. Without a PatientID column each study counts as a patient of its
    own. Columns of the segments become findings, reports are de-identified, videos are written anew.
    """
    start = time.monotonic()
    summary = ingest(progress=_progress_line(), **options)  # type: ignore[arg-type]
    click.echo(_report(summary, time.monotonic() - start))


def _progress_line() -> Callable[[int, int], None]:
    """One line that is rewritten on a terminal; elsewhere nothing before the summary."""
    start = last = time.monotonic()

    def show(done: int, found: int) -> None:
        nonlocal last
        if sys.stderr.isatty() and (done == found or time.monotonic() - last > 0.2):
            last = time.monotonic()
            left = (last - start) / done * (found - done)
            click.echo(f"\r{done:,} of {found:,} rows, {left:.0f} s left ", nl=done == found, err=True)

    return show


def _report(summary: Summary, seconds: float) -> str:
    counts = summary.description["counts"]
    lines = [
        f"found        {counts['found']:>8,} rows ({seconds:.1f} s)",
        *count_lines(counts, "rows"),
    ]
    lines += summary.notes
    lines.append(f"key      {summary.key_path} (keep it secret; it ties new studies to these ids)")
    lines.append(f"sources  {summary.sources_path} (which row is which; holds names, keep it with the key)")
    return "\n".join(lines)

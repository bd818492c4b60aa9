"""`python -m data_prep dicom`: the command, its progress line and its closing summary."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from data_prep.closing import count_lines
from data_prep.dicom.ingest import Summary, ingest

TABLE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.command()
@click.option("--input", "input_dir", required=True, help="Folder or URI of DICOM files, any depth.")
@click.option("--output", "output_dir", required=True, help="Folder or URI of the prepared dataset.")
@click.option("--reports", type=TABLE, help="One row a study: study_id (StudyInstanceUID), report, findings, ...")
@click.option("--videos", type=TABLE, help="One row a video: sop_instance_uid, coronary_tree, acquisition, boxes.")
@click.option("--splits", type=TABLE, help="patient_id or study_id, and split: goes before the keyed split.")
@click.option("--modalities", default="XA,RF", show_default=True, help="Codes separated by commas, or any.")
@click.option("--key", "key_path", type=click.Path(dir_okay=False, path_type=Path), help="Key file [OUTPUT.key].")
@click.option("--val-fraction", type=click.FloatRange(0, 1), default=0.1, show_default=True)
@click.option("--test-fraction", type=click.FloatRange(0, 1), default=0.2, show_default=True)
@click.option("--max-side", type=click.IntRange(min=16), help="Shrink larger frames to this longest side, in pixels.")
@click.option("--keep-burned-in", is_flag=True, help="Take videos marked as having text in the picture.")
@click.option("--keep-ids", is_flag=True, help="Keep the ids of patients, studies and videos (research ids only).")
@click.option("--drop-missing", is_flag=True, help="Take out what came of files that are gone from the input.")
@click.option("--resplit", is_flag=True, help="Let studies that are in the dataset move to another split.")
@click.option("--list", "list_files", is_flag=True, help="Print every file and what became of it.")
@click.option("--num-cpus", type=click.IntRange(min=1), help="CPUs to use [all].")
def dicom(modalities: str, list_files: bool, **options: object) -> None:
    """Make a prepared dataset of DICOM cines; what is no usable cine is set aside with its reason.

    Run again, it reads only files that are new or have changed; killed, it goes on where it was. The exit code is 0 if
    every file is accounted for, and 2 if something given is wrong.

    Patients, studies and videos get keyed ids. Keep the key file: the same key gives new studies of a known patient the
    same id and split. Report texts are de-identified by the tables' own values and by patterns; a name that stands in
    no column and behind no title is not found.
    """
    codes = [code.strip().upper() for code in modalities.split(",") if code.strip()]
    if not codes:
        raise click.BadParameter("name at least one, or any", param_hint="--modalities")
    taken = None if codes == ["ANY"] else tuple(codes)
    start = time.monotonic()
    summary = ingest(modalities=taken, progress=_progress_line(), **options)  # type: ignore[arg-type]
    if list_files:
        click.echo(_table(summary.sources_path))
    click.echo(_report(summary, time.monotonic() - start))


def _table(sources: Path) -> str:
    """Every file with its video or its reason."""
    with sources.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [(row["path"], row["reason"] or f"video {row['video_id']}") for row in csv.DictReader(file)]
    width = max(len(path) for path, _ in rows)
    return "\n".join(f"{path:<{width}}  {outcome}" for path, outcome in rows)


def _progress_line() -> Callable[[int, int], None]:
    """How far it is and when it will be done: one line that is rewritten on a terminal, now and then one elsewhere."""
    is_terminal = sys.stderr.isatty()
    every = 0.2 if is_terminal else 30.0
    began = last = time.monotonic()
    known: int | None = None  # files on record when it began: they cost nothing

    def show(done: int, found: int) -> None:
        nonlocal last, known
        known = done if known is None else known
        now = time.monotonic()
        if now - last < every and not (is_terminal and done == found):
            return
        last = now
        line = f"{done:,} of {found:,} files"
        if done > known:
            rate = (done - known) / (now - began)
            line += f", {rate:,.1f} a second, {_duration((found - done) / rate)} left"
        click.echo(f"\r\033[K{line}" if is_terminal else line, nl=not is_terminal or done == found, err=True)

    return show


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _report(summary: Summary, seconds: float) -> str:
    counts = summary.description["counts"]
    lines = [
        f"found        {counts['found']:>8,} files, {summary.num_converted:,} of them read now ({seconds:.1f} s)",
        *count_lines(counts, "files"),
    ]
    for table, number in summary.unmatched.items():
        if number:
            lines.append(f"{number:,} rows of --{table} belong to nothing that was ingested")
    if summary.num_gone:
        lines.append(
            f"{summary.num_gone:,} files of earlier runs are gone from the input; what came of them stays "
            "(--drop-missing takes it out)"
        )
    if summary.unnamed_studies:
        lines.append(f"{summary.unnamed_studies:,} studies name no patient: each counts as a patient of its own")
    lines += summary.notes
    lines.append(f"key      {summary.key_path} (keep it secret; it ties new studies to these ids)")
    lines.append(f"sources  {summary.sources_path} (which file is which; holds paths, keep it with the key)")
    journal = summary.sources_path.with_suffix("").with_suffix(".journal")
    lines.append(f"journal  {journal} (what became of each file; keep it with the key)")
    return "\n".join(lines)

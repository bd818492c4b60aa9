"""`python -m data_prep dicom`: the command, its progress line and its closing summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from data_prep.dicom.ingest import Summary, ingest

FOLDER = click.Path(file_okay=False, path_type=Path)
TABLE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.command()
@click.option("--input", "input_dir", type=FOLDER, required=True, help="Folder of DICOM files, any depth.")
@click.option("--output", "output_dir", type=FOLDER, required=True, help="Folder of the prepared dataset.")
@click.option("--reports", type=TABLE, help="One row a study: study_id (StudyInstanceUID), report, findings, ...")
@click.option("--videos", type=TABLE, help="One row a video: sop_instance_uid, coronary_tree, acquisition, boxes.")
@click.option("--splits", type=TABLE, help="patient_id or study_id, and split: goes before the keyed split.")
@click.option("--modalities", default="XA,RF", show_default=True, help="Codes separated by commas, or any.")
@click.option("--key", "key_path", type=click.Path(dir_okay=False, path_type=Path), help="Key file [OUTPUT.key].")
@click.option("--val-fraction", type=click.FloatRange(0, 1), default=0.1, show_default=True)
@click.option("--test-fraction", type=click.FloatRange(0, 1), default=0.2, show_default=True)
@click.option("--max-side", type=click.IntRange(min=16), help="Shrink larger frames to this longest side, in pixels.")
@click.option("--keep-burned-in", is_flag=True, help="Take videos marked as having text in the picture.")
@click.option("--num-cpus", type=click.IntRange(min=1), help="CPUs to use [all].")
def dicom(modalities: str, **options: object) -> None:
    """Make a prepared dataset of DICOM cines; what is no usable cine is set aside with its reason.

    Patients, studies and videos get keyed ids. Keep the key file: the same key gives new studies of a known patient the
    same id and split. Reports are taken as they stand: free text must hold no names before it comes here.
    """
    codes = [code.strip().upper() for code in modalities.split(",") if code.strip()]
    if not codes:
        raise click.BadParameter("name at least one, or any", param_hint="--modalities")
    taken = None if codes == ["ANY"] else tuple(codes)
    start = time.monotonic()
    summary = ingest(modalities=taken, progress=_progress_line(), **options)  # type: ignore[arg-type]
    click.echo(_report(summary, time.monotonic() - start))


def _progress_line() -> Callable[[int, int], None]:
    """One line that is rewritten on a terminal; elsewhere nothing before the summary."""
    last = 0.0

    def show(done: int, found: int) -> None:
        nonlocal last
        if sys.stderr.isatty() and (done == found or time.monotonic() - last > 0.2):
            last = time.monotonic()
            click.echo(f"\r{done:,} of {found:,} files", nl=done == found, err=True)

    return show


def _report(summary: Summary, seconds: float) -> str:
    counts = summary.description["counts"]
    lines = [
        f"found        {counts['found']:>8,} files ({seconds:.1f} s)",
        f"ingested     {counts['ingested']:>8,} videos",
    ]
    lines.append(f"quarantined  {counts['quarantined']:>8,} files")
    lines += [f"  {reason:<28}{number:>8,}" for reason, number in counts["reasons"].items()]
    lines.append(f"{counts['patients']:,} patients, {counts['studies']:,} studies, {counts['reports']:,} with a report")
    for split, parts in counts["splits"].items():
        lines.append(f"  {split:<6}" + ", ".join(f"{number:,} {name}" for name, number in parts.items()))
    lines.append("trees  " + (", ".join(f"{tree} {number:,}" for tree, number in counts["trees"].items()) or "none"))
    if summary.unmatched_reports:
        lines.append(f"{summary.unmatched_reports:,} reports belong to no study that was ingested")
    if summary.unnamed_studies:
        lines.append(f"{summary.unnamed_studies:,} studies name no patient: each counts as a patient of its own")
    lines += summary.notes
    lines.append(f"key      {summary.key_path} (keep it secret; it ties new studies to these ids)")
    lines.append(f"sources  {summary.sources_path} (which file is which; holds paths, keep it with the key)")
    return "\n".join(lines)

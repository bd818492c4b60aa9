"""The command: `python -m data_prep annotations --coco lesions.json --dataset data/x`."""

from __future__ import annotations

import csv
from pathlib import Path

import click

from deepcoro.errors import DataError

SOME_LEFT_OUT = 1  # exit code
FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.command("annotations")
@click.option("--coco", type=FILE, required=True, help="COCO JSON: images, annotations, categories.")
@click.option("--dataset", required=True, help="Folder of the prepared dataset, which is changed.")
@click.option("--sources", type=FILE, help="DATASET.sources.csv, where the images name the files of the archive.")
@click.option("--category", "categories", multiple=True, help="NAME=SEGMENT, or NAME=unnamed, or NAME=skip. Repeat.")
@click.option("--kind", type=click.Choice(["auto", "boxes", "masks"]), default="auto", show_default=True)
@click.option("--first-frame", type=int, default=0, show_default=True, help="Number of a video's first frame in COCO.")
@click.option("--left-out", type=click.Path(dir_okay=False, path_type=Path), help="List [COCO file.left_out.csv].")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and leave the dataset as it is.")
@click.pass_context
def annotations_command(ctx: click.Context, left_out: Path | None, coco: Path, dataset: str, **options: object) -> None:
    """Bring lesion boxes and vessel masks from a COCO file into a prepared dataset.

    Every annotation is used, or listed with its reason. Ends with 0 where all were used, 1 where some were left out,
    2 where nothing was done. The dataset gets a new fingerprint: a run that was begun before does not go on with it.
    What was added stays when `dicom` runs again, on videos whose files are the same.
    """
    from data_prep.annotations.annotate import annotate  # numpy, pyarrow and Pillow only when it runs
    from data_prep.annotations.reasons import REASONS

    summary = annotate(coco, dataset, **options)  # type: ignore[arg-type]
    listing = left_out or coco.with_name(f"{coco.name}.left_out.csv")
    _write_listing(listing, summary.left_out)
    lines = [
        f"annotations  {summary.num_annotations:>8,} on {summary.num_images:,} images",
        f"boxes        {summary.num_boxes:>8,}",
        f"masks        {summary.num_masks:>8,}",
        f"skipped      {summary.num_skipped:>8,}",
        f"left out     {len(summary.left_out):>8,}",
        *(f"  {reason:<20}{number:>8,}  {REASONS[reason]}" for reason, number in summary.reasons.items()),
        f"on {summary.num_frames:,} frames of {summary.num_videos:,} videos",
    ]
    if summary.num_overlapping:
        lines.append(f"{summary.num_overlapping:,} pixels lie in two masks and belong to the later one")
    if summary.left_out:
        lines.append(f"listed in {listing}")
    if "unknown_video" in summary.reasons and options["sources"] is None:
        lines.append("images that name files of the archive need --sources DATASET.sources.csv")
    if summary.fingerprint is None:
        lines.append("nothing was written (--dry-run)")
    else:
        before, after = (text[:12] for text in summary.fingerprint)
        lines.append(f"fingerprint {before} -> {after}" if before != after else f"fingerprint {after}, as it was")
    click.echo("\n".join(lines))
    if summary.left_out:
        ctx.exit(SOME_LEFT_OUT)


def _write_listing(path: Path, rows: list[tuple[object, object, str]]) -> None:
    """Ids and reasons only: names of files may name patients."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("annotation_id", "image_id", "reason"))
            writer.writerows(rows)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); name another place with --left-out") from error

"""The command: `python -m data_prep classes --table classes.csv --dataset data/x`."""

from __future__ import annotations

from pathlib import Path

import click

SOME_LEFT_OUT = 1  # exit code
FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
_NAMED = 10  # rows that are named with their reason


@click.command("classes")
@click.option("--table", type=FILE, required=True, help="CSV: video_id, FileName or path; and columns of classes.")
@click.option("--dataset", required=True, help="Folder of the prepared dataset, which is changed.")
@click.option("--sources", type=FILE, help="DATASET.sources.csv, where the rows name files of the archive.")
@click.option("--column", "columns", multiple=True, help="Take this one. Repeat. [coronary_tree, acquisition, *_class]")
@click.option("--encoding", default="utf-8-sig", show_default=True, help="Of the table, such as latin-1.")
@click.pass_context
def classes_command(ctx: click.Context, table: Path, dataset: str, **options: object) -> None:
    """Bring what a table knows of cines into a prepared dataset: coronary_tree, acquisition, and classes.

    Classes go into the attributes of a video under the name of their column: take no column that names people. Ends
    with 0 where every row was used, 1 where some were left out, 2 where nothing was done. The dataset gets a new
    fingerprint: a run that was begun before does not go on with it. What was added stays
    when `dicom` runs again.
    """
    from data_prep.annotations.reasons import REASONS
    from data_prep.classes.join import join_classes  # pyarrow only when it runs

    summary = join_classes(table, dataset, **options)  # type: ignore[arg-type]
    lines = [f"{summary.num_rows:,} rows, about {summary.num_videos:,} videos"]
    for name, values in summary.values.items():
        lines.append(
            f"  {name}: " + (", ".join(f"{v} {n:,}" for v, n in values.most_common(20)) or "all cells are empty")
        )
    if summary.ignored:
        lines.append(f"nobody asked for the columns {', '.join(summary.ignored)}")
    if summary.left_out:
        lines.append(f"{len(summary.left_out):,} rows were left out:")
        lines += [f"  row {number}: {reason}, {REASONS[reason]}" for number, reason in summary.left_out[:_NAMED]]
        if len(summary.left_out) > _NAMED:
            lines.append(f"  and {len(summary.left_out) - _NAMED:,} more")
    before, after = (text[:12] for text in summary.fingerprint)
    lines.append(f"fingerprint {before} -> {after}" if before != after else f"fingerprint {after}, as it was")
    click.echo("\n".join(lines))
    if summary.left_out:
        ctx.exit(SOME_LEFT_OUT)

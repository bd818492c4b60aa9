"""`python -m data_prep reports`: what the platform understands of a group's own reports, and what it does not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from data_prep.reports.survey import KINDS, Survey, survey
from deepcoro.reports.vocabulary import SEGMENTS

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--input", "path", type=FILE, required=True, help="Table of reports: CSV, Parquet or JSON lines.")
@click.option("--column", default="report", show_default=True, help="The column that holds the texts.")
@click.option(
    "--synonyms", "synonyms_path", type=FILE, help="Your own phrases; deepcoro/reports/synonyms.yaml shows how."
)
@click.option("--output", type=FILE, help="Parquet to write: the table with findings, for dicom --reports.")
@click.option("--top", type=click.IntRange(min=0), default=40, show_default=True, help="How many phrases to list.")
def reports(path: Path, column: str, synonyms_path: Path | None, output: Path | None, top: int) -> None:
    """Read the reports of a table and say how much of them was understood.

    Texts are de-identified first. What was not understood is listed with its count, the most frequent first: put it
    into a file of synonyms and run again. Nothing is guessed: a sentence with an unknown word gives no finding. With
    --output, findings are written for the reports that were understood to the last word; a segment of which such a
    report says nothing counts as normal there.
    """
    counts = survey(path, column, synonyms_path, output)
    click.echo("\n".join(_lines(counts, top)))
    if output is not None:
        click.echo(f"written: {output}, findings in {counts.num_complete:,} of {counts.num_reports:,} rows")


def _lines(counts: Survey, top: int) -> list[str]:
    with_text = counts.num_reports - counts.num_empty
    about = counts.num_sentences - counts.num_skipped
    lines = [
        f"reports    {with_text:>8,}, {counts.num_complete:,} understood to the last word; "
        f"{counts.num_empty:,} rows are empty",
        f"sentences  {about:>8,}, {counts.num_read:,} understood ({counts.share:.1%}); "
        f"{counts.num_skipped:,} more are of the procedure",
        f"findings   {sum(counts.findings.values()):>8,}",
    ]
    if counts.findings:
        lines += ["", f"{'segment':<16}" + "".join(f"{kind:>10}" for kind in KINDS)]
        for segment in SEGMENTS:
            numbers = [counts.findings[segment, kind] for kind in KINDS]
            if any(numbers):
                lines.append(f"{segment:<16}" + "".join(f"{number or '.':>10}" for number in numbers))
        lines.append("(by percent of the stenosis, or of the in-stent restenosis; other: no percent is said)")
    lines += _section("dominance", counts.dominance.items())
    lines += _section(
        "said to be", ((f"{place} {what}", number) for (place, what), number in counts.said.most_common())
    )
    lines += _section(
        "understood, and no finding",
        ((f"{place}: no {missing} is named", number) for (place, missing), number in counts.incomplete.most_common()),
    )
    if counts.num_assumed:
        lines += ["", f"{counts.num_assumed:,} statements without a segment were placed as your synonyms say (assume)"]
    unread = counts.unread.most_common(top)
    lines += _section("not understood", ((f"{phrase}   ({why})", number) for (phrase, why), number in unread))
    if len(counts.unread) > len(unread):
        lines.append(f"{'':>10}  and {len(counts.unread) - len(unread):,} other phrases (--top)")
    lines += _section("replaced in the texts", sorted(counts.replaced.items()))
    return lines + (["", *counts.notes] if counts.notes else [])


def _section(title: str, rows: Iterable[tuple[str, int]]) -> list[str]:
    lines = [f"{number:>10,}  {words}" for words, number in rows]
    return ["", title, *lines] if lines else []

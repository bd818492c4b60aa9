"""Read every report of a table, and count what was understood and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.deidentify import deidentify
from data_prep.dicom.tables import STUDY_COLUMNS, cell_value, known_values
from data_prep.rows import Rows, read_rows
from deepcoro.data.schema import STUDIES_SCHEMA
from deepcoro.errors import DataError
from deepcoro.reports.grammar import Finding
from deepcoro.reports.reading import Reading, read_report
from deepcoro.reports.synonyms import Synonyms, load_synonyms
from deepcoro.reports.vocabulary import grade

KINDS = ("none", "mild", "moderate", "severe", "critical", "total", "cto", "other")


@dataclass
class Survey:
    """Counts over the reports of one table.

    Args:
        num_reports, num_empty, num_complete: rows, those without a text, and those read to the last word.
        num_sentences, num_read, num_skipped: sentences, those understood, and those of the procedure.
        num_assumed: statements whose segment the user's synonyms supplied.
        findings: (segment, one of ``KINDS``) -> findings.
        dominance, said: how often what was said.
        incomplete: (place, what it lacks) -> statements.
        unread: (phrase, why) -> how often.
        replaced: what de-identification took out, by kind.
        notes: sentences to print.
    """

    num_reports: int = 0
    num_empty: int = 0
    num_complete: int = 0
    num_sentences: int = 0
    num_read: int = 0
    num_skipped: int = 0
    num_assumed: int = 0
    findings: Counter[tuple[str, str]] = field(default_factory=Counter)
    dominance: Counter[str] = field(default_factory=Counter)
    said: Counter[tuple[str, str]] = field(default_factory=Counter)
    incomplete: Counter[tuple[str, str]] = field(default_factory=Counter)
    unread: Counter[tuple[str, str]] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Part of the sentences about the coronaries that was understood, 0 to 1; 1 where there are none."""
        about = self.num_sentences - self.num_skipped
        return self.num_read / about if about else 1.0

    def add(self, reading: Reading) -> None:
        """Count one report."""
        self.num_complete += reading.complete
        self.num_sentences += reading.num_sentences
        self.num_read += reading.num_read
        self.num_skipped += reading.num_skipped
        self.num_assumed += reading.num_assumed
        self.findings.update((finding.segment, kind_of(finding)) for finding in reading.findings)
        self.dominance.update([reading.dominance] if reading.dominance else [])
        self.said.update(reading.said)
        self.incomplete.update((item.place, item.missing) for item in reading.incomplete)
        self.unread.update((item.phrase, item.why) for item in reading.unread)


def kind_of(finding: Finding) -> str:
    """The column of ``KINDS`` a finding is counted in."""
    if finding.occlusion != "none":
        return finding.occlusion
    percent = finding.in_stent_restenosis if finding.stenosis is None else finding.stenosis
    return "other" if percent is None else grade(percent)


def survey(path: Path, column: str = "report", synonyms_path: Path | None = None, output: Path | None = None) -> Survey:
    """Read the reports in ``column`` of the table at ``path``, de-identified first.

    Args:
        path: CSV, Parquet or JSON lines, one report a row; other columns that identify the patient
            (``data_prep.dicom.tables.KNOWN_COLUMNS``) are looked for in its text.
        column: the name of the column.
        synonyms_path: the group's own phrases, see ``deepcoro/reports/synonyms.yaml``.
        output: a Parquet file for the table with findings: of the reports that were read to the last word.

    Raises:
        DataError: the table or the synonyms cannot be read, or there is no report.
    """
    synonyms = load_synonyms(synonyms_path)
    rows = read_rows(path).need(column, *(["study_id"] if output is not None else []))
    if output is not None and output.suffix.lower() != ".parquet":
        raise DataError(f"{output}: the table with findings is Parquet; let its name end in .parquet")
    counts = Survey(notes=list(rows.notes))
    made: list[dict[str, Any]] = []
    for where, row, text, reading in _read(rows, column, synonyms, counts):
        if output is not None:
            made.append(_with_findings(where, row, text, reading))
    if counts.num_reports == counts.num_empty:
        raise DataError(f"{path}: column {column!r} holds no report in {counts.num_reports} rows")
    if output is not None:
        _write(made, output)
    return counts


def _read(
    rows: Rows, column: str, synonyms: Synonyms, counts: Survey
) -> Iterator[tuple[str, dict[str, Any], str | None, Reading | None]]:
    for where, row in rows:
        counts.num_reports += 1
        text = row.get(column)
        if text is None or not str(text).strip():
            counts.num_empty += 1
            yield where, row, None, None
            continue
        if not isinstance(text, str):
            raise DataError(f"{where}: {column!r} must be text, got {type(text).__name__}")
        cleaned, replaced = deidentify(text, known_values(row))
        reading = read_report(cleaned, synonyms)
        counts.replaced += replaced
        counts.add(reading)
        yield where, row, cleaned, reading


def _with_findings(where: str, row: dict[str, Any], text: str | None, reading: Reading | None) -> dict[str, Any]:
    """A row as the DICOM door takes it; what the table says already goes before what was read."""
    made = {name: cell_value(row, name, STUDIES_SCHEMA, where) for name in STUDY_COLUMNS}
    made |= {"study_id": str(row["study_id"]), "report": text}
    if reading is not None and reading.complete:
        if made["findings"] is None:
            made["findings"] = [finding.to_dict() for finding in reading.findings]
        made["dominance"] = made["dominance"] or reading.dominance
    return made


def _write(made: list[dict[str, Any]], output: Path) -> None:
    schema = pa.schema([STUDIES_SCHEMA.field(name).with_nullable(True) for name in ("study_id", *STUDY_COLUMNS)])
    try:
        pq.write_table(pa.Table.from_pylist(made, schema=schema), output)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{output}: the table with findings cannot be written: {error}") from error

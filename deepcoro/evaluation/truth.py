"""What is known of the units that are measured: what a metric holds the model's answers against."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import Units
from deepcoro.reports.grammar import Finding, parse_report
from deepcoro.reports.vocabulary import segments_of_tree


@dataclass(frozen=True)
class Truth:
    """What is known of units, one entry each.

    Args:
        texts: target texts, ``None`` where there is none.
        findings: of the segments in view.
        trees: the tree in view, ``None`` where unknown and for whole studies.
        dominances: of the patient, ``None`` where unknown.
        statements: what the text says, as a set: the tree in view if it is known, each finding in view, and, of a
            report that has no findings beside it, each phrase that the grammar cannot read.
        studies, patients: ids.
    """

    texts: list[str | None]
    findings: list[list[Finding]]
    trees: list[str | None]
    dominances: list[str | None]
    statements: list[frozenset[Hashable]]
    studies: np.ndarray
    patients: np.ndarray

    @classmethod
    def of(cls, units: Units, indices: np.ndarray, config: Config) -> Truth:
        """Collect it for ``indices`` of ``units``."""
        reader = UnitReader(config, units, None, training=False)
        texts, findings, trees, dominances, statements = [], [], [], [], []
        for unit in indices.tolist():
            study = units.study_row(unit)
            tree = None if units.whole_study else units.video_rows(unit)[0]["coronary_tree"]
            text = reader.text(unit)
            unread: tuple[str, ...] = ()
            if study["findings"] is not None:
                stated = [Finding.from_dict(row) for row in study["findings"]]
            else:
                parsed = parse_report(text or "")
                stated, unread = list(parsed.findings), parsed.unread
            seen = segments_of_tree(tree, study["dominance"]) if tree else None
            in_view = [f for f in stated if seen is None or f.segment in seen]
            texts.append(text)
            findings.append(in_view)
            trees.append(tree)
            dominances.append(study["dominance"])
            statements.append(frozenset([*([tree] if tree else []), *in_view, *unread]))
        studies, patients = units.column("study_id", indices), units.column("patient_id", indices)
        return cls(texts, findings, trees, dominances, statements, studies, patients)

    def take(self, rows: np.ndarray) -> Truth:
        """Of some rows only."""

        def some(entries: list[Any]) -> list[Any]:
            return [entries[row] for row in rows]

        return Truth(
            some(self.texts),
            some(self.findings),
            some(self.trees),
            some(self.dominances),
            some(self.statements),
            self.studies[rows],
            self.patients[rows],
        )

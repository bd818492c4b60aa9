"""What is known of the units that are measured: what a metric holds the model's answers against."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import Units
from deepcoro.metrics.findings import segments_in_view
from deepcoro.metrics.lesions import without_ifr
from deepcoro.reports.grammar import Finding
from deepcoro.reports.texts import ReadText, read_text
from deepcoro.reports.vocabulary import TREES, segments_of_tree


@dataclass(frozen=True)
class Truth:
    """What is known of units, one entry each.

    Args:
        texts: target texts, ``None`` where there is none.
        findings: of the segments in view.
        trees: the tree in view, ``None`` where unknown and for whole studies.
        dominances: of the patient, ``None`` where unknown.
        statements: what the text says, as a set: the tree in view if it is known, each finding in view as far as a
            picture can show it (no iFR), and, of a report that has no findings beside it, each phrase that cannot be
            read.
        studies, patients: ids.
        told_trees: those of which the findings tell, so that silence of a segment there means that it is normal: the
            tree in view, or both, where there is a table of findings; else those that the text speaks of. By default
            as of a table.
        known: bool, whether ``findings`` are known: there is a table of them, or the text was read to its last word and
            speaks of the tree in view. Where not, a metric of findings leaves the row out. By default all are.
    """

    texts: list[str | None]
    findings: list[list[Finding]]
    trees: list[str | None]
    dominances: list[str | None]
    statements: list[frozenset[Hashable]]
    studies: np.ndarray
    patients: np.ndarray
    told_trees: list[tuple[str, ...]] = field(default_factory=list)
    known: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def __post_init__(self) -> None:
        if len(self.told_trees) != len(self.texts):
            object.__setattr__(self, "told_trees", [_of_table(tree) for tree in self.trees])
        if len(self.known) != len(self.texts):
            object.__setattr__(self, "known", np.ones(len(self.texts), dtype=bool))

    @classmethod
    def of(cls, units: Units, indices: np.ndarray, config: Config) -> Truth:
        """Collect it for ``indices`` of ``units``."""
        reader = UnitReader(config, units, None, training=False)
        texts, findings, trees, dominances, statements = [], [], [], [], []
        told_trees, known = [], []
        for unit in indices.tolist():
            study = units.study_row(unit)
            tree = None if units.whole_study else units.video_rows(unit)[0]["coronary_tree"]
            text = reader.text(unit)
            unread: tuple[str, ...] = ()
            if study["findings"] is not None:
                stated = [Finding.from_dict(row) for row in study["findings"]]
                told_trees.append(_of_table(tree))
                known.append(True)
            else:
                read = read_text(text) if text is not None else ReadText()
                stated, unread = list(read.findings), read.unread
                told_trees.append(read.trees)
                known.append(not unread and (tree in read.trees if tree else bool(read.trees)))
            seen = segments_of_tree(tree, study["dominance"]) if tree else None
            in_view = [f for f in stated if seen is None or f.segment in seen]
            shown = [f for f in map(without_ifr, in_view) if f is not None]
            texts.append(text)
            findings.append(in_view)
            trees.append(tree)
            dominances.append(study["dominance"])
            statements.append(frozenset([*([tree] if tree else []), *shown, *unread]))
        studies, patients = units.column("study_id", indices), units.column("patient_id", indices)
        return cls(
            texts, findings, trees, dominances, statements, studies, patients, told_trees, np.array(known, dtype=bool)
        )

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
            some(self.told_trees),
            self.known[rows],
        )


def known_in_view(truth: Truth) -> NDArray[np.bool_]:
    """Segments that a row can show and of which it is known whether they are ill: bool [B, S]."""
    return segments_in_view(truth.trees, truth.dominances) & truth.known[:, None]


def _of_table(tree: str | None) -> tuple[str, ...]:
    return TREES if tree is None else (tree,)

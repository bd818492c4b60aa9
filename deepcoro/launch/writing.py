"""What the doors of ``deepcoro generate`` have in common: which model writes, how, and into which file."""

from __future__ import annotations

import re
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from deepcoro.errors import ConfigError, DataError
from deepcoro.inference.load import load
from deepcoro.inference.report_table import refuse_existing
from deepcoro.inference.reports import ReportWriter
from deepcoro.training.checkpoint import Weights

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # a Path makes one slash of two


@dataclass(frozen=True)
class How:
    """How reports are written, and what becomes of them.

    Args:
        checkpoint: ``newest``, ``best`` or a step.
        weights: ``trained``, or ``ema``, their average; ``None``: the average where there is one.
        num_beams: of the search, 1 for greedily; ``None``: as the run's captioning section says.
        structured: whether they are kept to the canonical wording; ``None``: as the run says.
        probabilities: whether to tell them; ``None``: where JSON is written.
        form: ``text`` or ``json``.
        output: a file, or for a dataset a folder, that is not there yet; ``None``: they are printed.
        picture: a PNG, which may be there.
    """

    checkpoint: str | int = "newest"
    weights: Weights | None = None
    num_beams: int | None = None
    structured: bool | None = None
    probabilities: bool | None = None
    form: Literal["text", "json"] = "text"
    output: Path | None = None
    picture: Path | None = None

    def check(self, makes_folders: bool = False) -> None:
        """Refuse now what could not be written in the end.

        Args:
            makes_folders: whether ``output`` is a folder that is made, with those above it.

        Raises:
            ConfigError: a URI, or one place for both.
            DataError: there is something at ``output``, or a folder is not there.
        """
        for option, path in (("--output", self.output), ("--picture", self.picture)):
            if path is None:
                continue
            if _URI.match(str(path)):
                raise ConfigError(f"{option} {path}: is a URI, and is written to a disk only; give a path, and copy it")
            made = makes_folders and option == "--output"
            if not made and not path.parent.is_dir():
                raise DataError(f"{path}: there is no folder {path.parent}; make it, or give another one")
        if self.output is not None:
            refuse_existing(self.output)
            if self.picture is not None and self.picture.resolve() == self.output.resolve():
                raise ConfigError(f"--output and --picture are both {self.output}; give each its own")


def open_writer(run: str | Path, how: How, boxes: bool) -> ReportWriter:
    """The model of ``run`` on the best device of this machine, ready to write.

    Args:
        boxes: whether to ask for the boxes of findings, where the run was trained to tell them.

    Raises:
        CheckpointError: there is no such checkpoint, or it has no average.
        ConfigError: the run was trained without captioning; or it cannot write so (``ReportWriter``).
    """
    trained = load(run, how.checkpoint, how.weights).writing_as(how.num_beams, how.structured)
    try:
        writer = ReportWriter(trained, how.form == "json" if how.probabilities is None else how.probabilities, boxes)
    except ConfigError as error:
        if how.form != "json" or how.probabilities is not None:
            raise
        writer = ReportWriter(trained, False, boxes)  # where that was not the reason, it is refused again
        print(f"There are no probabilities of findings: {error}", file=sys.stderr)
    trained.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return writer


def save_text(text: str, path: Path) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        DataError: there is something at ``path``, or it cannot be written.
    """
    refuse_existing(path)
    scratch = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        scratch.unlink(missing_ok=True)

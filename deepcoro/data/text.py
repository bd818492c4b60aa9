"""What a text belongs to, and how it becomes token ids: findings of what is in view -> report -> ids.

Only the light ``tokenizers`` library is needed here: data workers start a hundred times and must not import a model
library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from deepcoro.errors import ConfigError, DataError
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.reports.vocabulary import tree_of

_ANY_LENGTH = 2**31  # tokens


class Encoded(NamedTuple):
    """Texts as ids: see ``ReportTokenizer.encode_after``."""

    ids: np.ndarray  # [B, L] int32
    length: np.ndarray  # [B] int32, tokens of the row including start and end; the rest is padding
    prefix_length: np.ndarray  # [B] int32, tokens at the front that are given: start and prefix
    cut: np.ndarray  # [B] bool, whether the text was longer than there is room for


def target_text(study: dict[str, Any], tree: str | None, whole_study: bool) -> str | None:
    """The text a unit is trained on, or ``None``.

    A clip's target is the findings of the tree in view, so that a right coronary cine never learns to recite the left;
    a study's target is its whole report. Without findings, or without a known tree, it
    is the report as it stands, or ``None``: findings of both trees are never written out for one cine.
    """
    findings = study.get("findings")
    report = study.get("report") or None
    if findings is None or (not whole_study and tree is None) or (whole_study and report is not None):
        return report
    read = [Finding.from_dict(row) for row in findings]
    return render_report(read, study.get("dominance"), None if whole_study else tree)


def severity(study: dict[str, Any], tree: str | None, whole_study: bool) -> int:
    """The highest percent of stenosis, 0 to 100, among the findings that the text of ``target_text`` is about.

    These are the findings in the tree in view; all of the study's for a whole study, and for a clip of no known tree,
    whose text is the whole report. An occlusion of either kind is 100, also where no percent is noted. Findings that
    are not known, none, or none with a stenosis: 0; what has narrowed inside a stent is no stenosis here, as it is none
    for ``Finding.significant``.

    Raises:
        DataError: a percent outside 0 to 100.
    """
    highest = 0
    for row in study.get("findings") or []:
        if not whole_study and tree is not None and tree_of(row["segment"], study.get("dominance")) != tree:
            continue
        highest = max(highest, _percent(study, row) or 0)
    return highest


def percent_of_segment(study: dict[str, Any]) -> dict[str, int]:
    """Percent of stenosis of each segment that has a finding with one; an occlusion of either kind is 100.

    Raises:
        DataError: a percent outside 0 to 100.
    """
    found = {row["segment"]: _percent(study, row) for row in study.get("findings") or []}
    return {segment: percent for segment, percent in found.items() if percent is not None}


def _percent(study: dict[str, Any], row: dict[str, Any]) -> int | None:
    percent = 100 if row.get("occlusion") not in (None, "none") else row.get("stenosis")
    if percent is not None and not 0 <= percent <= 100:
        raise DataError(
            f"study {study.get('study_id')!r}: the finding in {row['segment']!r} has a stenosis of {percent}%; it "
            "must be 0 to 100: correct the findings in studies.parquet"
        )
    return percent


def text_key(text: str | None) -> int:
    """A 63-bit number that is equal for equal texts; 0 for none."""
    if text is None:
        return 0
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class ReportTokenizer:
    """A Hugging Face fast tokenizer reduced to what the data path needs, carried between processes as JSON."""

    def __init__(self, tokenizer_json: str, start_id: int, end_id: int, pad_id: int, max_length: int) -> None:
        self._state = (tokenizer_json, start_id, end_id, pad_id, max_length)
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        self.start_id, self.end_id, self.pad_id, self.max_length = start_id, end_id, pad_id, max_length

    @classmethod
    def from_pretrained(cls, tokenizer: Any, max_length: int) -> ReportTokenizer:
        """From a loaded ``transformers`` tokenizer.

        Raises:
            ConfigError: it has no start, end or padding token, or is not a fast one.
        """
        start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or start is None or end is None or tokenizer.pad_token_id is None:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} cannot write reports: it must be a fast tokenizer with "
                "start "
                "(cls or bos), end (sep or eos) and pad tokens"
            )
        made = cls(backend.to_str(), start, end, tokenizer.pad_token_id, max_length)
        framed = made._tokenizer.encode("normal").ids
        if framed[0] != start or framed[-1] != end:
            raise ConfigError(
                f"the tokenizer of {tokenizer.name_or_path!r} does not put its start and end tokens around a text; "
                "give it a post-processor that does"
            )
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return (ReportTokenizer, self._state)

    def uncut(self) -> ReportTokenizer:
        """The same without a longest text."""
        return ReportTokenizer(*self._state[:4], max_length=_ANY_LENGTH)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """Changes when any token or rule does."""
        return hashlib.sha256(json.dumps(json.loads(self._state[0]), sort_keys=True).encode()).hexdigest()[:16]

    def encode(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> ``input_ids`` [B, L] int32, padded to the longest of them, and ``text_length`` [B] int32.

        ``None`` becomes the start and end tokens alone, so that the row keeps its shape. The end token survives
        truncation.
        """
        encoded = self.encode_after([""] * len(texts), texts)
        return encoded.ids, encoded.length

    def encode_after(self, prefixes: Sequence[str], texts: Sequence[str | None]) -> Encoded:
        """The same of ``texts`` [B] that follow on ``prefixes`` [B]: a row begins with ``prompt(prefix)``, and goes on
        with the tokens that its text has by itself."""
        rows, given, cut = [], [], []
        for prefix, text in zip(prefixes, texts, strict=True):
            front, rest, is_cut = [self.start_id], [self.end_id], False
            if text is not None:
                encoding = self._tokenizer.encode(text)
                front, rest, is_cut = self.prompt(prefix), encoding.ids[1:], bool(encoding.overflowing)
            row = [*front, *rest]
            if len(row) > self.max_length:
                row, is_cut = [*row[: self.max_length - 1], self.end_id], True
            rows.append(row)
            given.append(len(front))
            cut.append(is_cut)
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.full((len(rows), int(lengths.max(initial=2))), self.pad_id, np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
        return Encoded(ids, lengths, np.array(given, np.int32), np.array(cut, bool))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Which characters of ``text`` each of its tokens stands for, as (begin, end): of those that ``encode_after``
        puts after a prefix, in their order; of the end token none, as (0, 0)."""
        return list(self._tokenizer.encode(text).offsets[1:])

    def prompt(self, *texts: str) -> list[int]:
        """The start token and those of ``texts``: the beginning of a row that is to be gone on with."""
        parts = (self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts if text)
        return [self.start_id, *(token for part in parts for token in part)]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids up to the first end token -> text, with the spacing that word pieces lose: ``70 %`` -> ``70%``.

        A token that stands for an unknown word stays visible in the text.
        """
        kept = list(ids)
        if self.end_id in kept:
            kept = kept[: kept.index(self.end_id)]
        kept = [token for token in kept if token not in (self.start_id, self.pad_id)]
        return tidy_spacing(self._tokenizer.decode(kept, skip_special_tokens=False))


def tidy_spacing(text: str) -> str:
    """Put punctuation back where it belongs: ``iFR 0. 89 , 70 % ( severe )`` -> ``iFR 0.89, 70% (severe)``."""
    text = re.sub(r"\s+([,.:;%)])", r"\1", " ".join(text.split()))
    text = re.sub(r"\(\s+", "(", text)
    text = re.sub(r"(\d)\.\s(?=\d)", r"\1.", text)
    text = re.sub(r"(?<=\b[01]),\s?(?=[01]\b)", ",", text)  # Medina classes
    return re.sub(r"(?<=\w)\s*-\s*(?=\w)", "-", text)

"""Free text to sentences, folded so that case, accents and kinds of dashes and quotes no longer matter."""

from __future__ import annotations

import re
import unicodedata

WRAPPED = 50  # letters; a shorter line was ended by its writer

_SAME = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "‑": "-", "’": "'", "‘": "'", "“": '"', "”": '"', "œ": "oe", "Œ": "oe", "\xa0": " "}
)
# A dot after one of these ends a word and not a sentence, if what follows goes on in lower case or the sentence has
# only just begun: "prox. LAD 80%", "mid LAD 80% (approx. 10 mm)". "LAD: 80% prox. RCA: normal." are two sentences.
_ABBREVIATED = re.compile(
    r"(?P<before>(?:^|[\n.;:,(\-]\s*|\b(?:of|the|in|at|de|du|la|l')\s*)?)\b"
    r"(?P<word>prox|mid|med|moy|dist|approx|env|sten|art|diag|marg|signif)\.(?=\s*(?P<next>\S))",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•·]+|\(?\d{1,2}[.)](?=\s))\s*")
_END = re.compile(r"[.!?;]+(?=\s|$)")


def fold(text: str) -> str:
    """Lower case, without accents, with plain dashes and quotes: ``Sténose de l’IVA`` -> ``stenose de l'iva``."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_SAME))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter)).lower()


def split_sentences(text: str) -> list[str]:
    """Sentences of a report, folded, without bullets and end marks.

    They end at full stops, semicolons, question and exclamation marks, and at the end of a line unless it is a long one
    and the next goes on in lower case.
    """
    sentences: list[str] = []
    for line in _lines(text.translate(_SAME)):
        whole = _ABBREVIATED.sub(_undotted, _BULLET.sub("", line))
        sentences += [" ".join(fold(part).split()) for part in _END.split(whole)]
    return [sentence for sentence in sentences if re.search(r"\w", sentence)]


def _lines(text: str) -> list[str]:
    """Lines, joined where a line break only wraps a sentence."""
    lines: list[str] = []
    last = ""
    for line in text.splitlines():
        if len(last) >= WRAPPED and line.lstrip()[:1].islower() and not re.search(r"[.:;!?]\s*$", last):
            lines[-1] += " " + line
        else:
            lines.append(line)
        last = line
    return lines


def _undotted(match: re.Match[str]) -> str:
    goes_on = match["next"].islower() or match["before"] or match.start() == 0
    return f"{match['before']}{match['word']}{'' if goes_on else '.'}"

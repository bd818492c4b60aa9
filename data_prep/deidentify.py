"""Report texts without persons: names, dates, ids, phones and e-mails become placeholders before anything reads them.

    Dr Tremblay, 2021-03-09: mid LAD 80%, TIMI 3.   ->   Dr [NAME], [DATE]: mid LAD 80%, TIMI 3.

By two means. What the tables say of the patient (name, ids, birth date, physicians) is looked for itself, whatever its
case, accents and separators. And patterns find what no table has: dates in English and French, phones, e-mails, record
numbers, and names behind a title or a label. A name that stands alone in a sentence and in no table is not found:
patterns cannot tell it from a word. Medical content stays: percents, TIMI, iFR, Medina, sizes of stents, segments, and
eponyms (Judkins, Amplatz), since no pattern takes a capitalised word for a name by itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

PLACEHOLDERS = {"name": "[NAME]", "date": "[DATE]", "id": "[ID]", "phone": "[PHONE]", "email": "[EMAIL]"}

# Words that no pattern takes for a name, though they may stand capitalised behind "Dr" or "Patient:".
_MEDICAL_WORDS = """
    left right main mid middle proximal distal ostial ostium prox dist coronary coronaire artery artere arteries
    vessel lad lcx rca lm lmca pda plv rpl lvp lca cx circ om diagonal marginal ramus intermedius obtuse posterior
    posterolateral anterior descending circumflex iva cd tronc commun gauche droite circonflexe diagonale marginale
    proximale moyenne distale stenosis stenose lesion occlusion total chronic cto thrombus calcification calcified
    stent stents restenosis isr pci timi ifr ffr medina collaterals flow flux normal severe moderate mild critical
    dominance dominant balanced codominant disease no none with without and the of in is are was were has had
    patient male female man woman year years old chest pain angina stemi nstemi acute syndrome angiography angiogram
    angioplasty catheterization cathlab radial femoral access sheath catheter wire balloon contrast heparin
    indication procedure findings impression conclusion history clinical dr dre drs mr mrs ms mme mlle monsieur
    madame doctor docteur prof professor professeur md frcpc presents presente presented underwent tolerated reports
    denies performed referred admitted seen examined reviewed les un une des pas sans avec et est sont homme femme
    ans age douleur thoracique angor coronarographie lvef ef lvedp lv rv lvgram aortic mitral tricuspid pulmonary
    valve ventricle ventricular ventriculography regurgitation insufficiency hypokinesis akinesis inferior lateral
    septal apical wall ostia bifurcation diffuse focal eccentric concentric long short tortuous ectatic aneurysmal
    thrombotic subtotal bypass graft grafts svg lima rima vein bms dapt ivus oct ct ecg large small noted grade jet
    trace significant
"""
_MEDICAL = frozenset(_MEDICAL_WORDS.split())
# The words of findings: a patient's surname may be one of these, and the finding must still be readable.
_CORE_WORDS = """
    left right main mid middle proximal distal marginal diagonal posterior anterior ramus normal stent severe
    moderate mild total flow no of and the in is with de la le du des et lad rca lcx om pci cto droite gauche
    moyenne commun tronc
"""
_CORE = frozenset(_CORE_WORDS.split())

_VERBS = r"(?:be|have|cause|need|require|represent|also|not|well|reflect|explain|benefit)\b"  # "segment 3 may be"
_MONTHS = (
    rf"(?:jan(?:uary|vier|v)?|feb(?:ruary)?|f[ée]v(?:rier|r)?|mar(?:ch|s)?|apr(?:il)?|avr(?:il)?|may(?!\s+{_VERBS})|mai|june?|juin|july?"
    r"|juil(?:let)?|aug(?:ust)?|ao[uû]t|sep(?:t(?:ember|embre)?)?|oct(?:ober|obre)?|nov(?:ember|embre)?"
    r"|d[ée]c(?:ember|embre)?)\b"
)
_MONTH_AND_FIGURE = _MONTHS.removesuffix(r"\b") + r"\.?"  # "09MAR2021": a figure may follow at once
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_NO_MEASURE = r"(?![\w%]|[.,]\d|\s*(?:mm|atm)\b)"
_ALONE = r"(?<![\w.,/%-])"  # before a number that is no part of another
_DATES = (
    rf"{_ALONE}\d{{4}}([-/.])\d{{1,2}}\1\d{{1,2}}(?:T\d\d:?\d\d(?::?\d\d)?)?(?![\w%])",
    rf"{_ALONE}{_DAY}([-/.]){_DAY}\1(?:\d{{4}}|\d{{2}})(?![\w%]|[-/.,]\d|\s*(?:atm|bar|mm)\b)",
    r"(?<!\d)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)",
    rf"\b\d{{1,2}}(?:st|nd|rd|th|er|e)?[\s-]+(?:of\s+)?{_MONTHS}(?:\.?,?[\s-]+(?:\d{{4}}|'?\d{{2}})\b(?!\s*(?:%|mm)))?",
    rf"(?<![\w.,%-]){_DAY}[ .-]?{_MONTH_AND_FIGURE}[ .-]?(?:19|20)?\d\d{_NO_MEASURE}",
    rf"(?<![\w.,%-])(?:19|20)\d\d[./-]?{_MONTH_AND_FIGURE}[./-]?{_DAY}{_NO_MEASURE}",
    rf"\b{_MONTHS}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}\b",
    rf"\b(?!(?-i:OCT)){_MONTHS}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?\b(?!\s*(?:%|mm|x\b)|[.,]\d)",  # OCT is an imaging method
    rf"\b{_MONTHS}\.?,?\s+(?:19|20)\d\d\b",
    r"(?:(?<=\ble\s)|(?<=\bon\s)|(?<=\bdu\s))\d{2}/\d{2}(?![\w%/])",
)
_PHONES = (
    r"(?<![\w.])(?:\+?1[\s.-]?)?\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}(?!\d)(?:\s*(?:ext|poste|x)\.?\s*\d{1,6})?",
    r"(?<![\w.])0[1-9](?:[\s.-]?\d\d){4}(?!\d)",
    r"(?<!\w)\+\d{1,3}(?:[\s.-]?\(?\d{1,4}\)?){2,6}(?!\d)",
)
_UID = r"(?<![\w.])\d+(?:\.\d+){4,}(?!\w)"
_VALUE = r"(?P<id>\d{3}[\s-]\d{3}[\s-]\d{3}|(?=[\w-]*\d[\w-]*\d)[A-Z0-9][\w/-]{2,})(?!\s*%)"
_IDS = (
    rf"\b(?:mrn|nam|ramq|nhs|ssn|nas|nir|dossier|accession)(?:\s+(?:no|num|number|num[ée]ro))?[\s.:#°º=-]*{_VALUE}",
    r"\b(?:mr|chart|file|record|acc|exam|patient|id|identifiant|hospital|h[oô]pital|study)"
    rf"(?:\s+(?:no|number|num[ée]ro|id)\b)?\s*[.:#°º=]+\s*{_VALUE}",
    r"\b(?P<id>(?-i:[A-Z]{4})\s?\d{4}\s?\d{4})\b",  # Quebec's health insurance number
    r"(?<![\w.-])(?P<id>\d{3}-\d{2}-\d{4}|\d{3}-\d{3}-\d{3})(?![\w-])",
    r"\b(?P<id>[A-Z]{1,5}[-#]?\d{5,})\b",
    r"(?P<id>#\d{4,})\b",
    r"(?<![\w.,])(?P<id>\d{6,})(?![\w%]|[.,]\d)",
)
_WORD = r"[A-ZÀ-ÖØ-Þ][\w’'À-ÿ]*(?:-[A-ZÀ-ÖØ-Þ][\w’'À-ÿ]*){0,3}"
_FIRST = (
    r"(?:[A-Z]\.-?[ \t]{0,2}){0,4}"
    r"(?:(?:[Dd]e|[Dd]u|[Ll]a|[Ll]e|[Vv]an|[Vv]on|[Dd]er|[Dd]en|[Dd]el|[Dd]a|[Bb]in|St\.?)[ \t]{1,2}){0,3}"
    rf"{_WORD}"
)
_NAME = rf"{_FIRST}(?:[ \t]+{_FIRST}){{0,3}}"
_TITLES = (
    r"(?:Drs?|Dre|DRS?|DRE|Doctors?|Docteure?|Prof|Professor|Professeure?|Mr|Mrs|Ms|Miss|Mme|MME|Mlle|MLLE"
    r"|Monsieur|Madame)\b(?:\.[ \t]*|[ \t]+)"
)
_BY = (
    r"(?:[Ss]een|[Aa]ssisted|[Ff]ollowed|[Tt]ranscribed|[Ss]uivie?|[Vv]ue?|[ÉEée]valu[ée]e?|[Ss]igned|[Dd]ictated|[Rr]ead|[Rr]eported|[Pp]erformed|[Rr]eviewed|[Vv]erified|[Rr]eferred"
    r"|[Ss]ign[ée]e?|[Dd]ict[ée]e?|[Rr]evue?|[Ll]ue?|[Rr][ée]alis[ée]e?)[ \t]+(?:by|par)[ \t]*:?[ \t]+"
)
_LABEL = (
    r"(?:[Pp]atient(?:e|\s+[Nn]ame)?|PATIENT(?:\s+NAME)?|[Nn]ame|NAME|[Nn]om(?:\s+du\s+patient)?|NOM|[Pp]r[ée]nom|[Oo]perator"
    r"|[Oo]p[ée]rateur|[Cc]ardiologist|[Cc]ardiologue|[Aa]ttending|[Pp]hysician|[Mm][ée]decin(?:\s+\w+)?|[Ff]ellow|[Nn]urse"
    r"|[Rr]eferr(?:ed|ing)(?:\s+by)?|[Cc]c|CC)\s*:\s*"
)
# Pattern, and whether what follows is a name even if it is a medical word too: "Dr Main", not "Patient: Right main".
_NAMES = (
    (rf"\b{_TITLES}(?P<name>{_NAME})", True),
    (rf"\b(?:M\.|Pr\b\.?|MRS?\b|MS\b)[ \t]+(?P<name>{_NAME})", False),  # also mid, proximal, mitral valve
    (rf"\b(?:Drs|DRS|Doctors)\b\.?[ \t]+\[NAME\][ \t]+(?:and|et|&)[ \t]+(?P<name>{_NAME})", True),
    (r"\b(?:(?:[Dd]re?|Mr|[Mm]rs|[Mm]me|[Mm]lle)\b\.?|mr\.)[ \t]+(?P<name>[a-zà-ÿ][\w’'-]{2,})", False),
    (rf"\b{_LABEL}(?:{_TITLES})?(?P<name>{_NAME}(?:,[ \t]+{_NAME})?)", False),
    (rf"\b{_BY}(?P<name>{_NAME})", False),
    (rf"\b(?P<name>{_NAME}),?[ \t]+(?:MD\b|M\.D\.|FRCPC\b|FACC\b|PhD\b)", False),
    (rf"\b[Pp]atiente?[ \t]+(?P<name>{_FIRST}(?:[ \t]+{_FIRST}){{1,2}})", False),
)
_PARTICLES = {"de", "du", "la", "le", "van", "von", "der", "den", "del", "da", "bin", "st"}
_EMAIL = r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"


def deidentify(text: str, known: Mapping[str, Iterable[str]] | None = None) -> tuple[str, Counter[str]]:
    """Replace what tells who a person is by placeholders.

    Args:
        text: a report as it was written.
        known: values of this study's own row, by kind: ``name`` (in any form: ``Roy^Anne``, ``Roy, Anne``), ``date``
            (any way of writing year, month and day), ``id``.

    Returns:
        The text, and how many replacements were made of each kind of ``PLACEHOLDERS``.
    """
    text = unicodedata.normalize("NFC", text)
    known = {kind: [unicodedata.normalize("NFC", v) for v in values] for kind, values in (known or {}).items()}
    counts: Counter[str] = Counter()
    text = _replace(text, "email", _EMAIL, counts)
    for value in sorted({value for value in known.get("id", ()) if value}, key=len, reverse=True):
        for pattern in _id_patterns(value):
            text = _replace_folded(text, "id", pattern, counts)
    text = _replace(text, "id", _UID, counts)
    for pattern in (*(p for value in known.get("date", ()) for p in _date_patterns(value)), *_DATES):
        text = _replace(text, "date", pattern, counts)
    for pattern in _PHONES:
        text = _replace(text, "phone", pattern, counts)
    for pattern in _IDS:
        text = _replace(text, "id", pattern, counts)
    for pattern, sure in _NAMES:
        text = _replace_names(text, pattern, sure, counts)
    return _replace_known_names(text, known.get("name", ()), counts), counts


def _replace(text: str, kind: str, pattern: str, counts: Counter[str]) -> str:
    """Replace the group of the name ``kind`` in each match, or all of it if there is no such group."""
    compiled = re.compile(pattern, re.IGNORECASE)
    group: str | int = kind if kind in compiled.groupindex else 0

    def change(match: re.Match[str]) -> str:
        begin, end = match.start(group) - match.start(), match.end(group) - match.start()
        return match[0][:begin] + PLACEHOLDERS[kind] + match[0][end:]

    text, number = compiled.subn(change, text)
    counts.update({kind: number} if number else {})
    return text


def _replace_names(text: str, pattern: str, sure: bool, counts: Counter[str]) -> str:
    """Replace the words of each would-be name up to the first medical one; the first word is a name if ``sure``."""

    def change(match: re.Match[str]) -> str:
        kept = 0
        for at, word in enumerate(re.finditer(r"[^\s,]+", match["name"])):
            folded = _fold(word[0]).strip(".'’")
            if folded in _MEDICAL and not (sure and at == 0):
                break
            if folded not in _PARTICLES or (sure and at == 0):
                kept = word.end()
        if not kept:
            return match[0]
        counts["name"] += 1
        begin = match.start("name") - match.start()
        return match[0][:begin] + PLACEHOLDERS["name"] + match[0][begin + kept :]

    return re.sub(pattern, change, text)


def _replace_known_names(text: str, names: Iterable[str], counts: Counter[str]) -> str:
    """Replace each part of each name, and runs of parts as one. Words of findings go only as part of such runs."""
    parts = {part for name in names for part in re.findall(r"[^\W\d_]+", _fold(name)) if len(part) > 1}
    parts -= {"dr", "dre", "mr", "mrs", "ms", "mme", "mlle", "md", "prof"}
    if not parts:
        return text
    one = "|".join(re.escape(part) for part in sorted(parts, key=len, reverse=True))
    pattern = rf"(?<![^\W_])(?:{one})(?:[\s,^.'-]+(?:[a-z]\.?[\s^-]+)?(?:{one}))*(?![^\W_])"
    folded = _fold(text)
    pieces, at = [], 0
    for match in re.finditer(pattern, folded):
        words = re.findall(r"[^\W\d_]+", match[0])
        written = text[match.start() : match.end()]
        alone = len(words) == 1
        if alone and (words[0] in _CORE or (len(words[0]) < 4 and not written[0].isupper())):
            continue  # "Main" may be a surname and is the left main; "Do" is a surname and "do" is not
        pieces += [text[at : match.start()], PLACEHOLDERS["name"]]
        at = match.end()
        counts["name"] += 1
    return "".join([*pieces, text[at:]])


def _replace_folded(text: str, kind: str, pattern: str, counts: Counter[str]) -> str:
    pieces, at = [], 0
    for match in re.finditer(pattern, _fold(text)):
        pieces += [text[at : match.start()], PLACEHOLDERS[kind]]
        at = match.end()
        counts[kind] += 1
    return "".join([*pieces, text[at:]])


def _id_patterns(value: str) -> list[str]:
    """An id with any separators between its groups, and its long number by itself; one of less than four letters and
    digits, which could be a size or a percent, is left to the labels."""
    groups = re.findall(r"[^\W_]+", _fold(value))
    if sum(map(len, groups)) < 4:
        return []
    patterns = [r"(?<![^\W_])" + r"[\W_]*".join(map(re.escape, groups)) + r"(?![^\W_])"]
    digits = re.findall(r"\d{5,}", value)
    return patterns + [rf"(?<!\d){number}(?!\d)" for number in digits]


def _date_patterns(value: str) -> list[str]:
    """A known date in the orders of figures that people write, with any separators or none."""
    match = re.match(r"\s*(\d{4})\D?(\d{2})\D?(\d{2})", value) or re.match(r"\s*(\d{2})\D(\d{2})\D(\d{4})", value)
    if match is None:
        return []
    first, second, third = match.groups()
    year, rest = (first, (second, third)) if len(first) == 4 else (third, (first, second))
    orders = {(year, *rest), (*rest, year), (*rest[::-1], year), (year, *rest[::-1])}
    return [r"(?<!\d)" + r"\D{0,2}".join(rf"0?{int(part)}" if len(part) == 2 else part for part in order) + r"(?!\d)"
            for order in sorted(orders)]  # fmt: skip


def _fold(text: str) -> str:
    """Lower case without accents, letter for letter, so that places in it are places in ``text``."""
    return "".join(unicodedata.normalize("NFKD", letter)[0].lower()[:1] or letter for letter in text)

"""The counts as lines for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_prep.overview.counts import GRADES, SIGNS, BySplit, Counts
from data_prep.overview.leakage import Reports, Videos
from data_prep.overview.pixels import Intensities
from data_prep.overview.tables import Prepared
from deepcoro.data.schema import SPLITS
from deepcoro.reports.vocabulary import SEGMENT_NAMES

_MANY = 6  # sizes, rates and values of an attribute that are named; the others are counted
_TOO_MANY = 24  # different values, if the most frequent of them are no half of all
_NAMED = 5  # groups and patients that a finding names


def header(prepared: Prepared) -> list[str]:
    """What the dataset is, and whether its card and its tables agree."""
    card = prepared.card
    made = f"made by {card.get('made_by', 'unknown')} {card.get('version', '')}".rstrip()
    fingerprint = str(card.get("fingerprint"))[:12]
    lines = [
        f"{prepared.path}: {prepared.studies.num_rows:,} studies, {prepared.videos.num_rows:,} videos",
        f"{made}, fingerprint {fingerprint}",
    ]
    counts = card.get("counts") or {}
    for name, table in (("studies", prepared.studies), ("ingested", prepared.videos)):
        if name in counts and counts[name] != table.num_rows:
            what = "studies" if name == "studies" else "videos"
            lines.append(
                f"warning: dataset.json speaks of {counts[name]:,} {what}, the table holds {table.num_rows:,}: "
                "one of them was changed by hand"
            )
    return lines


def counts_as_text(counts: Counts) -> list[str]:
    """All of ``Counts``, in blocks."""
    rows = [_split_row(name, numbers) for name, numbers in counts.totals.items()]
    for column, kinds in counts.categories.items():
        rows += [[column, "", "", "", ""], *(_split_row(f"  {value}", numbers) for value, numbers in kinds.items())]
    lines = ["", *align([["", *SPLITS, "all"], *rows])]
    lines += _findings(counts)
    rows = [["", "of", "smallest", "5 %", "median", "95 %", "largest"]]
    for name, spread in counts.spreads.items():
        if spread.num:
            rows.append([name, f"{spread.num:,}", *(f"{round(value, 2):.4g}" for value in spread.quantiles)])
    lines += ["", *align(rows)]
    values = {"frame sizes": counts.sizes, "frames a second": counts.rates, **counts.attributes}
    width = max(map(len, values))
    lines += ["", *(f"{name.ljust(width)}  {_list(numbers)}" for name, numbers in values.items())]
    lines += ["", f"reports: {counts.reports[0]:,}, of them {counts.reports[1]:,} different texts"]
    return [*lines, *_quarantine(counts.quarantine)]


def _findings(counts: Counts) -> list[str]:
    """Segments by split and grade, and then by what else findings say of them; what nothing is said of is left out."""
    found = {name: numbers for name, numbers in counts.segments.items() if sum(numbers.values())}
    if not found:
        return []
    by_split = [_split_row(f"  {SEGMENT_NAMES[segment]}", numbers) for segment, numbers in found.items()]
    whole = {split: sum(numbers[split] for numbers in found.values()) for split in SPLITS}
    grades = _columns({segment: counts.grades[segment] for segment in found}, GRADES)
    left = [["findings", *SPLITS, "all"], *by_split, _split_row("  all", whole)]
    lines = ["", *align([[*row, *more] for row, more in zip(left, grades, strict=True)])]
    said = {name: numbers for name, numbers in counts.signs.items() if any(numbers.values())}
    if said:
        left = [["of these, with"], *([f"  {SEGMENT_NAMES[segment]}"] for segment in said), ["  all"]]
        signs = _columns(said, SIGNS)
        lines += ["", *align([[*row, *more] for row, more in zip(left, signs, strict=True)])]
    if missing := [SEGMENT_NAMES[name] for name in counts.segments if name not in found]:
        lines += ["", f"never named: {', '.join(missing)}"]
    return lines


def _columns(rows: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> list[list[str]]:
    """A header, the rows and their sum; names that no row has a number for are left out."""
    used = [name for name in names if any(numbers[name] for numbers in rows.values())]
    sums = [sum(numbers[name] for numbers in rows.values()) for name in used]
    return [used, *([_number(n[name]) for name in used] for n in rows.values()), list(map(_number, sums))]


def intensities_as_text(found: Intensities, card: Mapping[str, object]) -> list[str]:
    """Grey levels beside those that dataset.json states."""
    num = len(found.means)
    if num == 0:
        return ["", "grey levels: no video could be read"]
    low, middle, high = (found.means[int(q * (num - 1))] for q in (0, 0.5, 1))
    lines = [
        "",
        f"grey levels of {num:,} videos, 4 frames each: mean {found.mean:.1f}, standard deviation {found.std:.1f}",
        f"  a video's mean is {low:.1f} to {high:.1f}, median {middle:.1f}; "
        f"{found.black:.1%} of the pixels are 0, {found.white:.1%} are 255",
    ]
    if isinstance(card.get("pixel_mean"), float) and isinstance(card.get("pixel_std"), float):
        split = card.get("pixel_split", "train")
        lines.append(f"  dataset.json: mean {card['pixel_mean']:.1f}, deviation {card['pixel_std']:.1f} ({split})")
    if found.still:
        lines.append(f"  warning: in {found.still:,} of them all frames are equal")
    return lines


def leakage_as_text(patients: Mapping[str, Sequence[str]], reports: Reports, videos: Videos | None) -> list[str]:
    """What the splits share; the line that decides first."""
    rows = []
    if patients:
        rows.append(f"LEAKAGE: {len(patients):,} patients stand in two splits: {_some(list(patients))}")
    else:
        rows.append("patients   each stands in one split")
    if videos is None:
        rows.append("videos     not compared (--no-pixels)")
    else:
        if videos.across:
            number = sum(map(len, videos.across))
            rows.append(
                f"LEAKAGE: {number:,} videos are equal to one of another split, in {len(videos.across):,} groups: "
                + "; ".join(" = ".join(group[:3]) for group in videos.across[:_NAMED])
                + (" ..." if len(videos.across) > _NAMED else "")
            )
        else:
            rows.append(
                f"videos     none is equal to one of another split ({videos.num_files:,} files, "
                f"{videos.num_hashed:,} of them share their size and were compared by content)"
            )
        if videos.within:
            number = sum(map(len, videos.within)) - len(videos.within)
            rows.append(f"  warning: {number:,} videos repeat another of the same split, as {videos.within[0][0]} is")
    held, of = reports.held_out
    if of:
        rows.append(
            f"reports    {held:,} of {of:,} in val and test ({held / of:.0%}) stand in train too, word for word; "
            f"{reports.num_texts:,} texts stand in more than one split"
        )
        if held:
            rows.append(
                "           templates of normal vessels do that; but what repeats can be had by heart, so hold a "
                "metric against its baseline"
            )
    else:
        rows.append("reports    none in val and test")
    return ["", "what the splits share", *(f"  {row}" for row in rows)]


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines; all columns but the first by their ends. A row may be shorter than the first."""
    full = [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in full
    ]


def _split_row(name: str, numbers: BySplit) -> list[str]:
    return [name, *(_number(numbers[split]) for split in SPLITS), _number(sum(numbers.values()))]


def _number(number: int) -> str:
    return f"{number:,}" if number else "-"


def _list(values: Mapping[str, int]) -> str:
    if len(values) > _TOO_MANY and 2 * sum(list(values.values())[:_MANY]) < sum(values.values()):
        return f"{len(values):,} different values ({sum(values.values()):,})"
    named = [f"{value} ({number:,})" for value, number in list(values.items())[:_MANY]]
    rest = list(values.values())[_MANY:]
    return ", ".join(named) + (f", and {len(rest):,} others ({sum(rest):,})" if rest else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")


def _quarantine(reasons: Mapping[str, int] | None) -> list[str]:
    if reasons is None:
        return ["quarantine: no quarantine.parquet here"]
    if not reasons:
        return ["quarantine: nothing was left out"]
    rows = [[f"  {reason}", f"{number:,}"] for reason, number in reasons.items()]
    return [f"quarantine: {sum(reasons.values()):,} files left out", *align(rows)]

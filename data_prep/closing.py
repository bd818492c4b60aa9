"""Lines of the summary that a command which makes a prepared dataset ends with."""

from __future__ import annotations

from typing import Any


def count_lines(counts: dict[str, Any], noun: str) -> list[str]:
    """What became of everything found, in ``counts`` as they stand in ``dataset.json``; ``noun`` names what was read,
    such as "files"."""
    lines = [
        f"ingested     {counts['ingested']:>8,} videos",
        f"quarantined  {counts['quarantined']:>8,} {noun}",
    ]
    lines += [f"  {reason:<28}{number:>8,}" for reason, number in counts["reasons"].items()]
    lines.append(f"{counts['patients']:,} patients, {counts['studies']:,} studies, {counts['reports']:,} with a report")
    for split, parts in counts["splits"].items():
        lines.append(f"  {split:<6}" + ", ".join(f"{number:,} {name}" for name, number in parts.items()))
    lines.append("trees  " + (", ".join(f"{tree} {number:,}" for tree, number in counts["trees"].items()) or "none"))
    return lines

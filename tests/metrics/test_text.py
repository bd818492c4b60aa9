"""Exact match looks at what is said and not at how a tokenizer spaces it."""

import pytest

from deepcoro.metrics.text import exact_matches


def test_case_and_spacing_do_not_count_but_words_and_numbers_do():
    true = ["Mid LAD: 80% stenosis (severe)."] * 5
    generated = [
        "Mid LAD: 80% stenosis (severe).",
        "mid lad : 80 % stenosis ( severe ) .",
        "Mid LAD: 81% stenosis (severe).",
        "Mid LAD: 80% stenosis (severe)",
        "",
    ]
    assert exact_matches(true, generated).tolist() == [True, True, False, False, False]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="got 1 and 2"):
        exact_matches(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 or more; got 0 and 0"):
        exact_matches([], [])

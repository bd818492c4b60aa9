"""Text: whether a generated report says exactly what the true one says.

Shapes: B rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def exact_matches(true: Sequence[str], generated: Sequence[str]) -> NDArray[np.bool_]:
    """Which generated texts equal the true ones: bool [B].

    Case and the spacing around punctuation do not count: tokenizers change both on the way to ids and back
    (``LAD: 80%`` comes back as ``lad : 80 %``), and neither says anything about the heart.

    Raises:
        ValueError: the two are not of one length, or there are none.
    """
    if len(true) != len(generated) or len(true) == 0:
        raise ValueError(f"expected as many generated as true texts, 1 or more; got {len(generated)} and {len(true)}")
    words = {text: words_of(text) for text in {*true, *generated}}  # many reports are equal
    return np.array([words[a] == words[b] for a, b in zip(true, generated, strict=True)])


def words_of(text: str) -> list[str]:
    """Words, numbers and single punctuation marks, in order; case folded."""
    return re.findall(r"\w+|[^\w\s]", text.casefold())

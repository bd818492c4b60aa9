"""Nearest neighbour: what is reached by handing out the report of the training unit whose video looks most alike.

It uses the model's own video embedding and no language model, so it tells what a written report adds to a looked-up
one.

Letters: B rows, N training units, E embedding, S segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcoro.config import Config
from deepcoro.data.tables import Units
from deepcoro.evaluation.truth import Truth
from deepcoro.metrics.findings import significant_segments
from deepcoro.metrics.retrieval import similarity_blocks, unit_rows


@dataclass(frozen=True)
class Neighbours:
    """Training units that lend their reports.

    Args:
        embeddings: of their videos [N, E], of length 1.
        texts: [N].
        significant: bool [N, S], from ``significant_segments``.
    """

    embeddings: NDArray[np.float32]
    texts: list[str]
    significant: NDArray[np.bool_]

    def nearest(self, video: NDArray[np.float32]) -> NDArray[np.int64]:
        """The training unit nearest to each video embedding by cosine: [B, E] -> [B]; the first among equals."""
        blocks = similarity_blocks(unit_rows(video, "video embeddings"), self.embeddings)
        return np.concatenate([similarity.argmax(axis=1) for _, similarity in blocks])


def fit_neighbours(records: Sequence[Mapping[str, Any]], train: Units, config: Config) -> Neighbours | None:
    """Neighbours from records of training units with a ``video_embedding``; ``None`` where none of them has a text."""
    records = sorted((r for r in records if r["valid"]), key=lambda record: record["unit"])
    truth = Truth.of(train, np.array([record["unit"] for record in records], dtype=np.int64), config)
    told = [(place, text) for place, text in enumerate(truth.texts) if text is not None]
    if not told:
        return None
    return Neighbours(
        unit_rows([records[place]["video_embedding"] for place, _ in told], "video embeddings"),
        [text for _, text in told],
        significant_segments([truth.findings[place] for place, _ in told]),
    )

"""Report -> text vector, by any Hugging Face text encoder (PubMedBERT in the real experiment).

Letters: B reports, L text tokens, D width.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcoro.errors import ConfigError


class TextEncoder(nn.Module):
    """A transformers encoder; the vector is the mean of the last layer over the text's tokens.

    The mean, and not the first token: masked language models such as PubMedBERT were never taught to gather a text in
    their first token, and an untrained one gives nearly the same first token to every text.

    Make one with ``from_pretrained`` (published or saved weights) or ``from_config`` (the architecture alone, for
    weights that a checkpoint brings).
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.width: int = transformer.config.hidden_size  # type: ignore[union-attr, assignment]

    @classmethod
    def from_pretrained(cls, source: str) -> TextEncoder:
        """Load by hub name or folder.

        Raises:
            ConfigError: there is no such model, or it cannot be reached from here.
        """
        from transformers import AutoModel

        return cls(_load(AutoModel, source, "text encoder", dtype=torch.float32))  # whatever it was saved in

    @classmethod
    def from_config(cls, folder: str | Path) -> TextEncoder:
        """The architecture that ``save_config`` wrote, with random weights.

        Raises:
            ConfigError: there is no description of a model.
        """
        from transformers import AutoConfig, AutoModel

        description = _load(AutoConfig, str(folder), "text encoder")
        return cls(_without_pooler(AutoModel.from_config(description, dtype=torch.float32)))

    def save_config(self, folder: str | Path) -> None:
        """Write what ``from_config`` needs."""
        self.transformer.config.save_pretrained(folder)  # type: ignore[operator, union-attr]

    def bottom_up(self) -> list[list[nn.Parameter]]:
        """Parameters from the words upwards, as they are frozen: those of no layer, then each layer's.

        Raises:
            ConfigError: the encoder has no list of as many layers as its description says.
        """
        number = getattr(self.transformer.config, "num_hidden_layers", None)  # type: ignore[union-attr]
        stacks = [m for m in self.transformer.modules() if isinstance(m, nn.ModuleList) and len(m) == number]
        if not stacks:
            kind = type(self.transformer).__name__
            raise ConfigError(f"text_encoder.freeze and optim.layer_decay: {kind} has no list of {number} layers")
        layers = [list(layer.parameters()) for layer in stacks[0]]
        inside = {id(parameter) for layer in layers for parameter in layer}
        return [[p for p in self.transformer.parameters() if id(p) not in inside], *layers]

    def forward(self, input_ids: Tensor, text_length: Tensor) -> Tensor:
        """``input_ids`` [B, L], of which ``text_length`` [B] are text -> [B, D]. Padding is never attended to."""
        kept = torch.arange(input_ids.shape[1], device=input_ids.device) < text_length[:, None]
        out = self.transformer(input_ids=input_ids, attention_mask=kept.long()).last_hidden_state
        return torch.where(kept.unsqueeze(-1), out, 0).sum(dim=1) / text_length.unsqueeze(-1)


def longest_text(source: str) -> int | None:
    """Positions that the text encoder at ``source`` has, or ``None`` where its description does not say."""
    from transformers import AutoConfig

    return getattr(_load(AutoConfig, source, "text encoder"), "max_position_embeddings", None)


def load_tokenizer(source: str) -> Any:
    """The tokenizer that belongs to a text encoder, by hub name or folder.

    Raises:
        ConfigError: there is none, or it cannot be reached from here.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, source, "tokenizer")


def _load(auto: Any, source: str, what: str, **more: Any) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()  # a pooler that the source lacks is dropped below: no need to report it missing
    logging.disable_progress_bar()
    try:
        loaded = auto.from_pretrained(source, **more)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"text_encoder.name {source!r}: no {what} could be loaded from there. Give a folder in Hugging Face "
            "format, or "
            f"download the model once where there is a network ({str(error).splitlines()[0]})"
        ) from error
    return _without_pooler(loaded) if isinstance(loaded, nn.Module) else loaded


def _without_pooler(transformer: nn.Module) -> nn.Module:
    """Drop BERT's pooler: nothing here reads it, and a parameter without gradient stalls distributed training."""
    if getattr(transformer, "pooler", None) is not None:
        transformer.pooler = None  # type: ignore[assignment]
    return transformer


def save_small_text_encoder(
    reports: Iterable[str],
    folder: str | Path,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    vocab_size: int = 2000,
) -> None:
    """Make a WordPiece tokenizer from ``reports`` and an untrained BERT for it, saved in the Hugging Face format.

    For where no published model can be had: the demo and the tests load it by the same call as PubMedBERT.

    Raises:
        ValueError: there is no report to learn words from.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]
    from transformers.utils import logging

    logging.disable_progress_bar()

    texts = list(reports)
    if not texts:
        raise ValueError("a tokenizer needs at least one report to learn its words from")
    pieces = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
    pieces.train_from_iterator(texts, vocab_size=vocab_size, min_frequency=1, show_progress=False)
    # Every letter, digit and sign of the canonical wording stands by itself in the vocabulary, alone and as a
    # continuation, so that no number is unknown, and no word that these reports happen not to have.
    signs = [*string.digits, *string.ascii_letters, *".,:%()-"]
    pieces.add_tokens([c for sign in signs for c in (sign, f"##{sign}") if pieces.token_to_id(c) is None])
    tokenizer = BertTokenizerFast(vocab=pieces.get_vocab(), do_lower_case=False)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        intermediate_size=4 * width,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same reports give the same encoder
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)

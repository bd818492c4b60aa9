"""Video tokens -> report, word by word: a causal decoder that attends to the tokens of the clips (LocCa, 2403.19596).

Letters: B rows, L text tokens, M video tokens, D width of the decoder, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from deepcoro.models.layers import Attention, FeedForward

KeysValues = tuple[Tensor, Tensor]


class DecoderBlock(nn.Module):
    """Pre-norm: causal attention to the text so far, attention to the video, feed-forward."""

    def __init__(self, width: int, num_heads: int, hidden: int, memory_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = Attention(width, num_heads, dropout=dropout)
        self.cross_attention = Attention(width, num_heads, memory_width=memory_width, dropout=dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, memory: Tensor | KeysValues, memory_mask: Tensor, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """``x`` [B, L, D] and the text's keys and values, of ``past`` and ``x``. ``memory`` is the video's tokens
        [B, M, D'], or its keys and values, for who uses them many times."""
        if isinstance(memory, Tensor):  # made in here: a sharded block has its weights only while it runs
            memory = self.cross_attention.keys_values(memory)
        normed = self.norm1(x)
        own = self.self_attention.keys_values(normed)
        if past is not None:
            own = (torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2))
        x = x + self.dropout(self.self_attention(normed, own, causal=past is None))
        x = x + self.dropout(self.cross_attention(self.norm2(x), memory, mask=memory_mask))
        return x + self.dropout(self.feed_forward(self.norm3(x))), own


class CaptioningDecoder(nn.Module):
    """LocCa-style decoder for structured angiographic reports; output and input embeddings are shared.

    Args:
        vocab_size: V, what the tokenizer says.
        hidden_size, num_layers, num_heads, intermediate_size: of the decoder.
        max_position_embeddings: longest text, in tokens.
        memory_size: width of the video tokens; ``None`` for ``hidden_size``.
        dropout: share dropped in attention, residuals and feed-forward while training.

    Raises:
        ValueError: a text is longer than the position table.
    """

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 512,
        num_layers: int = 6,
        num_heads: int = 8,
        intermediate_size: int = 2048,
        max_position_embeddings: int = 512,
        memory_size: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        memory_size = memory_size or hidden_size
        self.token_embedding = nn.Embedding(vocab_size, hidden_size)
        self.position_embedding = nn.Embedding(max_position_embeddings, hidden_size)
        self.blocks = nn.ModuleList(
            DecoderBlock(hidden_size, num_heads, intermediate_size, memory_size, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)
        for embedding in (self.token_embedding, self.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self, input_ids: Tensor, video_tokens: Tensor, video_mask: Tensor, return_hidden: bool = False
    ) -> Tensor:
        """Logits [B, L, V] of the token after each of ``input_ids`` [B, L].

        ``video_tokens`` [B, M, D'], ``video_mask`` [B, M] bool (true where there is a token). Attention is causal and
        text is padded at its end, so padding reaches no earlier position.

        With ``return_hidden`` [B, L, D], which times ``output_weight`` transposed are the logits, in the precision that
        autocast would multiply them in: what a loss takes that never makes all logits at once.
        """
        x = self._embed(input_ids, 0)
        mask = _attendable(video_mask)
        for block in self._blocks():
            x, _ = block(x, video_tokens, mask)
        if return_hidden:
            device = x.device.type
            halves = torch.is_autocast_enabled(device)
            return self.norm(x).to(torch.get_autocast_dtype(device)) if halves else self.norm(x)
        return self._logits(x)

    @property
    def output_weight(self) -> Tensor:
        """[V, D], shared with the embedding of input tokens."""
        return self.token_embedding.weight

    @torch.no_grad()
    def generate(
        self,
        video_tokens: Tensor,
        video_mask: Tensor,
        start_id: int,
        end_id: int,
        pad_id: int,
        max_length: int = 128,
        do_sample: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Write a report for each row: ids [B, L] without the start token, ended by ``end_id`` and padded.

        Greedy, or sampled at ``temperature``. Keys and values of video and past text are computed once; a row that has
        ended stays ended, and writing stops when all have.
        """
        rows, device = len(video_tokens), video_tokens.device
        mask = _attendable(video_mask)
        memories = [block.cross_attention.keys_values(video_tokens) for block in self._blocks()]
        pasts: list[KeysValues | None] = [None] * len(self.blocks)
        token = torch.full((rows, 1), start_id, dtype=torch.long, device=device)
        ended = torch.zeros(rows, dtype=torch.bool, device=device)
        written: list[Tensor] = []
        for place in range(min(max_length, self.position_embedding.num_embeddings)):
            x = self._embed(token, place)
            for number, block in enumerate(self._blocks()):
                x, pasts[number] = block(x, memories[number], mask, pasts[number])
            logits = self._logits(x)[:, -1].float()
            if do_sample:
                choice = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
            else:
                choice = logits.argmax(-1)
            choice = choice.masked_fill(ended, pad_id)
            written.append(choice)
            ended = ended | (choice == end_id)
            if ended.all():
                break
            token = choice[:, None]
        return torch.stack(written, dim=1)

    def _blocks(self) -> list[DecoderBlock]:
        return cast(list[DecoderBlock], list(self.blocks))

    def _embed(self, input_ids: Tensor, first: int) -> Tensor:
        length, longest = first + input_ids.shape[1], self.position_embedding.num_embeddings
        if length > longest:
            raise ValueError(f"text of {length} tokens is longer than the {longest} positions of the decoder")
        positions = torch.arange(first, length, device=input_ids.device)
        return self.dropout(self.token_embedding(input_ids) + self.position_embedding(positions))

    def _logits(self, x: Tensor) -> Tensor:
        return self.norm(x) @ self.output_weight.T


def _attendable(video_mask: Tensor) -> Tensor:
    """[B, 1, 1, M]; a row without any token may look at all of them (its loss is left out), since softmax over nothing
    is NaN."""
    return (video_mask | ~video_mask.any(dim=1, keepdim=True))[:, None, None]

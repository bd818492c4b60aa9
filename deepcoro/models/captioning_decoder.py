"""Video tokens -> report, word by word: a causal decoder that attends to the tokens of the clips (LocCa, 2403.19596).

Letters: B clips (or studies), R texts, L text tokens, M video tokens, H heads, D width of the decoder, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from deepcoro.models.layers import Attention, FeedForward

KeysValues = tuple[Tensor, Tensor]


class PastText:
    """Keys and values of one block's text so far, in buffers [R, H, places, D/H] that are made once: nothing is copied
    when a token comes."""

    def __init__(self, places: int) -> None:
        self.places, self.length = places, 0
        self._buffers: KeysValues | None = None

    def extend(self, new: KeysValues) -> KeysValues:
        """Append keys and values [R, H, L, D/H] -> those of the whole text; views."""
        if self._buffers is None:  # only the first ones tell shape, device and precision
            rows, heads, _, width = new[0].shape
            self._buffers = tuple(part.new_empty(rows, heads, self.places, width) for part in new)  # type: ignore
        assert self._buffers is not None
        begin, self.length = self.length, self.length + new[0].shape[2]
        for buffer, part in zip(self._buffers, new, strict=True):
            buffer[:, :, begin : self.length] = part
        return self._buffers[0][:, :, : self.length], self._buffers[1][:, :, : self.length]

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from what row ``rows[i]`` was."""
        for buffer in self._buffers or ():
            buffer[:, :, : self.length] = buffer[:, :, : self.length].index_select(0, rows)


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
        self,
        x: Tensor,
        memory: Tensor | KeysValues,
        memory_mask: Tensor | None,
        past: PastText | None = None,
        own_mask: Tensor | None = None,
    ) -> Tensor:
        """``x`` [R, L, D] -> the same, of texts that go on from ``past``. ``memory`` is the video's tokens [B, M, D'],
        or its keys and values, for who uses them many times; where R is a multiple of B, each clip has R / B texts, one
        after the other. ``own_mask`` [R, 1, L, L] stands for the causal one."""
        if isinstance(memory, Tensor):  # made in here: a sharded block has its weights only while it runs
            memory = self.cross_attention.keys_values(memory)
        normed = self.norm1(x)
        own = self.self_attention.keys_values(normed)
        if past is not None:
            own = past.extend(own)
        x = x + self.dropout(self.self_attention(normed, own, own_mask, causal=x.shape[1] > 1 and own_mask is None))
        queries = self.norm2(x).reshape(len(memory[0]), -1, x.shape[-1])  # texts of a clip share its keys and values
        x = x + self.dropout(self.cross_attention(queries, memory, mask=memory_mask)).reshape_as(x)
        return x + self.dropout(self.feed_forward(self.norm3(x)))


class WritingState:
    """What writing goes on from: keys and values of the video, made once a clip, and of the text so far; and the output
    weight as [D, V].

    ``reorder_cache`` and ``get_seq_length`` are the names by which transformers asks a cache.
    """

    is_compileable = False

    def __init__(self, memories: list[KeysValues], mask: Tensor | None, output: Tensor, places: int) -> None:
        self.memories, self.mask, self.output = memories, mask, output
        self.pasts = [PastText(places) for _ in memories]

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.pasts[0].length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let text i go on from what text ``beam_idx[i]`` was. Both are of the same clip: the video stays."""
        for past in self.pasts:
            past.reorder(beam_idx)


class CaptioningDecoder(nn.Module):
    """LocCa-style decoder for structured angiographic reports; output and input embeddings are shared.

    Args:
        vocab_size: V, what the tokenizer says.
        hidden_size, num_layers, num_heads, intermediate_size: of the decoder.
        max_position_embeddings: longest text, in tokens.
        memory_size: width of the video tokens; ``None`` for ``hidden_size``.
        dropout: share dropped in attention, residuals and feed-forward while training.
        parallel: whether it learns to predict texts all at once too; it has a mask token then.

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
        parallel: bool = False,
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
        self.mask_token = nn.Parameter(torch.randn(hidden_size) * 0.02) if parallel else None

    def forward(
        self,
        input_ids: Tensor,
        video_tokens: Tensor,
        video_mask: Tensor,
        return_hidden: bool = False,
        num_parallel: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, L, V] of the token after each of ``input_ids`` [B, L].

        ``video_tokens`` [B, M, D'], ``video_mask`` [B, M] bool (true where there is a token). Attention is causal and
        text is padded at its end, so padding reaches no earlier position.

        ``num_parallel`` [B]: 0 for a row that is read word by word; else the row's first so many tokens are predicted
        all at once (CapPa, 2306.07915, section 3): a mask token stands for every one, start and prefix too, and each
        place attends to all of them. Padding stays out of it, as CapPa, whose texts are all padded to one length, need
        not: a row must be the same in any batch. So such a row is told how long its text is.

        With ``return_hidden`` [B, L, D], which times ``output_weight`` transposed are the logits, in the precision that
        autocast would multiply them in: what a loss takes that never makes all logits at once.
        """
        x, own_mask = self._embed(input_ids, 0, num_parallel), None
        if num_parallel is not None:
            place = torch.arange(input_ids.shape[1], device=input_ids.device)
            own_mask = ((place <= place[:, None]) | (place < num_parallel[:, None, None]))[:, None]
        mask = _attendable(video_mask)
        for block in self._blocks():
            x = block(x, video_tokens, mask, own_mask=own_mask)
        if return_hidden:
            device = x.device.type
            halves = torch.is_autocast_enabled(device)
            return self.norm(x).to(torch.get_autocast_dtype(device)) if halves else self.norm(x)
        return self.norm(x) @ self.output_weight.T

    def read_branches(
        self, input_ids: Tensor, places: Tensor, seen: Tensor, video_tokens: Tensor, video_mask: Tensor
    ) -> Tensor:
        """Hidden states [B, S, D] of texts that begin alike, all in one row: each of ``input_ids`` [B, S] stands at its
        place in its text, ``places`` [B, S], and attends to what ``seen`` [B, S, S] marks of the row, one or more.
        Times ``output_weight`` transposed they are logits; ``video_tokens`` and ``video_mask`` as for ``forward``."""
        x, mask = (
            self.dropout(self.token_embedding(input_ids) + self.position_embedding(places)),
            _attendable(video_mask),
        )
        for block in self._blocks():
            x = block(x, video_tokens, mask, own_mask=seen[:, None])
        return self.norm(x)

    @property
    def output_weight(self) -> Tensor:
        """[V, D], shared with the embedding of input tokens."""
        return self.token_embedding.weight

    def look(self, video_tokens: Tensor, video_mask: Tensor, places: int) -> WritingState:
        """The video's part of writing texts of ``places`` tokens at most; arguments as for ``forward``."""
        mask = None if bool(video_mask.all()) else _attendable(video_mask)  # without a mask attention is faster
        memories = [block.cross_attention.keys_values(video_tokens) for block in self._blocks()]
        # Each head's keys side by side: one query at a time reads them up to twice as fast.
        memories = [(key.contiguous(), value.contiguous()) for key, value in memories]
        # A copy for CPUs, whose product with one row is twice as fast along the rows: 3 of 22 ms a token.
        output = self.output_weight.T.contiguous() if video_tokens.device.type == "cpu" else self.output_weight.T
        return WritingState(memories, mask, output, places)

    def go_on(self, input_ids: Tensor, state: WritingState) -> Tensor:
        """Logits [R, V] of the token after the last of ``input_ids`` [R, L], which go on from ``state`` and are added
        to it: any number of tokens to begin with, one each time afterwards."""
        begin = state.get_seq_length()
        assert begin == 0 or input_ids.shape[1] == 1, "a causal mask of several tokens would not see the past"
        x = self._embed(input_ids, begin)
        for block, memory, past in zip(self._blocks(), state.memories, state.pasts, strict=True):
            x = block(x, memory, state.mask, past)
        return self.norm(x[:, -1]) @ state.output

    def _blocks(self) -> list[DecoderBlock]:
        return cast(list[DecoderBlock], list(self.blocks))

    def _embed(self, input_ids: Tensor, first: int, num_parallel: Tensor | None = None) -> Tensor:
        length, longest = first + input_ids.shape[1], self.position_embedding.num_embeddings
        if length > longest:
            raise ValueError(f"text of {length} tokens is longer than the {longest} positions of the decoder")
        positions = torch.arange(first, length, device=input_ids.device)
        words = self.token_embedding(input_ids)
        if num_parallel is not None:
            assert self.mask_token is not None, "a decoder that predicts in parallel is made with parallel=True"
            words = torch.where((num_parallel > 0)[:, None, None], self.mask_token.to(words.dtype), words)
        return self.dropout(words + self.position_embedding(positions))


def _attendable(video_mask: Tensor) -> Tensor:
    """[B, 1, 1, M]; a row without any token may look at all of them (its loss is left out), since softmax over nothing
    is NaN."""
    return (video_mask | ~video_mask.any(dim=1, keepdim=True))[:, None, None]

"""Texts written by the captioning decoder: greedy, drawn, or looked for by beam search, by transformers' own
generation. Importing this file loads transformers, which takes seconds.

Letters: B clips (or studies), K beams, R texts (B * K), P tokens that are given, L that are written, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from deepcoro.config_writing import Writing
from deepcoro.models.captioning_decoder import CaptioningDecoder, WritingState


@dataclass(frozen=True)
class Written:
    """Texts ``ids`` [B, L], each ended by its end token (unless it was cut off before) and padded, and, where they were
    asked for, the log-probabilities [B, L] of its tokens, 0 where there is padding.

    They are what the decoder itself gives each token after those before it: before temperature, top-k, top-p or any
    processor. Their sum over a row is the log-probability of its text.
    """

    ids: Tensor
    log_probs: Tensor | None = None


@torch.no_grad()
def generate(
    decoder: CaptioningDecoder,
    video_tokens: Tensor,
    video_mask: Tensor,
    start: int | Tensor,
    end_id: int | None,
    pad_id: int,
    writing: Writing | None = None,
    processors: LogitsProcessorList | None = None,
    generator: torch.Generator | None = None,
    log_probs: bool = False,
) -> Written:
    """Write a text for each row of ``video_tokens`` [B, M, D']; ``video_mask`` [B, M] bool is true where there is one.

    Keys and values of the video are computed once a clip, whatever the number of beams, and those of the text once a
    token. A row that has ended stays ended; writing stops when all have. A row without any video token gets no text:
    only padding.

    Args:
        decoder: in evaluation mode, or dropout would take part.
        start: the token that every text starts with, or what is given of each text, [B, P]; it is not repeated in
            what is returned.
        end_id: ends a text; ``None``: none does.
        writing: how, and how long; greedy where it is not given. No more is written than the decoder has positions for.
        processors: change the scores [R, V] of the next token by the ids [R, P + written] so far, before temperature,
            top-k and top-p; scores are logits, or with beams log-probabilities, and -inf forbids. Row r is beam r % K
            of clip r // K. Texts that have ended are asked for all the same, and so are beams that had nothing allowed
            to go on with: whatever its ids, a row needs a token that may follow, but for a beam among others.
        generator: what is drawn follows it; ``None``: torch's own.
        log_probs: return them too; costs one more pass over what was written.

    Raises:
        ValueError: shapes or types that do not fit, video tokens that are not finite, a token outside the vocabulary,
            more given tokens than positions, or beam search among fewer than 2 tokens.
    """
    writing = writing or Writing()
    prompt = _prompt(start, video_tokens, video_mask, end_id, pad_id, decoder)
    if writing.num_beams > 1 and decoder.token_embedding.num_embeddings < 2:
        raise ValueError(
            f"num_beams is {writing.num_beams} and the decoder has 1 token: beam search goes on with 2 tokens of each "
            "text at least; set num_beams to 1"
        )
    given, positions = prompt.shape[1], decoder.position_embedding.num_embeddings
    places = min(writing.max_generation_length, positions - given + 1)  # the last token needs no position: none follows
    if len(prompt) == 0:
        nothing = prompt.new_empty(0, 0)
        return Written(nothing, nothing.float() if log_probs else None)
    state = decoder.look(video_tokens, video_mask, given + places - 1)
    config = _generation_config(writing, places, end_id, pad_id)
    writer: Any = _Writer(decoder)  # what it is mixed into has a type of its own in transformers
    with _drawing_from(generator if writing.do_sample else None, prompt.device):
        ids = writer.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),  # all given tokens count; without it transformers warns and guesses
            generation_config=config,
            logits_processor=processors,
            synced_gpus=False,  # workers that write different numbers of texts must not wait for each other
            past_key_values=state,
        )[:, given:]
    there = video_mask.any(dim=1, keepdim=True) & (ids >= 0)  # -1: beam search ended without any text
    if end_id is not None:
        ended = (ids == end_id).cumsum(dim=1)
        there = there & ((ended == 0) | ((ended == 1) & (ids == end_id)))  # all up to the first end token
    ids = torch.where(there, ids, pad_id)  # beam search pads with the end token where padding is token 0
    if not log_probs:
        return Written(ids)
    return Written(ids, torch.where(there, _log_probs(decoder, video_tokens, video_mask, prompt, ids), 0))


class _Writer(GenerationMixin, PreTrainedModel):
    """The decoder as transformers' generation wants a model to be. Its cache is the ``WritingState``, which also holds
    the video."""

    config_class = PreTrainedConfig

    def __init__(self, decoder: CaptioningDecoder) -> None:
        super().__init__(PreTrainedConfig())
        self.wrapped = decoder

    def forward(self, input_ids: Tensor, past_key_values: WritingState, **_: Any) -> CausalLMOutputWithPast:
        """Logits [R, 1, V] of the token after the last one."""
        return CausalLMOutputWithPast(logits=self.wrapped.go_on(input_ids, past_key_values).unsqueeze(1))

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: WritingState, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """The tokens that the state has not seen; nothing else is needed."""
        return {"input_ids": input_ids[:, past_key_values.get_seq_length() :], "past_key_values": past_key_values}

    @staticmethod
    def _check_early_stop_heuristic(
        is_early_stop_heuristic_unsatisfied: Tensor,
        running_beam_scores: Tensor,
        beam_scores: Tensor,
        is_sent_finished: Tensor,
        cur_len: int,
        max_length: int,
        decoder_prompt_len: int,
        early_stopping: bool | str,
        length_penalty: float,
    ) -> Tensor:
        """Whether a text that is still written could become better than the best one that has ended. transformers goes
        on until none could become better than the *worst* of K, which takes far longer and matters only where all K
        are returned."""
        longest = max_length if length_penalty > 0 else cur_len  # where a running text's score can be highest
        possible = running_beam_scores[:, :1] / (longest - decoder_prompt_len) ** length_penalty
        return is_early_stop_heuristic_unsatisfied & (possible > beam_scores[:, :1])


def _generation_config(writing: Writing, places: int, end_id: int | None, pad_id: int) -> GenerationConfig:
    """``top_k`` 0 and ``top_p`` 1 are all tokens: what is left out would become transformers' own default, top-k 50."""
    how: dict[str, Any] = {}
    if writing.do_sample:
        how = {"temperature": writing.temperature, "top_k": writing.top_k or 0, "top_p": writing.top_p or 1.0}
    elif writing.num_beams > 1:
        # "never": not before no better text can come, instead of transformers' guess by the length so far.
        how = {"num_beams": writing.num_beams, "length_penalty": writing.length_penalty, "early_stopping": "never"}
    return GenerationConfig(
        max_new_tokens=places,
        do_sample=writing.do_sample,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        disable_compile=True,
        **how,
    )


def _prompt(
    start: int | Tensor,
    video_tokens: Tensor,
    video_mask: Tensor,
    end_id: int | None,
    pad_id: int,
    decoder: CaptioningDecoder,
) -> Tensor:
    """[B, P], after a look at everything that is asked."""
    if video_tokens.ndim != 3 or video_tokens.shape[1] == 0 or video_mask.shape != video_tokens.shape[:2]:
        raise ValueError(
            f"expected video tokens [B, M, D'] with a mask [B, M], M 1 or more, received {tuple(video_tokens.shape)} "
            f"and {tuple(video_mask.shape)}"
        )
    if video_mask.dtype != torch.bool:
        raise ValueError(f"expected a mask of bool, true where there is a video token, received {video_mask.dtype}")
    if not bool(video_tokens.isfinite().all()):  # or a text would be invented; one wait for a GPU
        strange = (~video_tokens.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"the video tokens of {len(strange)} of {len(video_tokens)} rows (the first is row {strange[0]}) are not "
            "finite: a text written from them would say nothing about the video. Look whether the weights of the video "
            "encoder are finite (else take an earlier checkpoint), and its activations (else do without 16 bits)"
        )
    rows, device = len(video_tokens), video_tokens.device
    prompt = torch.full((rows, 1), start, device=device) if isinstance(start, int) else start.to(device)
    if prompt.ndim != 2 or len(prompt) != rows or prompt.shape[1] == 0 or prompt.dtype != torch.long:
        raise ValueError(
            f"expected the ids that each of the {rows} texts starts with, [{rows}, P] int64 with P 1 or more, received "
            f"{tuple(prompt.shape)} of {prompt.dtype}"
        )
    positions, vocabulary = decoder.position_embedding.num_embeddings, decoder.token_embedding.num_embeddings
    if prompt.shape[1] > positions:
        raise ValueError(
            f"{prompt.shape[1]} tokens are given of each text, more than the {positions} positions of the decoder: "
            "nothing can follow them; give fewer, or train with a larger captioning.max_position_embeddings"
        )
    special = {"pad_id": pad_id} if end_id is None else {"pad_id": pad_id, "end_id": end_id}
    wrong = [f"{name} {token}" for name, token in special.items() if not 0 <= token < vocabulary]
    if rows and not (prompt.min() >= 0 and prompt.max() < vocabulary):
        wrong.append(f"a given token of {prompt.min()} to {prompt.max()}")
    if wrong:
        raise ValueError(f"{' and '.join(wrong)} is none of the decoder's {vocabulary} tokens")
    return prompt


@contextmanager
def _drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """What transformers draws, it draws from torch's own generator: let that follow ``generator`` for a while."""
    if generator is None:
        yield
        return
    own = torch.default_generator
    if device.type == "cuda":
        own = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    before = own.get_state()
    own.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
    try:
        yield
    finally:
        own.set_state(before)


def _log_probs(
    decoder: CaptioningDecoder, video_tokens: Tensor, video_mask: Tensor, prompt: Tensor, ids: Tensor
) -> Tensor:
    """Log-probability [B, L] of each of ``ids`` after those before it. Row by row: logits are far larger than texts."""
    begin, read = prompt.shape[1] - 1, torch.cat([prompt, ids[:, :-1]], dim=1)
    hidden = decoder(read, video_tokens, video_mask, return_hidden=True)[:, begin : begin + ids.shape[1]]
    weight = decoder.output_weight.to(hidden.dtype)
    rows = [
        -F.cross_entropy((row @ weight.T).float(), own, reduction="none") for row, own in zip(hidden, ids, strict=True)
    ]
    return torch.stack(rows)

"""The transformers that a row goes through in a training step: what they compute, and what they keep.

They follow from the config and the shapes of the model, for an encoder built like the ones here; a backbone of the
user's own may differ, and MViT is met roughly (``is_exact``). The pooling of a study's clips is left out: it is next to
nothing.

Letters: n tokens of a row, m tokens that are attended to besides, d width, h width of the feed-forward, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepcoro.config import Config
from deepcoro.config_masking import num_asked
from deepcoro.models.conv_stem import multiply_adds, saved_values
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.video_teacher import teacher_config
from deepcoro.reports.vocabulary import SEGMENTS

# Of MViTv2-S (2112.01526, table 1) on 16x224x224: layers, width, heads and tokens of each stage.
_MVIT_STAGES = ((1, 96, 1, 25088), (2, 192, 2, 6272), (11, 384, 4, 1568), (2, 768, 8, 392))
_TEXT_KINDS = ("bert", "roberta")  # of transformers, built of the layers that are counted here


@dataclass(frozen=True)
class Pass:
    """One transformer on one row of a batch.

    Args:
        clips: how often it runs for the row, each time by itself.
        memory, memory_width: m and width of what it attends to besides its own tokens.
        outside: multiply-adds of the layers before and after its blocks, a row.
        kept_outside: numbers that the backward pass needs of these, where they are many.
        vocabulary: V, where its output is a choice among words.
        chunk_size: tokens for which that choice is computed at once.
        looks: for each attention of a block, how many tokens each one looks at; empty: one attention, at all n.
        frozen: layers, from the bottom, that the backward pass does not reach, and with them what lies before.
        computed_again: the backward pass has each layer's input, and computes the rest again.
        scores: of each token and layer, numbers that an attention keeps which writes out what it weighs.
    """

    layers: int
    width: int
    hidden: int
    tokens: int
    clips: float = 1
    memory: int = 0
    memory_width: int = 0
    outside: int = 0
    kept_outside: int = 0
    vocabulary: int = 0
    chunk_size: int = 0
    looks: tuple[int, ...] = ()
    frozen: int = 0
    computed_again: bool = False
    scores: int = 0

    @property
    def step_flops(self) -> float:
        """Operations of the matrix products in a training step, a multiply-add being two. The backward pass costs twice
        the forward one, and a layer that is computed again once more; what is frozen has no backward pass. Attention
        counts whole where it is causal too."""
        return self._flops(3 if self.computed_again else 2)

    @property
    def useful_flops(self) -> float:
        """The same but for what is computed again: what the step needs, however it saves memory (PaLM, 2204.02311,
        appendix B)."""
        return self._flops(2)

    def _flops(self, backward: int) -> float:
        n, m, d = self.tokens, self.memory, self.width
        block = sum(n * 4 * d * d + 2 * n * seen * d for seen in self.looks or (n,)) + n * 2 * d * self.hidden
        if m:
            block += 2 * n * d * d + 2 * m * self.memory_width * d + 2 * n * m * d
        times = self.layers + (self.layers - self.frozen) * backward
        outside = self.outside * (1 if self.frozen else 3)
        return 2.0 * self.clips * (times * block + outside + 3 * n * d * self.vocabulary)

    @property
    def saved_values(self) -> float:
        """Numbers that the backward pass needs: of a block the inputs of its norms and products, queries, keys, values
        and what attention gives (after 2205.05198, section 4.1, with attention that keeps no n x n matrix)."""
        n, m, d = self.tokens, self.memory, self.width
        further = len(self.looks) - 1 if self.looks else 0
        block = n * (9 * d + 2 * self.hidden + self.scores) + further * 10 * n * d
        if m:
            block += 5 * n * d + 2 * m * d
        trained = self.layers - self.frozen
        of_blocks = trained * n * d + min(1, trained) * block if self.computed_again else trained * block
        outside = 0 if self.frozen else self.kept_outside
        return float(self.clips * (of_blocks + outside + (n * d if self.vocabulary else 0)))

    def loss_values(self, rows: int) -> float:
        """Numbers that the choice among words needs besides, on ``rows``: the gradient of the output weight, and two
        blocks of logits (``losses.captioning.chunked_captioning_loss``)."""
        return float(self.vocabulary * (self.width + 2 * min(self.chunk_size, rows * self.clips * self.tokens)))


def passes(
    config: Config,
    model: MultitaskModel,
    text_tokens: int | Mapping[str, int],
    views: float | None = None,
    losses: Collection[str] | None = None,
    num_visible: int | None = None,
    shared_pass: bool | None = None,
) -> list[Pass]:
    """The transformers that a row goes through in a training step.

    Args:
        text_tokens: of a text; or, by loss, of those that ``contrastive`` and ``captioning`` read.
        views: clips of a row, ``None`` for as many as the config draws.
        losses: those that the step computes, ``None`` for all that are in use.
        num_visible: tokens that its masked pass shows, ``None`` for the most that a step of the run does.
        shared_pass: whether that pass serves all losses, ``None`` for what takes the most at any step of the run.
    """
    if shared_pass is None:
        shared_pass = config.shared_pass.enabled and config.shared_pass.unmasked_tail == 0
    encoder, captioning, masked = config.video_encoder, config.captioning, config.masked_modeling
    assert encoder.width is not None and encoder.depth is not None
    d, n, c = encoder.width, config.num_tokens, int(bool(encoder.class_token))
    views = config.data.num_videos if views is None else views
    tubelet, stem = config.tubelet, encoder.stem == "convolutional"
    k = num_visible or config.visible_range[1]
    seen_by_text = k if shared_pass else n
    pixels = math.prod(tubelet)

    def computes(loss: str) -> bool:
        return config.loss.is_used(loss) and (losses is None or loss in losses)

    def length(loss: str) -> int:
        return text_tokens if isinstance(text_tokens, int) else text_tokens[loss]

    def rows(loss: str) -> float:
        return views if config.level(loss) == "clip" else 1

    def encoded(shown: int) -> Pass:
        # Dense groups where all are shown; else all of them under a mask.
        along, across = (config.grid[0], n // config.grid[0]) if shown == n else (shown, shown)
        return Pass(
            encoder.depth or 0,
            d,
            round((encoder.mlp_ratio or 4.0) * d),
            c + shown,
            views,
            outside=multiply_adds(tubelet, d, encoder.stem_width or 0, n) if stem else shown * pixels * d,
            kept_outside=saved_values(tubelet, d, encoder.stem_width or 0, n) if stem else 0,
            looks=(along, c + across) if encoder.attention == "divided" else (),
            frozen=round(encoder.freeze * (encoder.depth or 0)),
            computed_again=encoder.checkpoint_activations,
        )

    def staged() -> list[Pass]:
        # MViTv2-S pools queries from stage to stage, and the keys and values of each to the last one's grid.
        frozen, made = round(encoder.freeze * (encoder.depth or 0)), []
        for layers, width, heads, tokens in _MVIT_STAGES:
            kept = min(layers, frozen)
            shape = (layers, width, 4 * width, c + tokens)
            made.append(
                Pass(
                    *shape,
                    views,
                    looks=(c + n,),
                    frozen=kept,
                    computed_again=encoder.checkpoint_activations,
                    scores=3 * heads * (c + n),
                )
            )
            frozen -= kept
        return made

    def encodings(shown: int) -> list[Pass]:
        return staged() if encoder.name == "mvit" else [encoded(shown)]

    def of_teacher(source: str, field: str) -> list[Pass]:
        theirs = teacher_config(source, field)
        part, tokens = theirs.video_encoder, theirs.num_tokens
        width = part.width or d
        outside = tokens * math.prod(theirs.tubelet) * width
        if part.stem == "convolutional":
            outside = multiply_adds(theirs.tubelet, width, part.stem_width or 0, tokens)
        shape = (part.depth or 0, width, round((part.mlp_ratio or 4.0) * width), tokens)
        looks = (theirs.grid[0], tokens // theirs.grid[0]) if part.attention == "divided" else ()
        return [Pass(*shape, views, outside=outside, looks=looks)]

    def forward_only(parts: list[Pass]) -> list[Pass]:
        return [replace(part, frozen=part.layers, computed_again=False) for part in parts]

    found, distilled = [], config.distillation
    learns = computes("distillation")
    embeds = computes("contrastive") or (learns and distilled.teacher is not None)
    if embeds or computes("captioning") or computes("grounding"):
        found += encodings(seen_by_text)
    if embeds and encoder.pool == "attention":
        m = c + seen_by_text
        found.append(Pass(0, d, 0, m, views, outside=2 * m * d * d + 2 * m * d + 10 * d * d))
    if model.text_encoder is not None and embeds:
        about: Any = model.text_encoder.transformer.config
        width, layers = model.text_encoder.width, getattr(about, "num_hidden_layers", 12)
        hidden = getattr(about, "intermediate_size", 4 * width)
        frozen = round(config.text_encoder.freeze * layers)
        found.append(Pass(layers, width, hidden, length("contrastive"), rows("contrastive"), frozen=frozen))
        if learns and distilled.teacher is not None:  # its text encoder is taken for one like ours
            found += forward_only(found[-1:])
    if learns and distilled.local_views > 0:
        hidden, bottleneck = distilled.head_hidden_size, distilled.head_bottleneck_size
        head = (d + hidden + bottleneck) * hidden + bottleneck * distilled.num_prototypes
        parts = encodings(math.prod(distilled.block_size(config.grid)))
        found += [replace(part, clips=distilled.local_views * part.clips) for part in parts]
        times = distilled.local_views + 1 / 3  # a third of a training step: the teacher's head, forward alone
        found += [*forward_only(encodings(n)), Pass(0, d, 0, 1, times * views, outside=head)]
    if model.captioning_decoder is not None and computes("captioning"):
        assert captioning.vocab_size is not None
        shape = (captioning.num_layers, captioning.hidden_size, captioning.intermediate_size, length("captioning") - 1)
        clips = rows("captioning")
        summaries = len(SEGMENTS) if model.lesion_summary is not None else 0
        seen = round(views / clips * (c + seen_by_text + summaries)) if clips else 0
        found.append(
            Pass(
                *shape,
                clips,
                memory=seen,
                memory_width=d,
                vocabulary=captioning.vocab_size,
                chunk_size=captioning.chunk_size,
            )
        )
    if model.masked_video_modeling is not None and computes("masked_modeling"):
        width = masked.decoder_hidden_size
        if not (shared_pass and (embeds or computes("captioning"))):
            # A wrapped backbone computes hidden tokens too.
            found += encodings(n if hasattr(model.video_encoder, "prepare_masking") else k)
        asked = num_asked(n - k, masked.decoder_drop)
        predicted = asked + (k if masked.visible_weight > 0 else 0)
        outside = k * d * width + predicted * width * config.masked_target_size
        found.append(Pass(masked.decoder_layers, width, 4 * width, k + asked, views, outside=outside))
        if masked.target == "ema":
            found += forward_only(encodings(n))
        elif masked.teacher is not None:
            found += forward_only(of_teacher(masked.teacher, "masked_modeling.teacher"))
    if learns and distilled.teacher is not None:
        found += forward_only(of_teacher(distilled.teacher, "distillation.teacher"))
    return found


def step_flops(found: list[Pass], rows: int) -> float:
    """Operations of a training step on ``rows``."""
    return rows * sum(part.step_flops for part in found)


def embedding_flops(
    config: Config, model: MultitaskModel, text_tokens: int, rows: int, shared_pass: bool | None = None
) -> float:
    """Operations of the pass that makes embeddings first where micro-batches are accumulated (``training/step.py``), on
    ``rows`` of one of them; 0 where there is none."""
    if config.training.accumulation_steps == 1 or not config.loss.is_used("contrastive"):
        return 0.0
    once = passes(config, model, text_tokens, losses=["contrastive"], shared_pass=shared_pass)
    return rows * sum(part.useful_flops / 3 for part in once)


def is_exact(config: Config, model: MultitaskModel) -> bool:
    """Whether ``passes`` are what is really computed: of our encoder, and a text encoder of BERT's kind. Of any other
    they are a guess, good enough to plan with."""
    if config.video_encoder.name != "tubelet":
        return False
    about: Any = model.text_encoder.transformer.config if model.text_encoder is not None else None
    return about is None or about.model_type in _TEXT_KINDS

"""Texts that are drawn, that a processor restricts, and what is told of their probability."""

import pytest
import scipy.stats
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from deepcoro.config_writing import Writing
from deepcoro.models.generation import generate
from tests.models.by_hand import (
    END,
    PAD,
    START,
    beams_by_hand,
    greedy_by_hand,
    made,
    memory,
    next_log_probs,
    padded,
)


@pytest.fixture(scope="module")
def decoder():
    return made(30)


@pytest.fixture(scope="module")
def terse():
    """Few words, one of them the end: texts of many lengths."""
    return made(7, seed=2, louder=12)


# Drawing.


def draws(decoder, num, **how):
    """The first word of ``num`` texts of the same clip -> how often each."""
    video, mask = memory(rows=1)
    many = generate(
        decoder,
        video.expand(num, -1, -1),
        mask.expand(num, -1),
        START,
        END,
        PAD,
        Writing(max_generation_length=1, do_sample=True, **how),
        generator=torch.Generator().manual_seed(0),
    ).ids
    return torch.bincount(many.flatten(), minlength=decoder.token_embedding.num_embeddings).double()


def assert_drawn_from(found, wanted):
    kept = wanted > 0
    assert found[~kept].sum() == 0
    if kept.sum() > 1:
        assert scipy.stats.chisquare(found[kept], found.sum() * wanted[kept] / wanted.sum()).pvalue > 0.01


@pytest.mark.parametrize("temperature", [1.0, 0.5, 8.0])
def test_a_drawn_word_has_the_distribution_of_the_logits_at_its_temperature(temperature):
    decoder = made(80)  # more words than the 50 that transformers would draw among by itself
    wanted = (next_log_probs(decoder, [START], *(x[0] for x in memory(rows=1))) / temperature).softmax(0)
    assert_drawn_from(draws(decoder, 8000, temperature=temperature), wanted)


@pytest.mark.parametrize("top_k", [1, 4, 29])
def test_top_k_draws_among_the_k_most_probable(decoder, top_k):
    wanted = (next_log_probs(decoder, [START], *(x[0] for x in memory(rows=1))) / 2).softmax(0)
    wanted[wanted.argsort(descending=True)[top_k:]] = 0
    assert_drawn_from(draws(decoder, 4000, temperature=2.0, top_k=top_k), wanted)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_top_p_draws_among_the_fewest_of_that_probability(decoder, top_p):
    wanted = next_log_probs(decoder, [START], *(x[0] for x in memory(rows=1))).exp()
    together, kept = 0.0, []
    for token in wanted.argsort(descending=True).tolist():
        kept.append(token)
        together += wanted[token].item()
        if together >= top_p:
            break
    assert len(kept) < 30
    wanted[[token for token in range(30) if token not in kept]] = 0
    assert_drawn_from(draws(decoder, 4000, top_p=top_p), wanted)


def test_drawing_follows_its_generator_and_leaves_torchs_alone(decoder):
    def write(seed, temperature):
        how = Writing(max_generation_length=8, do_sample=True, temperature=temperature)
        chance = torch.Generator().manual_seed(seed)
        return generate(decoder, *memory(), START, END, PAD, how, generator=chance).ids.tolist()

    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    first = write(0, 5.0)
    assert torch.equal(torch.rand(1), wanted)
    assert write(0, 5.0) == first
    assert len({str(write(seed, 5.0)) for seed in range(6)}) > 1
    assert (
        write(0, 1e-3) == generate(decoder, *memory(), START, END, PAD, Writing(max_generation_length=8)).ids.tolist()
    )


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_a_row_does_not_depend_on_its_neighbours(decoder, how):
    video, mask = memory(unequal=True)
    writing = Writing(max_generation_length=8, **how)

    def row_1():
        chance = torch.Generator().manual_seed(0)
        return generate(decoder, video, mask, START, None, PAD, writing, generator=chance).ids[1].tolist()

    before = row_1()
    video[[0, 2]] += 1
    assert row_1() == before
    video[1] += 1
    assert row_1() != before


# What a processor forbids, and what is told of a text.


class OnlyAllowed(LogitsProcessor):
    """Each clip has its own words; what it is shown is kept."""

    def __init__(self, allowed, num_beams):
        self.allowed, self.num_beams, self.shown = allowed, num_beams, []

    def __call__(self, input_ids, scores):
        self.shown.append(input_ids.clone())
        for row in range(len(scores)):
            forbidden = [t for t in range(scores.shape[1]) if t not in self.allowed[row // self.num_beams]]
            scores[row, forbidden] = -torch.inf
        return scores


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_processor_says_what_may_follow(terse, num_beams):
    video, mask = memory(rows=2, unequal=True)
    allowed = [{1, 4, END}, {5}]  # the second leaves no choice to its other beams
    own = OnlyAllowed(allowed, num_beams)
    writing = Writing(max_generation_length=6, num_beams=num_beams)
    written = generate(terse, video, mask, START, END, PAD, writing, LogitsProcessorList([own]), log_probs=True)
    if num_beams == 1:
        wanted = greedy_by_hand(terse, video, mask, 6, allowed=allowed)
    else:
        wanted = [beams_by_hand(terse, video[row], mask[row], 3, 1.0, 6, allowed[row])[1] for row in range(2)]
    assert written.ids.tolist() == padded(wanted)
    assert [tuple(ids.shape) for ids in own.shown] == [(2 * num_beams, 1 + place) for place in range(len(own.shown))]
    assert all((ids[:, 0] == START).all() for ids in own.shown)
    assert_own_log_probs(terse, video, mask, written)


def test_a_row_that_may_say_nothing_gets_padding(terse):
    video, mask = memory(rows=2)
    writing = Writing(max_generation_length=4, num_beams=3)
    silent = LogitsProcessorList([OnlyAllowed([set(), {5, 6}], 3)])
    written = generate(terse, video, mask, START, None, PAD, writing, silent, log_probs=True)
    assert (written.ids[0] == PAD).all() and (written.log_probs[0] == 0).all()
    assert set(written.ids[1].tolist()) <= {5, 6}


def assert_own_log_probs(decoder, video, mask, written):
    for row, text in enumerate(written.ids.tolist()):
        length = text.index(END) + 1 if END in text else len(text)
        wanted = [next_log_probs(decoder, [START, *text[:n]], video[row], mask[row])[text[n]] for n in range(length)]
        assert written.log_probs[row, :length].tolist() == pytest.approx([x.item() for x in wanted], abs=1e-5)
        assert (written.log_probs[row, length:] == 0).all()


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 3.0, "top_k": 5}])
def test_log_probabilities_are_the_decoders_own(terse, how):
    video, mask = memory(rows=5, unequal=True)
    writing = Writing(max_generation_length=9, **how)
    chance = torch.Generator().manual_seed(0)
    written = generate(terse, video, mask, START, END, PAD, writing, generator=chance, log_probs=True)
    assert (written.ids == PAD).any()
    assert_own_log_probs(terse, video, mask, written)


def test_writing_in_half_precision_says_nearly_the_same(decoder):
    decoder = made(30).float()
    video, mask = memory(unequal=True)
    with torch.autocast("cpu", torch.bfloat16):
        written = generate(decoder, video.float(), mask, START, END, PAD, Writing(num_beams=2), log_probs=True)
    length = [row.index(END) + 1 if END in row else len(row) for row in written.ids.tolist()]
    inputs = torch.cat([torch.full((3, 1), START), written.ids[:, :-1]], dim=1)
    own = decoder(inputs, video.float(), mask).log_softmax(-1).gather(2, written.ids[..., None])[..., 0]
    for row, end in enumerate(length):
        assert torch.allclose(written.log_probs[row, :end], own[row, :end], atol=0.2)


def test_no_gradient_is_kept_while_writing(decoder):
    written = generate(decoder, *memory(), START, END, PAD, Writing(max_generation_length=3), log_probs=True)
    assert not written.ids.requires_grad and not written.log_probs.requires_grad

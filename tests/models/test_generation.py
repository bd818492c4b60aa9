"""Writing with a cache, in batches and by beams gives what a decoder without any of that gives, one row at a time."""

import itertools

import pytest
import torch
from transformers.generation import utils

from deepcoro.config_writing import Writing
from deepcoro.models.generation import generate
from tests.models.by_hand import END, PAD, START, beams_by_hand, greedy_by_hand, made, memory, padded


@pytest.fixture(scope="module")
def decoder():
    return made(30)


@pytest.fixture(scope="module")
def terse():
    """Few words, one of them the end: texts of many lengths."""
    return made(7, seed=2, louder=12)


# What is kept from token to token.


@pytest.mark.parametrize("given", [1, 4])
def test_cached_steps_have_the_logits_of_teacher_forcing(decoder, given):
    decoder = made(30).float()
    video, mask = (x.float() if x.is_floating_point() else x for x in memory(unequal=True))
    ids = torch.randint(4, 30, (3, 12), generator=torch.Generator().manual_seed(0))
    wanted = decoder(ids, video, mask)
    state = decoder.look(video, mask, 12)
    assert torch.allclose(decoder.go_on(ids[:, :given], state), wanted[:, given - 1], atol=1e-5)
    for place in range(given, 12):
        assert torch.allclose(decoder.go_on(ids[:, place : place + 1], state), wanted[:, place], atol=1e-5)
    assert state.get_seq_length() == 12


def test_reordered_texts_go_on_from_those_they_were_taken_from(decoder):
    video, mask = memory(rows=2, unequal=True)
    ids = torch.randint(4, 30, (6, 5), generator=torch.Generator().manual_seed(0))  # three texts a clip
    state = decoder.look(video, mask, 6)
    decoder.go_on(ids, state)
    rows = torch.tensor([2, 2, 0, 3, 5, 3])
    state.reorder_cache(rows)
    following = torch.randint(4, 30, (6, 1), generator=torch.Generator().manual_seed(1))
    clip = torch.tensor([0, 0, 0, 1, 1, 1])
    wanted = decoder(torch.cat([ids[rows], following], dim=1), video[clip], mask[clip])[:, -1]
    assert torch.allclose(decoder.go_on(following, state), wanted, atol=1e-12)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_video_is_looked_at_once_a_clip_and_only_last_logits_are_made(decoder, num_beams):
    seen = {"video": [], "tokens": [], "logits": []}
    block = decoder.blocks[1]
    hooks = [
        block.cross_attention.key_value.register_forward_hook(lambda _, x, y: seen["video"].append(len(y))),
        block.norm1.register_forward_hook(lambda _, x, y: seen["tokens"].append(tuple(y.shape[:2]))),
        decoder.norm.register_forward_hook(lambda _, x, y: seen["logits"].append(y.shape[:-1].numel())),
    ]
    start = torch.full((2, 4), 5)
    generate(decoder, *memory(rows=2), start, None, PAD, Writing(max_generation_length=6, num_beams=num_beams))
    for hook in hooks:
        hook.remove()
    texts = 2 * num_beams
    assert seen["video"] == [2]
    assert seen["tokens"] == [(texts, 4)] + [(texts, 1)] * 5
    assert seen["logits"] == [texts] * 6


# Greedy.


@pytest.mark.parametrize("max_length", [1, 5, 12])
def test_greedy_is_that_of_a_decoder_without_cache(decoder, terse, max_length):
    for one in (decoder, terse):
        video, mask = memory(rows=5, unequal=True)
        wanted = greedy_by_hand(one, video, mask, max_length)
        assert len({tuple(row) for row in wanted}) > 1
        written = generate(one, video, mask, START, END, PAD, Writing(max_generation_length=max_length)).ids
        assert written.tolist() == padded(wanted)


def test_a_row_ends_with_its_end_token_and_padding_follows(decoder):
    video, mask = memory(rows=5)
    free = greedy_by_hand(decoder, video, mask, 8, end=-1)
    end = free[0][2]  # a word that the first row says early
    wanted = greedy_by_hand(decoder, video, mask, 8, end)
    assert len(wanted[0]) <= 3 < max(len(row) for row in wanted)
    assert generate(decoder, video, mask, START, end, PAD, Writing(max_generation_length=8)).ids.tolist() == padded(
        wanted
    )


def test_writing_stops_when_all_rows_have_ended(decoder):
    video, mask = memory(rows=1)
    free = greedy_by_hand(decoder, video, mask, 8, end=-1)[0]
    calls = []
    hook = decoder.norm.register_forward_hook(lambda *_: calls.append(1))
    written = generate(decoder, video, mask, START, free[1], PAD, Writing(max_generation_length=8)).ids
    hook.remove()
    assert written.shape[1] == len(calls) == free.index(free[1]) + 1


def test_given_tokens_are_gone_on_from_and_not_repeated(decoder):
    video, mask = memory(unequal=True)
    given = [START, 9, 21]
    wanted = greedy_by_hand(decoder, video, mask, 5, given=given)
    assert wanted != greedy_by_hand(decoder, video, mask, 5)
    start = torch.tensor([given] * 3)
    assert generate(decoder, video, mask, start, END, PAD, Writing(max_generation_length=5)).ids.tolist() == padded(
        wanted
    )


# Beam search.


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3])
def test_beam_search_is_that_of_a_plain_one_row_by_row(terse, num_beams, penalty):
    video, mask = memory(rows=6, unequal=True, seed=3)
    plain = [beams_by_hand(terse, video[row], mask[row], num_beams, penalty, 9) for row in range(6)]
    writing = Writing(max_generation_length=9, num_beams=num_beams, length_penalty=penalty)
    written = generate(terse, video, mask, START, END, PAD, writing, log_probs=True)
    assert written.ids.tolist() == padded([text for _, text in plain])
    lengths = torch.tensor([len(text) for _, text in plain])
    scores = written.log_probs.sum(dim=1) / lengths**penalty
    assert scores.tolist() == pytest.approx([score for score, _ in plain], abs=1e-5)


def test_beam_search_finds_what_greedy_misses(terse):
    video, mask = memory(rows=6, unequal=True, seed=3)

    def total(**how):
        written = generate(terse, video, mask, START, END, PAD, Writing(max_generation_length=9, **how), log_probs=True)
        return written.log_probs.sum(dim=1)

    greedy, beams = total(), total(num_beams=5, length_penalty=0.0)
    assert (beams > greedy + 0.1).any()


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.7, 1.0, 2.0])
def test_beams_for_every_text_find_the_best_of_all_texts(penalty):
    tiny = made(4, seed=1, louder=12)
    video, mask = memory(rows=3, unequal=True)
    wanted = []
    for row in range(3):
        best = (-torch.inf, [])
        for length in range(1, 5):
            for text in itertools.product(range(4), repeat=length):
                if END in text[:-1] or (length < 4 and text[-1] != END):
                    continue  # goes on after its end, or is not finished
                logits = tiny(torch.tensor([[START, *text[:-1]]]), video[row : row + 1], mask[row : row + 1])[0]
                total = logits.log_softmax(-1)[range(length), list(text)].sum().item()
                best = max(best, (total / length**penalty, list(text)))
        wanted.append(best[1])
    writing = Writing(max_generation_length=4, num_beams=128, length_penalty=penalty)
    assert generate(tiny, video, mask, START, END, PAD, writing).ids.tolist() == padded(wanted)


def test_beam_search_ends_as_soon_as_no_better_text_can_come(terse):
    """A running text of log-probability S is worth S / longest ** penalty at most."""
    video, mask = memory(rows=1)
    calls = []
    hook = terse.norm.register_forward_hook(lambda *_: calls.append(1))
    generate(terse, video, mask, START, END, PAD, Writing(max_generation_length=12, num_beams=2, length_penalty=-1.0))
    hook.remove()
    assert len(calls) < 12


# Ends and edges.


@pytest.mark.parametrize("num_beams", [1, 2])
def test_no_text_is_longer_than_the_positions(decoder, num_beams):
    """The last token needs no position, as nothing follows it."""
    writing = Writing(max_generation_length=100, num_beams=num_beams)
    assert generate(decoder, *memory(), START, None, PAD, writing).ids.shape[1] == 12
    assert generate(decoder, *memory(), torch.full((3, 10), 5), None, PAD, writing, log_probs=True).ids.shape[1] == 3
    assert generate(decoder, *memory(), torch.full((3, 12), 5), None, PAD, writing, log_probs=True).ids.shape[1] == 1
    with pytest.raises(ValueError, match=r"13 tokens are given of each text, more than the 12 positions"):
        generate(decoder, *memory(), torch.full((3, 13), 5), END, PAD)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_row_without_any_video_token_gets_no_text_and_disturbs_no_other(decoder, num_beams):
    video, mask = memory(unequal=True)
    writing = Writing(max_generation_length=6, num_beams=num_beams)
    wanted = generate(decoder, video, mask, START, END, PAD, writing, log_probs=True)
    mask[1] = False
    written = generate(decoder, video, mask, START, END, PAD, writing, log_probs=True)
    assert (written.ids[1] == PAD).all() and (written.log_probs[1] == 0).all()
    assert written.ids[[0, 2]].tolist() == wanted.ids[[0, 2]].tolist()
    mask[:] = False
    assert (generate(decoder, video, mask, START, END, PAD, writing).ids == PAD).all()


def test_no_rows_give_no_texts(decoder):
    video, mask = memory()
    written = generate(decoder, video[:0], mask[:0], START, END, PAD, log_probs=True)
    assert written.ids.shape == written.log_probs.shape == (0, 0)
    assert generate(decoder, video[:0], mask[:0], START, END, PAD, Writing(num_beams=3)).log_probs is None


def test_beams_need_two_tokens_and_may_be_more_than_there_are():
    writing = Writing(max_generation_length=3, num_beams=5)
    with pytest.raises(ValueError, match="num_beams is 5 and the decoder has 1 token"):
        generate(made(1), *memory(), 0, None, 0, writing)
    assert generate(made(2), *memory(), 0, None, 0, writing).ids.shape == (3, 3)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize(("start", "pad"), [(PAD, PAD), (START, END)])
def test_nothing_is_said_of_masks_and_padding(decoder, num_beams, start, pad, monkeypatch):
    """Every given token counts, whichever it is."""
    said = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(utils.logger, name, lambda *text: said.append(text))
    writing = Writing(max_generation_length=2, num_beams=num_beams)
    generate(decoder, *memory(), start, END, pad, writing, log_probs=True)
    assert said == []


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True}])
@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_video_that_is_not_finite_gets_no_text(decoder, how, strange):
    video, mask = memory(unequal=True)
    video[1, -1, 3] = strange  # though it is masked: NaN times a weight of 0 is NaN
    assert not mask[1, -1]
    with pytest.raises(ValueError, match=r"of 1 of 3 rows \(the first is row 1\) are not finite"):
        generate(decoder, video, mask, START, END, PAD, Writing(max_generation_length=3, **how))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"video_mask": torch.ones(3, 6, dtype=torch.bool)}, r"mask \[B, M\].* received \(3, 7, 20\) and \(3, 6\)"),
        ({"video_tokens": torch.zeros(3, 0, 20), "video_mask": torch.ones(3, 0, dtype=torch.bool)}, "M 1 or more"),
        ({"video_mask": torch.ones(3, 7, dtype=torch.long)}, "mask of bool, .* received torch.int64"),
        ({"video_mask": torch.ones(3, 7)}, "mask of bool, .* received torch.float32"),
        ({"start": torch.full((2, 1), 5)}, r"each of the 3 texts starts with, .* received \(2, 1\) of torch.int64"),
        ({"start": torch.full((3, 0), 5)}, r"P 1 or more, received \(3, 0\)"),
        ({"start": torch.full((3, 1), 5.0)}, "received .* of torch.float32"),
        ({"start": 30}, "a given token of 30 to 30 is none of the decoder's 30 tokens"),
        ({"end_id": -1}, "end_id -1 is none of the decoder's 30 tokens"),
        ({"pad_id": 30}, "pad_id 30 is none of"),
    ],
)
def test_what_does_not_fit_is_refused(decoder, changed, message):
    video, mask = memory()
    asked = {"video_tokens": video, "video_mask": mask, "start": START, "end_id": END, "pad_id": PAD} | changed
    with pytest.raises(ValueError, match=message):
        generate(decoder, **asked)

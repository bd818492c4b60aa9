"""Writing with a cache, in batches and by beams gives what a decoder without any of that gives, one row at a time."""

import itertools

import pytest
import scipy.stats
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from deepcoro.config_writing import Writing
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.generation import generate

START, END, PAD = 2, 3, 0


def made(vocabulary, seed=0, positions=12, louder=4):
    torch.manual_seed(seed)
    decoder = CaptioningDecoder(vocabulary, 16, 2, 2, 32, positions, memory_size=20, dropout=0.0).double().eval()
    for parameter in decoder.parameters():  # an untrained decoder repeats itself; a louder one says various things
        if parameter.ndim > 1:
            parameter.data *= louder
    return decoder


@pytest.fixture(scope="module")
def decoder():
    return made(30)


@pytest.fixture(scope="module")
def terse():
    """Few words, one of them the end: texts of many lengths."""
    return made(7, seed=2, louder=12)


def memory(rows=3, tokens=7, seed=0, unequal=False):
    chance = torch.Generator().manual_seed(seed)
    video = torch.randn(rows, tokens, 20, generator=chance, dtype=torch.float64)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    if unequal:
        for row in range(rows):
            mask[row, 1 + (3 * row) % tokens :] = False
    return video, mask


@torch.no_grad()
def next_log_probs(decoder, text, video, mask):
    """Of the token after ``text``, by a full forward pass over it: [V]."""
    return decoder(torch.tensor([text]), video[None], mask[None])[0, -1].log_softmax(-1)


def greedy_by_hand(decoder, video, mask, max_length, end=END, given=(START,), allowed=None):
    """No cache, no batch: rows of different lengths."""
    rows = []
    for row in range(len(video)):
        text = list(given)
        while len(text) < len(given) + max_length:
            scores = next_log_probs(decoder, text, video[row], mask[row])
            if allowed is not None:
                scores[[token for token in range(len(scores)) if token not in allowed[row]]] = -torch.inf
            text.append(int(scores.argmax()))
            if text[-1] == end:
                break
        rows.append(text[len(given) :])
    return rows


def beams_by_hand(decoder, video, mask, num_beams, penalty, max_length, allowed=None):
    """(score, text) of one row: of the 2 K best continuations those of the first K that end are kept, and the first K
    that do not end go on, to the very last token."""
    running, ended = [(0.0, [START])], []
    for length in range(1, max_length + 1):
        continued = []
        for score, text in running:
            scores = next_log_probs(decoder, text, video, mask).tolist()
            continued += [
                (score + own, [*text, token]) for token, own in enumerate(scores) if allowed is None or token in allowed
            ]
        best = sorted(continued, reverse=True)[: 2 * num_beams]
        over = [text[-1] == END or length == max_length for _, text in best]
        ended += [(score / length**penalty, text[1:]) for (score, text), o in zip(best[:num_beams], over) if o]
        running = [pair for pair, o in zip(best, over) if not o][:num_beams]
    return max(ended)


def padded(rows):
    longest = max(len(row) for row in rows)
    return [row + [PAD] * (longest - len(row)) for row in rows]


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
    generate(terse, video, mask, START, END, PAD, Writing(max_generation_length=12, num_beams=2, length_penalty=-3.0))
    hook.remove()
    assert len(calls) < 12


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
        write(0, 1e-4) == generate(decoder, *memory(), START, END, PAD, Writing(max_generation_length=8)).ids.tolist()
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"video_mask": torch.ones(3, 6, dtype=torch.bool)}, r"mask \[B, M\].* received \(3, 7, 20\) and \(3, 6\)"),
        ({"video_tokens": torch.zeros(3, 0, 20), "video_mask": torch.ones(3, 0, dtype=torch.bool)}, "M 1 or more"),
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

"""Whatever a decoder wants to say, what it writes under the automaton is a report, spelled as its tokenizer spells."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from deepcoro.config_writing import Writing
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import ConfigError
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.generation import generate
from deepcoro.models.structured import ENDED, LOST, TokenAutomaton
from deepcoro.models.structured_writing import StructuredReports
from deepcoro.reports.automaton import ReportAutomaton
from deepcoro.reports.grammar import parse_report, render_report
from deepcoro.reports.vocabulary import DOMINANCES, TREES
from tests.models.words import TOKENIZERS, make_tokenizers, sample_reports
from tests.reports.lists import finding_lists

ANY = ReportAutomaton.of()
KINDS = [(d, t) for d in ("right", "left", None) for t in (None, *TREES)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return make_tokenizers(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def any_report(tokenizers):
    return {name: TokenAutomaton(ANY, words) for name, words in tokenizers.items()}


def decoder_of(vocab_size, seed=0):
    torch.manual_seed(seed)
    decoder = CaptioningDecoder(vocab_size, 16, 1, 2, 32, 256, dropout=0.0).eval()
    for parameter in decoder.parameters():  # louder than at its start, so that it has wishes
        if parameter.ndim > 1:
            parameter.data *= 4
    return decoder


def write(decoder, writer, start, rows, max_new_tokens, pad, seed=0):
    """Sampled word by word, with a full forward pass for each; ids [rows, L] with the given ones."""
    chance = torch.Generator().manual_seed(seed)
    memory = torch.randn(rows, 3, 16, generator=chance), torch.ones(rows, 3, dtype=torch.bool)
    ids = torch.tensor([list(start)] * rows)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            scores = writer(ids, decoder(ids, *memory)[:, -1])
        assert torch.isfinite(scores).any(dim=1).all()
        ids = torch.cat([ids, torch.multinomial(scores.softmax(-1), 1, generator=chance)], dim=1)
        if (ids[:, -1] == pad).all():
            break
    return ids


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50)
@given(findings=finding_lists(), kind=st.sampled_from([(d, t) for d in (None, *DOMINANCES) for t in (None, *TREES)]))
def test_every_report_is_accepted_as_the_tokenizer_spells_it(tokenizers, any_report, name, findings, kind):
    words, automaton = tokenizers[name], any_report[name]
    ids, lengths = words.encode([render_report(findings, *kind)])
    report = ids[0, 1 : lengths[0]].tolist()
    if lengths[0] == words.max_length:  # cut, and closed by the tokenizer
        assert automaton.run(report[:-1]) is not LOST
        return
    state = automaton.start
    for place, token in enumerate(report):
        assert token in automaton.allowed(state)
        assert token in automaton.allowed(state, left=len(report) - place)
        assert automaton.needed(state) <= len(report) - place
        state = automaton.step(state, token)
    assert state is ENDED


@pytest.mark.parametrize("kind", KINDS)
def test_reports_of_random_weights_all_read_back(tokenizers, kind):
    """9 kinds of 112 reports: 1,008 in all, a third of them pressed for room."""
    words = tokenizers["small"]
    automaton = TokenAutomaton(ReportAutomaton.of([kind[0]], [kind[1]]), words)
    decoder, texts = decoder_of(words.vocab_size), set()
    for seed, (rows, room) in enumerate(((38, automaton.needed(automaton.start)), (37, 60), (37, 200))):
        writer = StructuredReports(automaton, room)
        for ids in write(decoder, writer, automaton.prefix_ids, rows, room, words.pad_id, seed).tolist():
            assert ids.count(words.end_id) == 1
            text = words.decode(ids)
            read = parse_report(text)
            assert read.unread == ()
            assert render_report(read.findings, *kind) == text
            texts.add(text)
    assert len(texts) > 40


@pytest.mark.parametrize("name", TOKENIZERS)
def test_reports_of_any_kind_and_tokenizer_read_back(tokenizers, any_report, name):
    words, automaton = tokenizers[name], any_report[name]
    ids = write(
        decoder_of(words.vocab_size), StructuredReports(automaton, 150), automaton.prefix_ids, 40, 150, words.pad_id
    )
    trees = set()
    for row in ids.tolist():
        text = words.decode(row)
        read = parse_report(text)
        trees.add(read.trees)
        assert read.unread == ()
        assert words.encode([text])[0][0].tolist() == [token for token in row if token != words.pad_id]
        written = [
            render_report(read.findings, dominance, read.tree)
            for dominance in ([read.dominance] if read.tree is None else DOMINANCES)
        ]
        assert text.lower() in [one.lower() for one in written]
    assert len(trees) > 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_masks_are_never_empty_and_never_lead_too_far(any_report, name):
    """The worst writer: of what is allowed always what needs most room to be closed."""
    automaton = any_report[name]
    fewest = automaton.needed(automaton.start)
    for room in range(fewest, fewest + 40):
        state, left = automaton.start, room
        while state is not ENDED:
            allowed = automaton.allowed(state, left)
            assert allowed
            state = max((automaton.step(state, token) for token in allowed), key=automaton.needed)
            left -= 1
            assert automaton.needed(state) <= left


def test_what_may_not_follow_is_lost_and_may_only_end(tokenizers, any_report):
    words, automaton = tokenizers["small"], any_report["small"]
    forbidden = next(t for t in range(5, words.vocab_size) if t not in automaton.allowed(automaton.start))
    assert automaton.step(automaton.start, forbidden) is LOST
    assert automaton.allowed(LOST) == [words.end_id]
    assert automaton.run([words.end_id, words.pad_id], LOST) is LOST
    ids = words.encode(["Right coronary tree. RCA: normal."])[0][0, 1:].tolist()
    ended = automaton.run(ids)
    assert ended is ENDED
    assert automaton.allowed(ended) == [words.pad_id]
    assert automaton.run([words.pad_id] * 3, ended) is ENDED


def test_beams_may_be_shuffled_dropped_and_copied(tokenizers, any_report):
    words, automaton = tokenizers["small"], any_report["small"]
    scores = torch.zeros(6, words.vocab_size)
    chance = torch.Generator().manual_seed(0)
    writer = StructuredReports(automaton, 80)
    ids = torch.tensor([list(automaton.prefix_ids)] * 6)
    for _ in range(60):
        masked = writer(ids, scores)
        assert torch.equal(masked, StructuredReports(automaton, 80)(ids, scores))  # one that sees these rows first
        ids = torch.cat([ids, torch.multinomial(masked.softmax(-1), 1, generator=chance)], dim=1)
        ids = ids[torch.randint(0, 6, (6,), generator=chance)]


def test_each_row_may_have_its_own_kind_of_report(tokenizers):
    words = tokenizers["small"]
    trees = ["left", "right", "right"]
    automata = {tree: TokenAutomaton(ReportAutomaton.of(trees=[tree]), words) for tree in TREES}
    writer = StructuredReports([automata[tree] for tree in trees], 100)
    start = automata["left"].prefix_ids
    ids = write(decoder_of(words.vocab_size), writer, start, 6, 100, words.pad_id)  # two samples of each
    assert [parse_report(words.decode(row)).tree for row in ids.tolist()] == ["left"] * 2 + ["right"] * 4
    with pytest.raises(ValueError, match="4 rows and 3 automata"):
        writer(ids[:4], torch.zeros(4, words.vocab_size))


@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 4}, {"num_beams": 3, "do_sample": True, "top_k": 5}])
def test_a_generation_of_transformers_writes_reports(tokenizers, any_report, how):
    words, automaton = tokenizers["small"], any_report["small"]
    torch.manual_seed(0)
    size = {"n_positions": 128, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.5}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=words.vocab_size, **size)).eval()
    ids = torch.tensor([list(automaton.prefix_ids)] * 5)
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=LogitsProcessorList([StructuredReports(automaton, 60)]),
        max_new_tokens=60,
        eos_token_id=words.end_id,
        pad_token_id=words.pad_id,
        **how,
    )
    for row in written.tolist():
        assert ANY.read(words.decode(row)) is not None


def test_beam_search_ends_long_reports_even_where_short_ones_are_favoured_most(tokenizers, any_report):
    """At the lowest length_penalty a score is a log-probability times a length."""
    words, automaton = tokenizers["small"], any_report["small"]
    decoder, room = decoder_of(words.vocab_size), 250
    video, mask = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, dtype=torch.bool)
    writing = Writing(max_generation_length=room, num_beams=3, length_penalty=-1.0)
    start, end, pad = words.start_id, words.end_id, words.pad_id
    writer = LogitsProcessorList([StructuredReports(automaton, room)])
    ids = generate(decoder, video, mask, start, end, pad, writing, writer).ids.tolist()
    assert max(row.index(end) for row in ids) > 60
    for row in ids:
        assert ANY.read(words.decode(row)) is not None


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("space", ["", " "])
def test_a_prefix_is_given_and_a_report_after_it_spelled_as_in_training(tokenizers, name, space):
    """Training spells each by itself: in byte-level BPE a word after a space would be another."""
    words, text = tokenizers[name], "Right coronary tree. RCA: normal."
    automaton = TokenAutomaton(ReportAutomaton.of(trees=["right"]), words, prefix=f"Report:{space}")
    trained = words.encode_after(["Report:"], [text])
    ids, given = trained.ids[0].tolist(), int(trained.prefix_length[0])
    assert ids[:given] == list(automaton.prefix_ids)
    assert automaton.run(ids[given:]) is ENDED
    writer = StructuredReports(automaton, 80)
    scores = torch.zeros(1, words.vocab_size)
    assert torch.isfinite(writer(torch.tensor([ids[:given]]), scores)).nonzero().tolist() == [[0, ids[given]]]
    with pytest.raises(ValueError, match="row 0 begins with"):
        other = [words.start_id, *ids[-2:-1] * (given - 1), *ids[given:-1]]  # another text of as many tokens
        writer(torch.tensor([other]), scores)
    with pytest.raises(ValueError, match="row 0 begins with"):
        StructuredReports(automaton, 80)(torch.tensor([[*ids[:given], ids[-2]]]), scores)


def test_a_room_too_small_for_any_report_is_refused(tokenizers):
    """Counted by hand: of a left-dominant heart "Right coronary tree. RCA: normal." in the tokenizer's own spelling."""
    words = tokenizers["small"]
    automaton = TokenAutomaton(ReportAutomaton.of(["left"], ["right"]), words)
    need = int(words.encode(["Right coronary tree. RCA: normal."])[1][0]) - 1  # the start token is given
    automaton.check_room(need)
    StructuredReports(automaton, need)
    with pytest.raises(ConfigError, match=f"max_generation_length is {need - 1}.*needs {need} tokens"):
        StructuredReports(automaton, need - 1)
    both = TokenAutomaton(ReportAutomaton.of(["left"], TREES), words)
    with pytest.raises(ConfigError, match="max_generation_length"):  # the left tree has more to say
        StructuredReports(both, need)


def test_a_tokenizer_without_the_words_is_refused_and_they_are_named():
    """One of whole words, which lacks two of them: its unknown token stands for both."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,:%()-"]
    spoken = {word for text in sample_reports() for word in re.findall(r"\w+", text)} | {str(n) for n in range(101)}
    vocabulary = [*marks, *(f"{n:02}" for n in range(10)), *sorted(spoken - {"Medina", "thrombus"})]
    pieces = BertWordPieceTokenizer(vocab={word: n for n, word in enumerate(vocabulary)}, lowercase=False)
    with pytest.raises(ConfigError, match=r"does not know 3 of the \d+ words .*Medina, thrombus,, thrombus\."):
        TokenAutomaton(ANY, ReportTokenizer(pieces.to_str(), 2, 3, 0, 512))


def test_a_tokenizer_that_joins_words_is_refused():
    """BPE over whole texts, spaces and all: "LAD: normal." may become one token with what stands before it."""
    from tokenizers.trainers import BpeTrainer

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    joined = Tokenizer(models.BPE(unk_token="[UNK]"))
    joined.pre_tokenizer = pre_tokenizers.Split(".", "merged_with_previous")
    joined.decoder = decoders.Fuse()
    joined.train_from_iterator(sample_reports(), BpeTrainer(vocab_size=400, special_tokens=marks, show_progress=False))
    frame = [(mark, joined.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    joined.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    with pytest.raises(ConfigError, match="word by word"):
        TokenAutomaton(ANY, ReportTokenizer(joined.to_str(), 2, 3, 0, 512))


def test_a_tokenizer_that_joins_only_two_words_is_refused(tokenizers):
    """Each of them by itself is spelled as ever."""
    joining = Tokenizer.from_str(tokenizers["small"].__reduce__()[1][0])
    joining.normalizer = normalizers.Replace("by PCI", "byPCI")
    start, end, pad = (joining.token_to_id(mark) for mark in ("[CLS]", "[SEP]", "[PAD]"))
    with pytest.raises(ConfigError, match="does not spell 'by PCI[,.]' word by word"):
        TokenAutomaton(ANY, ReportTokenizer(joining.to_str(), start, end, pad, 512))


def test_a_tokenizer_that_puts_more_than_start_and_end_around_a_text_is_refused(tokenizers):
    framing = Tokenizer.from_str(tokenizers["small"].__reduce__()[1][0])
    start, more, end, pad = (framing.token_to_id(mark) for mark in ("[CLS]", "[MASK]", "[SEP]", "[PAD]"))
    marks = [("[CLS]", start), ("[MASK]", more), ("[SEP]", end)]
    framing.post_processor = TemplateProcessing(single="[CLS] [MASK] $A [SEP]", special_tokens=marks)
    with pytest.raises(ConfigError, match=rf"puts the ids \[{start}, {more}, {end}\] around a text"):
        TokenAutomaton(ANY, ReportTokenizer(framing.to_str(), start, end, pad, 512))


@pytest.mark.parametrize("name", ["small", "lower_casing"])
def test_where_texts_are_cut_changes_no_spelling(tokenizers, any_report, name):
    cut = TokenAutomaton(ANY, ReportTokenizer(*tokenizers[name].__reduce__()[1][:4], 8))
    for phrase in ("Left coronary tree.", "in-stent restenosis 100%,", "severe calcification."):
        assert cut.spell(phrase) == any_report[name].spell(phrase)

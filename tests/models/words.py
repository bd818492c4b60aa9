"""Tokenizers that know every word of the canonical wording."""

import random

from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing

from deepcoro.data.text import ReportTokenizer
from deepcoro.models.text_encoder import load_tokenizer, save_small_text_encoder
from deepcoro.reports.automaton import ReportAutomaton

TOKENIZERS = ("small", "lower_casing", "byte_pairs")


def sample_reports():
    """500 reports that say about everything."""
    automaton, chance = ReportAutomaton.of(), random.Random(1)
    return [automaton.random_text(chance) for _ in range(500)]


def make_tokenizers(folder):
    """The small ones that we make, PubMedBERT's kind (lower case, numbers in pieces), and byte-level BPE."""
    samples = sample_reports()
    save_small_text_encoder(samples, folder, width=16, depth=1, num_heads=2, vocab_size=300)
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    lower = BertWordPieceTokenizer(lowercase=True)
    lower.train_from_iterator([text.lower() for text in samples], vocab_size=120, show_progress=False)
    lower = BertWordPieceTokenizer(vocab=lower.get_vocab(), lowercase=True)  # with start and end around a text
    bytes_ = ByteLevelBPETokenizer()
    bytes_.train_from_iterator(samples, vocab_size=600, special_tokens=marks, show_progress=False)
    frame = [(mark, bytes_.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    bytes_._tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    made = {"small": ReportTokenizer.from_pretrained(load_tokenizer(str(folder)), 512)}
    for name, tokenizer in (("lower_casing", lower), ("byte_pairs", bytes_)):
        start, end, pad = (tokenizer.token_to_id(mark) for mark in ("[CLS]", "[SEP]", "[PAD]"))
        made[name] = ReportTokenizer(tokenizer.to_str(), start, end, pad, 512)
    return made

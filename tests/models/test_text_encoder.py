"""Any Hugging Face encoder; padding is never read, and nothing trains that no loss can reach."""

import pytest
import torch

from deepcoro.errors import ConfigError
from deepcoro.models.text_encoder import TextEncoder, load_tokenizer, save_small_text_encoder


@pytest.fixture(scope="module")
def encoder(text_folder):
    return TextEncoder.from_pretrained(str(text_folder)).eval()


def test_padding_changes_nothing(encoder):
    ids = torch.tensor([[2, 10, 11, 3], [2, 12, 3, 0]])
    length = torch.tensor([4, 3])
    vectors = encoder(ids, length)
    assert vectors.shape == (2, encoder.width)
    wider = torch.cat([ids, torch.full((2, 5), 17)], dim=1)
    wider[1, 3] = 20
    assert torch.allclose(encoder(wider, length), vectors, atol=1e-6)
    assert not torch.allclose(encoder(wider, length + 1), vectors, atol=1e-3)


def test_it_is_what_transformers_says(encoder, text_folder):
    from transformers import AutoModel

    ids = torch.tensor([[2, 10, 11, 3]])
    other = AutoModel.from_pretrained(text_folder).eval()
    assert torch.allclose(encoder(ids, torch.tensor([4])), other(ids).last_hidden_state.mean(dim=1), atol=1e-6)


def test_no_pooler_is_kept(encoder, text_folder):
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]
    assert not [name for name, _ in TextEncoder.from_config(text_folder).named_parameters() if "pooler" in name]


def test_the_architecture_comes_back_from_its_description(encoder, tmp_path):
    encoder.save_config(tmp_path)
    bare = TextEncoder.from_config(tmp_path)
    assert {n: p.shape for n, p in bare.named_parameters()} == {n: p.shape for n, p in encoder.named_parameters()}


@pytest.mark.parametrize("load", [TextEncoder.from_pretrained, load_tokenizer])
def test_what_is_not_there_is_a_config_error(load, tmp_path):
    with pytest.raises(ConfigError, match=r"text_encoder\.name.*nothing"):
        load(str(tmp_path / "nothing"))


def test_a_tokenizer_of_no_reports_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        save_small_text_encoder([], tmp_path)


def test_the_model_has_a_row_for_every_token(text_folder, report_tokenizer, encoder):
    assert encoder.transformer.get_input_embeddings().num_embeddings == report_tokenizer.vocab_size


def test_a_small_tokenizer_spells_words_that_its_reports_lack(report_tokenizer):
    """ "Balanced", "obtuse" and "critical" stand in none of the reports it was made of."""
    text = "Balanced dominance. Second obtuse marginal: 95% stenosis (critical), iFR 0.46, Medina 0,1,0."
    ids, lengths = report_tokenizer.encode([text])
    assert report_tokenizer.decode(ids[0, : lengths[0]]) == text

"""Texts predicted all at once: a mask token for every word, attention to all of them, beside rows read word by word.

Letters: L text tokens, M video tokens, D width, H heads.
"""

import pytest
import torch
import torch.nn.functional as F

from deepcoro.config_writing import Writing
from deepcoro.models.captioning_decoder import CaptioningDecoder
from deepcoro.models.generation import generate


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    decoder = CaptioningDecoder(30, 16, 2, 2, 32, 12, memory_size=20, dropout=0.0, parallel=True).double().eval()
    for parameter in decoder.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4
    decoder.mask_token.data *= 40
    return decoder


def memory(rows=4, tokens=7, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, 20, generator=chance, dtype=torch.float64), torch.ones(
        rows, tokens, dtype=torch.bool
    )


def ids(rows=4, length=8, seed=0):
    return torch.randint(4, 30, (rows, length), generator=torch.Generator().manual_seed(seed))


def plain_attention(part, x, others):
    """softmax(Q K^T / sqrt(D/H)) V of each head, no mask (1706.03762, equation 1)."""
    query, (key, value) = part.query(x), part.key_value(others).chunk(2, dim=-1)
    heads = []
    for q, k, v in zip(*(y.chunk(part.num_heads, dim=-1) for y in (query, key, value)), strict=True):
        heads.append((q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v)
    return part.out(torch.cat(heads, dim=-1))


def plain_parallel(decoder, length, video):
    """Logits [L, V] of one text of ``length`` tokens, from ``video`` [M, D'] alone (CapPa, 2306.07915, section 3)."""
    x = decoder.mask_token + decoder.position_embedding.weight[:length]
    for block in decoder.blocks:
        normed = block.norm1(x)
        x = x + plain_attention(block.self_attention, normed, normed)
        x = x + plain_attention(block.cross_attention, block.norm2(x), video)
        x = x + block.feed_forward(block.norm3(x))
    return F.layer_norm(x, x.shape[-1:], decoder.norm.weight, decoder.norm.bias) @ decoder.token_embedding.weight.T


def test_rows_of_both_kinds_are_what_each_is_alone(decoder):
    tokens, mask = memory()
    together = decoder(ids(), tokens, mask, num_parallel=torch.tensor([0, 8, 5, 0]))
    word_by_word = decoder(ids(), tokens, mask)
    assert torch.allclose(together[[0, 3]], word_by_word[[0, 3]], atol=1e-12)
    for row, length in ((1, 8), (2, 5)):
        assert torch.allclose(together[row, :length], plain_parallel(decoder, length, tokens[row]), atol=1e-10)
        assert not torch.allclose(together[row], word_by_word[row])


def test_no_word_is_looked_at(decoder):
    number = torch.tensor([8, 6, 3, 1])
    one, other = (decoder(ids(seed=seed), *memory(), num_parallel=number) for seed in (0, 1))
    assert torch.equal(one, other)
    assert not torch.allclose(one, decoder(ids(), *memory(seed=1), num_parallel=number))  # the video is


def test_padding_of_the_batch_changes_nothing(decoder):
    number = torch.tensor([8, 0, 5, 0])
    padded = torch.cat([ids(), torch.zeros(4, 4, dtype=torch.long)], dim=1)
    one, other = (decoder(words, *memory(), num_parallel=number)[:, :8] for words in (ids(), padded))
    assert torch.allclose(one[[0, 1, 3]], other[[0, 1, 3]], atol=1e-12)
    assert torch.allclose(one[2, :5], other[2, :5], atol=1e-12)
    assert torch.isfinite(decoder(padded, *memory(), num_parallel=number)).all()


def test_a_batch_without_such_rows_is_as_ever_and_still_has_its_gradients(decoder):
    number = torch.zeros(4, dtype=torch.long)
    logits = decoder(ids(), *memory(), num_parallel=number)
    assert torch.allclose(logits, decoder(ids(), *memory()), atol=1e-12)
    decoder.zero_grad()
    logits.sum().backward()
    assert (decoder.mask_token.grad == 0).all()  # there, and zero: workers without such rows exchange it too


def test_a_decoder_that_never_does_it_has_no_mask_token():
    torch.manual_seed(0)
    plain = CaptioningDecoder(30, 16, 1, 2, 32, 12)
    torch.manual_seed(0)
    both = CaptioningDecoder(30, 16, 1, 2, 32, 12, parallel=True)
    assert both.state_dict().keys() - plain.state_dict().keys() == {"mask_token"}
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, both.state_dict()[name])


def test_a_row_is_gone_on_with_from_its_prompt(decoder):
    """As a full forward pass over prompt and words so far, for every word."""
    tokens, mask = memory()
    prompt = ids(length=3, seed=5)
    text = prompt
    for _ in range(6):
        text = torch.cat([text, decoder(text, tokens, mask)[:, -1].argmax(-1, keepdim=True)], dim=1)

    def write(start, end_id, most):
        return generate(decoder, tokens, mask, start, end_id, 0, Writing(max_generation_length=most)).ids

    written = write(prompt, None, 6)
    assert written.tolist() == text[:, 3:].tolist()
    assert len({tuple(row) for row in written.tolist()}) > 1
    assert write(prompt, None, 100).shape[1] == 10  # of 12 places, the last unread
    start = torch.full((4, 1), 2)
    assert torch.equal(write(start, 3, 8), write(2, 3, 8))

"""Causal, deaf to padding, and blind to video tokens that are not there."""

import pytest
import torch

from deepcoro.models.captioning_decoder import CaptioningDecoder


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    decoder = CaptioningDecoder(30, 16, 2, 2, 32, 12, memory_size=20, dropout=0.0).double().eval()
    for parameter in decoder.parameters():  # an untrained decoder repeats itself; a louder one says various things
        if parameter.ndim > 1:
            parameter.data *= 4
    return decoder


def memory(rows=3, tokens=7, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, 20, generator=chance, dtype=torch.float64), torch.ones(
        rows, tokens, dtype=torch.bool
    )


def ids(rows=3, length=8, seed=0):
    return torch.randint(4, 30, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_a_later_word_changes_no_earlier_logits(decoder):
    one = ids()
    before = decoder(one, *memory())
    assert before.shape == (3, 8, 30)
    for place in range(1, 8):
        other = one.clone()
        other[:, place] = (one[:, place] + 1) % 30
        after = decoder(other, *memory())
        assert torch.allclose(after[:, :place], before[:, :place], atol=1e-12)
        assert not torch.allclose(after[:, place], before[:, place])


def test_padding_at_the_end_changes_nothing(decoder):
    one = ids()
    padded = torch.cat([one, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    assert torch.allclose(decoder(padded, *memory())[:, :8], decoder(one, *memory()), atol=1e-12)


def test_masked_video_tokens_are_not_attended_to(decoder):
    tokens, mask = memory()
    mask[:, 4:] = False
    wild = tokens.clone()
    wild[:, 4:] = 1e3
    wanted = decoder(ids(), tokens[:, :4], mask[:, :4])
    assert torch.allclose(decoder(ids(), wild, mask), wanted, atol=1e-12)
    assert not torch.allclose(decoder(ids(), *memory()), wanted)


def test_a_row_without_any_video_token_is_finite_and_disturbs_no_other(decoder):
    tokens, mask = memory()
    wanted = decoder(ids(), tokens, mask)
    mask[1] = False
    logits = decoder(ids(), tokens, mask)
    assert torch.isfinite(logits).all()
    assert torch.allclose(logits[[0, 2]], wanted[[0, 2]], atol=1e-12)


def test_a_text_longer_than_the_positions_is_refused(decoder):
    with pytest.raises(ValueError, match="13 tokens is longer than the 12"):
        decoder(ids(length=13), *memory())


def test_input_and_output_share_their_embedding():
    decoder = CaptioningDecoder(30, 16, 1, 2, 32, 12)
    assert not [name for name, p in decoder.named_parameters() if p.shape[0] == 30 and name != "token_embedding.weight"]


def test_attention_is_the_softmax_of_the_cross_attention(decoder):
    """By hand, from what each layer's cross-attention is given in an ordinary forward pass."""
    text, (tokens, mask) = ids(), memory()
    mask[1, 4:], mask[2] = False, False
    given = []
    hooks = [
        block.cross_attention.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
        for block in decoder.blocks
    ]
    logits = decoder(text, tokens, mask)
    for hook in hooks:
        hook.remove()
    found = list(decoder.attention(text, tokens, mask))
    assert len(found) == len(given) == 2
    for block, (queries, (keys, values)), weights in zip(decoder.blocks, given, found, strict=True):
        part = block.cross_attention
        assert weights.shape == (3, 2, 8, 7)
        for row in range(3):
            query = part.query(queries[row]).view(8, 2, 8)
            for head in range(2):
                scores = query[:, head] @ keys[row, head].T / 8**0.5
                if row == 1:
                    scores[:, 4:] = -torch.inf  # a row without any token may look at all of them: row 2
                by_hand = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
                assert torch.allclose(weights[row, head], by_hand, atol=1e-12)
        gathered = (weights @ values).transpose(1, 2).flatten(2)
        assert torch.allclose(part.out(gathered), part(queries, (keys, values), _mask(mask)), atol=1e-12)
    assert torch.equal(logits, decoder(text, tokens, mask))


def _mask(mask):
    return (mask | ~mask.any(dim=1, keepdim=True))[:, None, None]

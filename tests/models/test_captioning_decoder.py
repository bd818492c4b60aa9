"""Causal, deaf to padding, and with a cache that changes nothing."""

import pytest
import torch

from deepcoro.models.captioning_decoder import CaptioningDecoder

START, END, PAD = 2, 3, 0


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


def greedy_without_cache(decoder, tokens, mask, max_length, end=END):
    """A full forward pass over everything so far for every word, one row at a time."""
    rows = []
    for row in range(len(tokens)):
        text = [START]
        while len(text) <= max_length:
            logits = decoder(torch.tensor([text]), tokens[row : row + 1], mask[row : row + 1])
            text.append(int(logits[0, -1].argmax()))
            if text[-1] == end:
                break
        rows.append(text[1:])
    longest = max(len(row) for row in rows)
    return [row + [PAD] * (longest - len(row)) for row in rows]


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


@pytest.mark.parametrize("max_length", [1, 5, 12])
def test_the_cache_changes_nothing(decoder, max_length):
    tokens, mask = memory(rows=5)
    mask[0, 3:] = False
    wanted = greedy_without_cache(decoder, tokens, mask, max_length)
    assert len({tuple(row) for row in wanted}) > 1
    assert decoder.generate(tokens, mask, START, END, PAD, max_length).tolist() == wanted


def test_a_row_ends_with_its_end_token_and_stays_ended(decoder):
    tokens, mask = memory(rows=5)
    free = greedy_without_cache(decoder, tokens, mask, 8, end=-1)
    end = free[0][2]  # a word that the first row says early
    written = decoder.generate(tokens, mask, START, end, PAD, 8)
    assert written.tolist() == greedy_without_cache(decoder, tokens, mask, 8, end)
    stop = free[0].index(end)
    assert written[0, : stop + 1].tolist() == free[0][: stop + 1]
    assert (written[0, stop + 1 :] == PAD).all()


def test_writing_stops_when_all_rows_have_ended(decoder):
    tokens, mask = memory(rows=1)
    free = greedy_without_cache(decoder, tokens, mask, 8, end=-1)[0]
    calls = []
    hook = decoder.norm.register_forward_hook(lambda *_: calls.append(1))
    written = decoder.generate(tokens, mask, START, free[1], PAD, 8)
    hook.remove()
    assert written.shape[1] == len(calls) == free.index(free[1]) + 1


def test_no_text_is_longer_than_the_positions(decoder):
    assert decoder.generate(*memory(), START, -1, PAD, 100).shape[1] == 12
    with pytest.raises(ValueError, match="13 tokens is longer than the 12"):
        decoder(ids(length=13), *memory())


def test_sampling_follows_its_generator_and_temperature(decoder):
    def sample(seed, temperature):
        chance = torch.Generator().manual_seed(seed)
        return decoder.generate(*memory(), START, END, PAD, 8, True, temperature, chance).tolist()

    assert sample(0, 5.0) == sample(0, 5.0)
    assert len({str(sample(seed, 5.0)) for seed in range(6)}) > 1
    assert sample(0, 1e-4) == decoder.generate(*memory(), START, END, PAD, 8).tolist()


def test_one_sampled_word_has_the_distribution_of_the_logits(decoder):
    tokens, mask = memory(rows=1)
    logits = decoder(torch.tensor([[START]]), tokens, mask)[0, 0]
    many = decoder.generate(
        tokens.expand(4000, -1, -1),
        mask.expand(4000, -1),
        START,
        END,
        PAD,
        1,
        True,
        8.0,
        torch.Generator().manual_seed(0),
    )
    found = torch.bincount(many.flatten(), minlength=30) / 4000
    assert (found - (logits / 8.0).softmax(0)).abs().max() < 0.03


def test_no_gradient_is_kept_while_writing(decoder):
    assert not decoder.generate(*memory(), START, END, PAD, 3).requires_grad


def test_input_and_output_share_their_embedding():
    decoder = CaptioningDecoder(30, 16, 1, 2, 32, 12)
    assert not [name for name, p in decoder.named_parameters() if p.shape[0] == 30 and name != "token_embedding.weight"]

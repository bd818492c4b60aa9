"""Draws that hang on nothing but the seed and the place: held against splitmix64 in Python's own integers."""

import numpy as np
import torch

from deepcoro.models.draws import clip_numbers, uniform

MASK = 2**64 - 1


def mixed(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def test_they_are_those_of_splitmix64():
    found = uniform(12345, 7, torch.tensor([0, 3, 2**40]), 4)
    for row, number in enumerate([0, 3, 2**40]):
        for column in range(4):
            state = 12345
            for part in (7, number, column):
                state = mixed((state + 0x9E3779B97F4A7C15) & MASK) ^ part
            assert found[row, column].item() == (mixed((state + 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53


def test_they_are_even_and_tell_rows_columns_seeds_and_purposes_apart():
    found = uniform(0, 1, torch.arange(500), 40)
    counts = np.histogram(found.numpy(), bins=20, range=(0, 1))[0]
    expected = found.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square of 19 degrees, 0.999
    for pairs in (found[:-1].flatten(), found[1:].flatten()), (found[:, :-1].flatten(), found[:, 1:].flatten()):
        assert abs(np.corrcoef(*(x.numpy() for x in pairs))[0, 1]) < 0.03
    assert found.unique().numel() == found.numel()
    for other in (uniform(1, 1, torch.arange(500), 40), uniform(0, 2, torch.arange(500), 40)):
        assert not torch.isin(found, other).any()


def test_a_row_does_not_hang_on_its_neighbours():
    whole = uniform(5, 1, torch.arange(10), 6)
    assert torch.equal(uniform(5, 1, torch.tensor([7, 2]), 6), whole[[7, 2]])
    assert torch.equal(uniform(5, 1, torch.tensor([7]), 3), whole[[7], :3])


def test_every_clip_of_the_stream_has_a_number_of_its_own():
    assert clip_numbers(torch.tensor([4, 5]), 3).tolist() == [12, 13, 14, 15, 16, 17]

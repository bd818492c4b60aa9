"""Where tokens stand: sine and cosine, learned tables, rotation; and other grids than those they were made for."""

import numpy as np
import pytest
import torch

from deepcoro.models.layers import rotate
from deepcoro.models.positions import coordinates, resize_positions, rotary_tables, sincos_positions

GRID = (3, 2, 4)


def places(grid):
    return [(t, y, x) for t in range(grid[0]) for y in range(grid[1]) for x in range(grid[2])]


def test_sincos_positions_are_different_and_by_hand():
    positions = sincos_positions((2, 3, 4), 24)
    assert positions.shape == (24, 24)
    assert torch.cdist(positions, positions).fill_diagonal_(9).min() > 0.1
    # 8 channels an axis: 4 rates 10000 ** -(0, 1/4, 1/2, 3/4), sine then cosine; token 1 2 3 is number 1*12 + 2*4 + 3.
    rates = 10000.0 ** -(np.arange(4) / 4)
    wanted = np.concatenate([f(place * rates) for place in (1, 2, 3) for f in (np.sin, np.cos)])
    assert np.allclose(positions[23], wanted, atol=1e-6)


def test_coordinates_of_another_grid_lie_between_its_edges():
    assert coordinates(GRID).tolist() == [list(place) for place in places(GRID)]
    # 4 cells of a grid of 2: their middles at 0.25, 0.75, 1.25, 1.75 from the edge, of which 0.5 is number 0
    assert coordinates((4, 1, 1), (2, 1, 1))[:, 0].tolist() == [-0.25, 0.25, 0.75, 1.25]
    assert coordinates((1, 2, 1), (1, 4, 1))[:, 1].tolist() == [0.5, 2.5]


def test_sincos_positions_made_for_the_same_grid_are_the_plain_ones():
    assert torch.equal(sincos_positions(GRID, 24, GRID), sincos_positions(GRID, 24))
    other = sincos_positions(GRID, 24, (6, 2, 4))
    wanted = [np.sin(place * 10000.0 ** -(np.arange(4) / 4)) for place in (0.5, 2.5, 4.5)]
    assert np.allclose(other[::8, :4], np.stack(wanted), atol=1e-6)
    assert torch.equal(other[:, 8:], sincos_positions(GRID, 24)[:, 8:])


def affine(grid, scale=(1.0, 1.0, 1.0)):
    """A table whose channels are affine in the middle of each cell, counted from the edge in cells times ``scale``."""
    middle = (torch.tensor(places(grid), dtype=torch.float64) + 0.5) * torch.tensor(scale, dtype=torch.float64)
    slopes = torch.tensor([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]], dtype=torch.float64)
    return middle @ slopes.T + torch.tensor([7.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("grid", [(6, 2, 4), (2, 2, 4), (3, 5, 3), (4, 3, 7), (3, 1, 2)])
def test_a_learned_table_is_interpolated_linearly(grid):
    made_for = GRID
    resized = resize_positions(affine(made_for), made_for, grid)
    scale = [old / new for old, new in zip(made_for, grid, strict=True)]
    wanted = affine(grid, scale)
    middle = (torch.tensor(places(grid)) + 0.5) * torch.tensor(scale)
    # Between the middles of the outermost cells; beyond them the outermost values stay.
    inside = ((middle >= 0.5) & (middle <= torch.tensor(made_for) - 0.5)).all(dim=1)
    assert inside.any()
    assert torch.allclose(resized[inside], wanted[inside], atol=1e-12)
    table = affine(made_for)
    assert resized.min(dim=0).values.ge(table.min(dim=0).values - 1e-12).all()
    assert resized.max(dim=0).values.le(table.max(dim=0).values + 1e-12).all()


def test_a_learned_table_of_the_same_grid_is_itself():
    table = torch.randn(24, 5)
    assert resize_positions(table, GRID, GRID) is table


@pytest.mark.parametrize("head_width", [6, 12, 20, 64])
def test_rotation_is_multiplication_by_complex_numbers(head_width):
    x = torch.randn(2, 3, 24, head_width, dtype=torch.float64)
    turned = rotate(x, tables(GRID, head_width))
    pairs = head_width // 6
    wanted = x.clone()
    for number, place in enumerate(places(GRID)):
        for axis in range(3):
            for pair in range(pairs):
                at = 2 * (axis * pairs + pair)
                z = torch.view_as_complex(x[:, :, number, at : at + 2].contiguous())
                angle = torch.tensor(place[axis] * 10000.0 ** (-pair / pairs), dtype=torch.float64)
                wanted[:, :, number, at : at + 2] = torch.view_as_real(z * torch.polar(torch.ones_like(angle), angle))
    assert torch.allclose(turned, wanted, atol=1e-6)  # the tables are of single precision
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6)
    assert torch.equal(turned[..., 6 * pairs :], x[..., 6 * pairs :])


def tables(grid, head_width, made_for=None, tiled=False):
    cos, sin = rotary_tables(grid, head_width, made_for, tiled=tiled).double().unbind()
    return cos[None, None], sin[None, None]


def test_what_two_tokens_see_of_each_other_depends_on_how_far_apart_they_are():
    head_width, grid = 24, (3, 4, 5)
    query, key = torch.randn(2, head_width, dtype=torch.float64)
    rotary = tables(grid, head_width)
    turned = [rotate(x.expand(1, 1, 60, -1), rotary)[0, 0] for x in (query, key)]
    logits = turned[0] @ turned[1].T
    by_displacement = {}
    for i, a in enumerate(places(grid)):
        for j, b in enumerate(places(grid)):
            by_displacement.setdefault(tuple(np.subtract(a, b)), []).append(logits[i, j].item())
    assert all(np.ptp(values) < 1e-5 for values in by_displacement.values())
    means = [np.mean(values) for values in by_displacement.values()]
    assert len(means) == 5 * 7 * 9 and np.std(means) > 0.1


def test_rotation_for_another_grid_turns_by_its_steps():
    # A clip of twice the tokens along time, for a table made for half: they lie half a step apart.
    cos, _ = rotary_tables((4, 1, 1), 6, (2, 1, 1))
    assert torch.allclose(cos[:, 0], torch.tensor([-0.25, 0.25, 0.75, 1.25]).cos(), atol=1e-6)
    assert torch.equal(rotary_tables(GRID, 12, GRID), rotary_tables(GRID, 12))


@pytest.mark.parametrize("head_width", [12, 20, 64])
def test_tiled_rotation_is_that_of_v_jepa_2(head_width):
    from transformers.models.vjepa2.modeling_vjepa2 import rotate_queries_or_keys

    x = torch.randn(2, 3, 24, head_width, dtype=torch.float64)
    per_axis = head_width // 3 // 2 * 2
    parts = [
        rotate_queries_or_keys(
            x[..., axis * per_axis : (axis + 1) * per_axis],
            pos=torch.tensor(places(GRID), dtype=torch.float64)[:, axis].expand(2, 3, -1),
        )
        for axis in range(3)
    ]
    wanted = torch.cat([*parts, x[..., 3 * per_axis :]], dim=-1)
    assert torch.allclose(rotate(x, tables(GRID, head_width, tiled=True)), wanted, atol=1e-6)
    assert not torch.allclose(rotate(x, tables(GRID, head_width)), wanted, atol=1e-2)

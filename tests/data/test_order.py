"""The order of the data: exact permutations, and the cut into blocks that every number of workers shares."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcoro.data.order import Order, StreamLayout, generator


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 16, 17, 1000, 4097])
def test_every_epoch_is_an_exact_permutation(n):
    order = Order(n, seed=3)
    for epoch in range(4):
        assert np.array_equal(np.sort(order.units(np.arange(epoch * n, (epoch + 1) * n))), np.arange(n))


@given(n=st.integers(1, 300), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_any_size_seed_and_epoch_is_a_permutation(n, seed, epoch):
    units = Order(n, seed).units(np.arange(epoch * n, (epoch + 1) * n))
    assert np.array_equal(np.sort(units), np.arange(n))


def test_epochs_and_seeds_differ():
    n = 1000
    rows = [tuple(Order(n, seed).units(np.arange(e * n, (e + 1) * n))) for seed in range(3) for e in range(3)]
    assert len(set(rows)) == 9
    for row in rows:  # not the file's order, nor near it
        assert np.mean(np.array(row) == np.arange(n)) < 0.02
        assert abs(np.corrcoef(row, np.arange(n))[0, 1]) < 0.15


def test_every_unit_is_as_likely_at_every_place():
    n, epochs = 10, 4000
    drawn = Order(n, seed=0).units(np.arange(n * epochs)).reshape(epochs, n)
    counts = np.stack([np.bincount(drawn[:, place], minlength=n) for place in range(n)])
    chi_square = ((counts - epochs / n) ** 2 / (epochs / n)).sum(axis=1)  # 9 degrees of freedom: 27.9 at 0.1%
    assert chi_square.max() < 40


def test_small_orders_reach_every_permutation():
    drawn = {tuple(row) for row in Order(3, seed=0).units(np.arange(3 * 300)).reshape(300, 3)}
    assert len(drawn) == 6


def test_a_position_does_not_depend_on_how_it_is_asked_for():
    order = Order(37, seed=5)
    positions = np.random.default_rng(0).integers(0, 1000, 200)
    together = order.units(positions)
    assert together.dtype == np.int64
    assert [int(order.units(np.array([p]))[0]) for p in positions] == together.tolist()
    assert np.array_equal(order.units(positions.reshape(10, 20)), together.reshape(10, 20))
    assert np.array_equal(Order(37, seed=5).units(positions), together)
    assert int(order.units(np.array(positions[0]))) == together[0]


def test_ten_million_units_cost_no_list():
    tracemalloc.start()
    begin = time.perf_counter()
    units = Order(10**7, seed=1).units(np.array([0, 1, 10**7 - 1, 10**7, 10**12]))
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ((units >= 0) & (units < 10**7)).all()
    assert peak < 100_000  # a list of ten million would be 40 MB at the least
    assert seconds < 0.5


def test_no_units_is_refused():
    with pytest.raises(ValueError, match="0"):
        Order(0, seed=0)


def test_chance_belongs_to_seed_position_and_purpose():
    def draw(*key):
        return generator(*key).integers(0, 2**62)

    assert draw(1, 7) == draw(1, 7)
    assert len({draw(1, 7), draw(2, 7), draw(1, 8), draw(1, 7, 1), draw(7, 1)}) == 5


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("blocks", [1, 4, 5])
@pytest.mark.parametrize("start_step", [0, 7])
def test_workers_together_hold_the_positions_of_each_step(workers, accumulation, blocks, start_step):
    micro, steps = 2, 11
    batch = micro * workers * accumulation
    layout = StreamLayout(start_step * batch, steps, batch, workers, accumulation, blocks)
    streams = [[] for _ in range(workers)]
    for block in range(layout.num_blocks):  # dealt out in turn
        streams[block % workers] += layout.positions(block).tolist()
    per_step = micro * accumulation
    assert {len(stream) for stream in streams} == {steps * per_step}
    for step in range(steps):
        joint = [p for stream in streams for p in stream[step * per_step : (step + 1) * per_step]]
        first = (start_step + step) * batch
        assert sorted(joint) == list(range(first, first + batch))


@given(
    workers=st.integers(1, 5), accumulation=st.integers(1, 3), micro=st.integers(1, 4), blocks=st.integers(1, 9),
    steps=st.integers(0, 12), start_step=st.integers(0, 5),
)  # fmt: skip
def test_every_position_stands_in_one_block(workers, accumulation, micro, blocks, steps, start_step):
    batch = micro * workers * accumulation
    layout = StreamLayout(start_step * batch, steps, batch, workers, accumulation, blocks)
    found = [int(p) for block in range(layout.num_blocks) for p in layout.positions(block)]
    assert sorted(found) == list(range(start_step * batch, (start_step + steps) * batch))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_micro_batches_of_all_workers_together_do_not_depend_on_their_number(workers):
    """Contrastive pairs are those of a joint micro-batch: positions 4 to 7 meet each other on any number of workers."""
    layout = StreamLayout(0, 3, 8, workers, accumulation_steps=2, batches_per_block=1)
    for number in range(6):
        blocks = range(number * workers, (number + 1) * workers)
        joint = [p for block in blocks for p in layout.positions(block).tolist()]
        assert joint == list(range(4 * number, 4 * number + 4))


def test_a_block_holds_so_many_micro_batches():
    layout = StreamLayout(0, 10, 8, num_workers=2, accumulation_steps=1, batches_per_block=4)
    # Worker 1's first block: its half of the steps 0 to 3.
    assert layout.positions(1).tolist() == [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31]


@pytest.mark.parametrize(("start", "batch", "workers", "named"), [(3, 8, 1, "3"), (0, 8, 3, "8")])
def test_what_does_not_divide_is_refused(start, batch, workers, named):
    with pytest.raises(ValueError, match=named):
        StreamLayout(start, 5, batch, workers, 1, 1)

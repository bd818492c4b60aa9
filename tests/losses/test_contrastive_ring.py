"""Any number of workers is one: value and gradients of the contrastive losses are those of the plain formulas on the
joint batch, however its rows are spread and cut.

The file is also the program that a worker runs: ``python test_contrastive_ring.py FOLDER RANK``.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
WORLDS = (1, 2, 3, 4)
SIZES = {
    "equal": {1: [12], 2: [6, 6], 3: [4, 4, 4], 4: [3, 3, 3, 3]},
    "unequal": {1: [12], 2: [11, 1], 3: [5, 0, 7], 4: [1, 6, 2, 3]},
    "one row": {1: [1], 2: [0, 1], 3: [1, 0, 0], 4: [0, 0, 1, 0]},
}
ALL = [True] * 12
REPORTS = {
    "all have reports": ALL,
    "some have none": [True, False, True, True, True, False, True, True, False, True, True, False],
    "the last has the only one": [False] * 11 + [True],
    "none has one": [False] * 12,
}
# (report, study) of each row.
KEYS = torch.tensor([1, 2, 1, 3, 4, 5, 6, 2, 7, 8, 1, 9]), torch.tensor([1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6])


# Cases in which each worker has another gradient from above.
EACH_ITS_OWN = {kind: (kind, "unequal", "some have none", "text", False, 3) for kind in ("sigmoid", "softmax")}


def joint(weighted):
    """Unit vectors of 12 videos and texts, scale, bias, and the rows' weights; all in double precision."""
    chance = torch.Generator().manual_seed(0)
    video, text = (F.normalize(torch.randn(12, 5, generator=chance, dtype=torch.float64), dim=1) for _ in range(2))
    weight = torch.rand(12, generator=chance, dtype=torch.float64) + 0.1 if weighted else None
    return video, text, torch.tensor(5.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64), weight


def follows(rows, columns):
    """Given pairs: a video, and texts whose number in the first column is its own or the next; not symmetric."""
    gap = columns[:, 0] - rows[:, None, 0]
    return (gap == 0) | (gap == 1)


def never(rows, columns):
    """No pair at all is positive for the rows of report 1."""
    return (columns[:, 0] == rows[:, None, 0]) & (rows[:, None, 0] != 1) & (columns[:, 0] != 1)


def matches():
    """Name: (what is compared, how)."""
    from deepcoro.losses.positives import find_match

    both = torch.stack(KEYS, dim=1)
    return {
        "text": (KEYS[0], find_match("text")[1]),
        "study": (KEYS[1], find_match("study")[1]),
        "text_or_study": (both, find_match("text_or_study")[1]),
        "given": (both, follows),
        "rows without positives": (both, never),
    }


def cases():
    """(kind, sizes, reports, match, weighted, chunk_size), each thing beside the plainest of the others."""
    kinds = ("sigmoid", "softmax")
    for kind, reports, weighted in itertools.product(kinds, ("all have reports", "none has one"), (False, True)):
        yield kind, "one row", reports, "text", weighted, 3
    for kind, sizes in itertools.product(kinds, ("equal", "unequal")):
        for reports in REPORTS:
            yield kind, sizes, reports, "text", False, 3
        for reports in ("the last has the only one", "none has one"):
            yield kind, sizes, reports, "text", True, 3
        for match in matches():
            yield kind, sizes, "some have none", match, True, 3
        for chunk in (1, 100):
            yield kind, sizes, "some have none", "given", True, chunk


def run_case(case, rank, world, above=3):
    """This worker's value and gradients, where ``above`` comes from above in backward."""
    from deepcoro.losses.contrastive import CONTRASTIVE_LOSSES

    kind, sizes, reports, match, weighted, chunk = case
    begin = sum(SIZES[sizes][world][:rank])
    mine = slice(begin, begin + SIZES[sizes][world][rank])
    *tensors, weight = joint(weighted)
    video, text, scale, bias = (x[mine].clone() if x.ndim else x for x in tensors)
    leaves = [x.requires_grad_() for x in (video, text, scale, bias)]
    key, how = matches()[match]
    told = torch.tensor(REPORTS[reports])
    value = CONTRASTIVE_LOSSES[kind](
        video, text, key[mine], told[mine], scale, bias,
        match=how, weight=None if weight is None else weight[mine], chunk_size=chunk,
    )  # fmt: skip
    (above * value).backward()
    return value.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def counted():
    """(sizes, reports, match) of what is counted."""
    return [(sizes, reports, match) for sizes in SIZES for reports in REPORTS for match in ("text", "given")]


def count(name, rank, world):
    """Positives and pairs as this worker hears of them."""
    from deepcoro.losses.contrastive import count_pairs

    sizes, reports, match = name
    begin = sum(SIZES[sizes][world][:rank])
    mine = slice(begin, begin + SIZES[sizes][world][rank])
    key, how = matches()[match]
    return [x.item() for x in count_pairs(key[mine], torch.tensor(REPORTS[reports])[mine], match=how, chunk_size=3)]


def worker(folder, rank):
    """Every case in groups of 2, 3 and 4, one after the other."""
    import torch.distributed as dist

    outcomes = {}
    for world in [w for w in WORLDS if rank < w and w > 1]:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
        outcomes[world] = {case: run_case(case, rank, world) for case in cases()}
        outcomes[world] |= {name: count(name, rank, world) for name in counted()}
        outcomes[world] |= {kind: run_case(EACH_ITS_OWN[kind], rank, world, above=rank + 1) for kind in EACH_ITS_OWN}
        dist.barrier()
        dist.destroy_process_group()
    torch.save(outcomes, f"{folder}/outcome-{rank}.pt")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """``outcomes[world][case]`` -> what each worker has."""
    folder = tmp_path_factory.mktemp("ring")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(max(WORLDS))
    ]
    try:
        alone = {case: [run_case(case, 0, 1)] for case in cases()} | {name: [count(name, 0, 1)] for name in counted()}
        errors = [process.communicate(timeout=600)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(errors)
    ranks = [torch.load(folder / f"outcome-{rank}.pt", weights_only=False) for rank in range(max(WORLDS))]
    together = {
        world: {case: [ranks[rank][world][case] for rank in range(world)] for case in [*alone, *EACH_ITS_OWN]}
        for world in WORLDS[1:]
    }
    return {1: alone} | together


def plain(case, weight=None):
    """The papers' formulas on the joint batch, with the whole matrix: value and gradients of three times the sum."""
    kind, sizes, reports, match, weighted, _ = case
    *tensors, drawn = joint(weighted)
    weight = drawn if weight is None else weight
    leaves = [x.clone().requires_grad_() for x in tensors]
    told = torch.tensor(REPORTS[reports])
    told[sum(SIZES[sizes][1]) :] = False  # rows that no worker has
    video, text, scale, bias = leaves[0][told], leaves[1][told], *leaves[2:]
    weight = torch.ones(12, dtype=torch.float64) if weight is None else weight
    weight = weight[told]
    report, study = KEYS[0][told], KEYS[1][told]
    same_text, same_study = report[:, None] == report, study[:, None] == study
    positive = {
        "text": same_text,
        "study": same_study,
        "text_or_study": same_text | same_study,
        "given": same_text | (report[:, None] + 1 == report),
        "rows without positives": same_text & (report != 1),
    }[match]
    if kind == "sigmoid":
        z = torch.where(positive, 1.0, -1.0)
        terms = torch.log(1 + torch.exp(z * (-scale * video @ text.T - bias)))
        value = (terms * (weight[:, None] + weight) / 2).sum()
    else:
        value = torch.zeros((), dtype=torch.float64)
        for one, other, target in ((video, text, positive), (text, video, positive.T)):
            powers = torch.exp(scale * one @ other.T)
            logarithms = torch.log(powers / powers.sum(dim=1, keepdim=True))
            for i in range(len(one)):
                if target[i].any():
                    value = value - weight[i] * logarithms[i][target[i]].mean() / 2
    if value.requires_grad:
        (3 * value).backward()
    return value.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_value_and_gradients_are_those_of_the_joint_batch(outcomes, world, kind):
    for case, ranks in outcomes[world].items():
        if case[0] != kind or case in EACH_ITS_OWN:
            continue
        value, (video, text, scale, bias) = plain(case)
        assert abs(sum(rank[0] for rank in ranks) - value) < 1e-10, case
        for number, wanted in ((0, video), (1, text)):
            found = torch.cat([grads[number] for _, grads in ranks])
            wanted = wanted[: len(found)]
            assert (found - wanted).abs().max() < 1e-10, (case, ["video", "text"][number])
        for number, wanted in ((2, scale), (3, bias)):
            assert abs(sum(grads[number] for _, grads in ranks) - wanted) < 1e-10, (case, "scale or bias")
        if (case[1:3] == ("one row", "all have reports") and kind == "softmax") or case[2] == "none has one":
            assert value == 0
            assert not any(grad.any() for grad in (video, text, scale, bias))
        elif case[2] == "all have reports":
            assert all((grad != 0).any() for grad in (video, text, scale))


@pytest.mark.parametrize("world", WORLDS)
def test_every_worker_hears_how_many_pairs_are_positives(outcomes, world):
    for sizes, reports, match in counted():
        told = torch.tensor(REPORTS[reports])
        told[sum(SIZES[sizes][1]) :] = False
        report = KEYS[0][told]
        positive = report[:, None] == report
        if match == "given":
            positive = positive | (report[:, None] + 1 == report)
        for found in outcomes[world][sizes, reports, match]:
            assert found == [positive.sum().item(), int(told.sum()) ** 2]


@pytest.mark.parametrize("world", WORLDS[1:])
def test_workers_that_do_not_agree_on_what_comes_from_above(outcomes, world):
    """The softmax gives what each asked for; the sigmoid cannot, and says so."""
    each = torch.cat([torch.full((n,), rank + 1.0) for rank, n in enumerate(SIZES["unequal"][world])])
    _, wanted = plain(EACH_ITS_OWN["softmax"], weight=each.double() / 3)
    ranks = outcomes[world]["softmax"]
    for number in (0, 1):
        assert (torch.cat([grads[number] for _, grads in ranks]) - wanted[number]).abs().max() < 1e-10
    assert abs(sum(grads[2] for _, grads in ranks) - wanted[2]) < 1e-10
    for value, grads in outcomes[world]["sigmoid"]:
        assert torch.isfinite(value)
        assert all(grad.isnan().any() for grad in grads[2:])


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))

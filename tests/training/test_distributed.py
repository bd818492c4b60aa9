"""Two workers, or three or four, are one: their gradients are those of one worker on the joint batch, to the last
digits; also where a schedule leaves out a loss at some steps.

The file is also the program that a worker runs: ``python test_distributed.py FOLDER RANK``.
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).parents[2]
SEVERE = ("contrastive.severity_weight=1.5",)
# Name: overrides, number of micro-batches a worker.
CASES = {
    "sigmoid": ((), 1),
    "softmax": (("contrastive.loss_type=softmax",), 1),
    "accumulated": ((), 2),
    "accumulated softmax of studies": (
        ("contrastive.loss_type=softmax", "data.unit=study", "data.num_videos=2", "contrastive.chunk_size=4"), 3
    ),
    "studies": (("data.unit=study", "data.num_videos=2"), 1),
    "one worker without reports": ((), 1),
    "captions in chunks of 3 tokens": (("captioning.chunk_size=3",), 1),
    "captions in parallel, one worker has none": (("captioning.parallel_share=0.5",), 2),
    "captions from the second step on": (("loss.start_fraction.captioning=0.1",), 2),
    "one masked pass for all": (("shared_pass.enabled=true", "shared_pass.mask_ratio=0.5"), 2),
    "one masked pass, then two": (
        (
            "shared_pass.enabled=true", "shared_pass.unmasked_tail=0.5", "training.num_steps=2", "optim.warmup_steps=0",
            "data.unit=study", "data.num_videos=2",
        ),
        2,
    ),
    "pairs up to the first step": (
        (
            "loss.use_scheduler=true", "loss.schedule_type=step", "loss.warmup_steps=0", "loss.total_steps=1",
            "loss.final.contrastive=0",
        ),
        2,
    ),
    "uneven": (("contrastive.positives=study", "contrastive.chunk_size=2"), 1),
    "uneven softmax": (("contrastive.positives=text_or_study", "contrastive.loss_type=softmax"), 1),
    "three uneven workers": (("contrastive.chunk_size=2",), 1),
    "four uneven workers, accumulated": (("contrastive.loss_type=softmax",), 2),
    "accumulated by severity": (SEVERE, 2),
    "softmax by severity": (("contrastive.loss_type=softmax", *SEVERE), 1),
    "no report by severity": (SEVERE, 2),
    "no report, softmax": (("contrastive.loss_type=softmax",), 1),
    "one report by severity": (SEVERE, 1),
}  # fmt: skip
WORLDS = {"three uneven workers": 3, "four uneven workers, accumulated": 4}  # the others have two workers
NUM_ROWS = (3, 2, 1, 3)  # of the workers, where there are more than two
SCHEDULED = {
    "captions from the second step on": "captioning_decoder.",
    "pairs up to the first step": "text_encoder.",
}  # and what one of its two steps does not train


def run_case(case, rank, world):
    """SGD steps on this worker's part of a case -> losses, gradients of each step and new weights."""
    from deepcoro.losses.multitask import LossWeightScheduler, MultitaskLoss
    from deepcoro.models.multitask import MultitaskModel
    from deepcoro.training.mask_ratio import MaskRatio
    from deepcoro.training.sharding import wrap
    from deepcoro.training.step import train_step

    config, num_steps = case["config"], case["num_steps"]
    torch.manual_seed(0)
    model = bare = MultitaskModel.from_sources(config).double()
    bare.load_state_dict(case["weights"])
    if world > 1:
        model = wrap(bare, torch.device("cpu"), config)
    optimizer = torch.optim.SGD([p for p in bare.parameters() if p.requires_grad], lr=0.1)
    loss = MultitaskLoss.from_config(config)
    scheduler, masks = LossWeightScheduler.from_config(config), MaskRatio(config)
    batches = case["batches"][rank] if world > 1 else case["joint"]
    gradients = []
    for step in range(num_steps):
        weights = {name: weight for name, weight in scheduler.weights(step).items() if config.loss.is_used(name)}
        visible, shared = masks.num_visible(step), masks.is_shared(step)
        result = train_step(model, loss, optimizer, batches, weights, visible, max_grad_norm=1e9, shared_pass=shared)
        gradients.append({name: p.grad.clone() for name, p in bare.named_parameters() if p.grad is not None})
    return {
        "losses": result.losses,
        "total": result.total,
        "grad_norm": result.grad_norm,
        "valid_share": result.valid_share,
        "gradients": gradients,
        "weights": {name: p.detach() for name, p in bare.named_parameters()},
    }


def worker(folder, rank):
    """Run every case in process groups of 2, 3 and 4, one after the other, and leave the outcomes in ``folder``."""
    import torch.distributed as dist

    cases, outcomes = torch.load(f"{folder}/cases.pt", weights_only=False), {}
    for world in (2, 3, 4):
        if rank < world:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
            mine = {name: case for name, case in cases.items() if len(case["batches"]) == world}
            outcomes |= {name: run_case(case, rank, world) for name, case in mine.items()}
            dist.barrier()
            dist.destroy_process_group()
    torch.save(outcomes, f"{folder}/outcome-{rank}.pt")


def join(parts):
    """The rows of all parts, texts padded to the longest."""
    longest = max(part["input_ids"].shape[1] for part in parts)
    parts = [
        part | {"input_ids": torch.nn.functional.pad(part["input_ids"], (0, longest - part["input_ids"].shape[1]))}
        for part in parts
    ]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


@pytest.fixture(scope="module")
def outcomes(tiny_config, tiny_model, random_batch, tmp_path_factory):
    """``outcomes[case]`` -> (one worker on the joint batch, [rank 0, rank 1, ...])."""
    folder, cases = tmp_path_factory.mktemp("distributed"), {}
    for name, (overrides, num_batches) in CASES.items():
        config = tiny_config(*overrides)
        views = config.data.num_videos
        batches = []
        for rank in range(WORLDS.get(name, 2)):
            mine = [random_batch(config, 3, views, 10 * rank + b + 1, 8 + 3 * rank + b) for b in range(num_batches)]
            for batch in mine:
                batch["report_key"] = torch.tensor([1, 2, 3]) if rank == 0 else torch.tensor([4, 1, 6])
                if rank == 1:  # fewer reports and fewer views than the other worker has
                    batch["has_report"] = torch.tensor([True, True, False])
                    batch["valid"][2, 0] = False
                    if name.startswith("one worker without"):
                        batch["has_report"][:] = False
                if name.startswith("captions in parallel"):
                    batch["parallel"] = torch.tensor([rank == 1, False, rank == 1])
                if name.startswith(("no report", "one report")):
                    batch["has_report"][:] = False
                    batch["has_report"][0] = name.startswith("one report") and rank == 1
                if config.contrastive.severity_weight > 0:
                    severity = [80, 100, 0] if rank == 0 else [35, 0, 70]
                    batch["severity"] = torch.tensor(severity, dtype=torch.float64)
                if name in WORLDS:
                    batch["report_key"] = torch.tensor([1, 2 + rank, 9])
                    batch |= {key: value[: NUM_ROWS[rank]] for key, value in batch.items()}
                if name.startswith("uneven"):
                    batch["study_key"] = torch.tensor([1, 2, 1]) if rank == 0 else torch.tensor([2, 3, 3])
                    if rank == 1:
                        batch |= {key: value[:2] for key, value in batch.items()}
            batches.append(mine)
        joint = [join([b for mine in batches for b in mine])]
        weights = tiny_model(config, seed=3).double().state_dict()
        num_steps = 2 if name in SCHEDULED or name.endswith("then two") else 1
        cases[name] = {"config": config, "batches": batches, "joint": joint, "weights": weights, "num_steps": num_steps}
    torch.save(cases, folder / "cases.pt")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, __file__, str(folder)]
    running = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE, text=True) for rank in range(4)
    ]
    try:
        ones = {name: run_case(case, 0, 1) for name, case in cases.items()}
        errors = [process.communicate(timeout=600)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * 4, "\n".join(errors)
    ranks = [torch.load(folder / f"outcome-{rank}.pt", weights_only=False) for rank in range(4)]
    return {name: (one, [rank[name] for rank in ranks[: WORLDS.get(name, 2)]]) for name, one in ones.items()}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_joint_batch(outcomes, case):
    one, ranks = outcomes[case]
    for step, wanted in enumerate(one["gradients"]):
        assert sum(g.abs().sum().item() for g in wanted.values()) > 0
        for rank in ranks:
            found = rank["gradients"][step]
            assert found.keys() == wanted.keys()
            for name, grad in wanted.items():
                assert (found[name] - grad).abs().max() < 1e-8, name


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("no report", "one report"))])
def test_without_reports_nothing_is_learnt_of_pairs_and_with_one_something(outcomes, case):
    """The sigmoid still wants a lone report and its video alike."""
    one, ranks = outcomes[case]
    learns = case == "one report by severity"
    for outcome in (one, *ranks):
        loss, (gradients,) = outcome["losses"]["contrastive"].item(), outcome["gradients"]
        assert loss > 0 if learns else loss == pytest.approx(0, abs=1e-12)
        for name, grad in gradients.items():
            assert torch.isfinite(grad).all(), name
        for name in ("logit_scale", "video_projection.weight", "text_projection.weight"):
            assert (gradients[name].abs().max() > 1e-6) == learns, name


def test_the_embedding_that_words_come_in_and_go_out_by_counts_once(outcomes):
    one, ranks = outcomes["captions in chunks of 3 tokens"]
    (wanted,) = one["gradients"]
    name = "captioning_decoder.token_embedding.weight"
    assert (wanted[name].abs().sum(dim=1) > 0).all()  # every word: they are outputs, and a few are inputs
    for rank in ranks:
        assert (rank["gradients"][0][name] - wanted[name]).abs().max() < 1e-10


@pytest.mark.parametrize(("case", "prefix"), SCHEDULED.items())
def test_a_step_leaves_out_what_weighs_nothing(outcomes, case, prefix):
    one, ranks = outcomes[case]
    for outcome in (one, *ranks):
        trained = [any(name.startswith(prefix) for name in gradients) for gradients in outcome["gradients"]]
        assert sorted(trained) == [False, True]


@pytest.mark.parametrize("case", CASES)
def test_weights_after_the_step_are_equal(outcomes, case):
    one, ranks = outcomes[case]
    for name, weight in one["weights"].items():
        assert all(torch.equal(ranks[0]["weights"][name], rank["weights"][name]) for rank in ranks), name
        assert (ranks[0]["weights"][name] - weight).abs().max() < 1e-8, name


@pytest.mark.parametrize("case", CASES)
def test_what_is_reported_is_of_the_joint_batch_on_every_worker(outcomes, case):
    one, ranks = outcomes[case]
    for rank in ranks:
        for name in ("total", "grad_norm", "valid_share"):
            assert abs(rank[name].item() - one[name].item()) < 1e-8
        assert rank["losses"].keys() == one["losses"].keys()
        for name, value in one["losses"].items():
            assert abs(rank["losses"][name].item() - value.item()) < 1e-8


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))

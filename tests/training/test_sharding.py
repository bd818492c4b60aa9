"""Sharded workers are one process: their weights after five steps, what they save, and what they measure by themselves.

The file is also the program that a worker runs: ``python test_sharding.py FOLDER RANK WORLD``.
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

ROOT = Path(__file__).parents[2]
NUM_STEPS = 5
# Name: overrides, micro-batches a worker.
CASES = {
    "all losses": ((), 1),
    "accumulated": ((), 2),
    "captions from the second step on": (("loss.start_fraction.captioning=0.1",), 1),
    "pairs up to the second step": (
        (
            "loss.use_scheduler=true", "loss.schedule_type=step", "loss.warmup_steps=1", "loss.total_steps=2",
            "loss.final.contrastive=0",
        ),
        1,
    ),
    "studies": (
        (
            "data.unit=study", "data.num_videos=2", "study_pooling.num_layers=1", "study_pooling.kind=attention",
            "study_pooling.num_heads=2", "video_encoder.attention=divided", "video_encoder.checkpoint_activations=true",
        ),
        1,
    ),
    "lesions, and captions that are told of them from the second step on": (
        (
            "loss.weights.grounding=0.1", "grounding.informs_captions=true", "loss.start_fraction.captioning=0.1",
        ),
        2,
    ),
    "captions in parallel": (("captioning.parallel_share=0.5",), 1),
    "compiled": (("training.compile=true",), 1),
    "half of it frozen": (("video_encoder.freeze=0.5", "text_encoder.freeze=1"), 1),
    "features of a teacher that follows": (
        (
            "masked_modeling.target=ema", "masked_modeling.teacher_momentum=0.5", "masked_modeling.loss_type=l1",
            "masked_modeling.decoder_drop=0.4", "masked_modeling.visible_weight=0.5",
        ),
        2,
    ),
    "local views of an average, from the third step on": (
        (
            "loss.weights.distillation=1", "loss.start_fraction.distillation=0.2", "distillation.local_views=2",
            "distillation.teacher_momentum=0.5", "distillation.head_hidden_size=20", "distillation.num_prototypes=15",
        ),
        1,
    ),
}  # fmt: skip
NAMES = {2: list(CASES), 3: ["all losses"]}  # by the number of workers


def fresh_model(case, kind):
    """A model with the case's weights, and what a step calls."""
    from torch.nn.parallel import DistributedDataParallel

    from deepcoro.models.multitask import MultitaskModel
    from deepcoro.training.sharding import shard
    from deepcoro.training.step import compile_encoder
    from deepcoro.training.teachers import Teachers

    config = case["config"]
    model = MultitaskModel.from_sources(config).double().train()
    model.load_state_dict(case["weights"])
    case["teachers"] = Teachers(config, model, torch.device("cpu"))
    if kind != "one" and config.training.compile:
        compile_encoder(model, backend="eager")
    if kind == "sharded":
        shard(model, torch.device("cpu"))
    idle = config.loss.has_idle_losses(config.training.num_steps)
    return model, DistributedDataParallel(model, find_unused_parameters=idle) if kind == "ddp" else model


def take_steps(case, wrapped, optimizer, batches, steps):
    """Losses and gradient norms of each step."""
    from deepcoro.losses.multitask import LossWeightScheduler, MultitaskLoss
    from deepcoro.training.step import train_step

    config, told = case["config"], []
    loss, scheduler = MultitaskLoss.from_config(config), LossWeightScheduler.from_config(config)
    for step in steps:
        weights = {name: weight for name, weight in scheduler.weights(step).items() if config.loss.is_used(name)}
        weights = loss.with_parts(weights)
        case["teachers"].teach(batches, weights)
        loss.visible_weight = config.masked_modeling.visible_weight_at(step)
        result = train_step(wrapped, loss, optimizer, batches, weights, config.num_visible, max_grad_norm=0.5)
        case["teachers"].update(step + 1)
        taught = {name: torch.tensor(value) for name, value in case["teachers"].look(step + 1).items()}
        taught.pop("masked_modeling/target_std_of_clips", None)  # of clips that are together on a worker
        told.append(result.losses | result.grad_norms | {"all": result.grad_norm} | taught)
    return told


def run_case(case, kind, rank=None):
    """Five steps of SGD -> what was told, and the weights."""
    from deepcoro.training.sharding import gather

    model, wrapped = fresh_model(case, kind)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batches = case["joint"] if rank is None else case["batches"][rank]
    told = take_steps(case, wrapped, optimizer, batches, range(NUM_STEPS))
    return {"told": told, "weights": gather(model.state_dict(), keep=True)}


def go_on(case, kind, folder, steps, rank=None):
    """Take up the checkpoint of the first of ``steps``, if any, train, and save that of the last."""
    from safetensors.torch import load_file

    from deepcoro.training.checkpoint import load_training_state, newest_checkpoint, save_checkpoint
    from deepcoro.training.optim import build_optimizer, load_optimizer
    from deepcoro.training.sharding import gather, gather_optimizer

    config, checkpoint = case["config"], newest_checkpoint(folder)
    if checkpoint is not None:
        case = case | {"weights": load_file(checkpoint / "model.safetensors")}
    model, wrapped = fresh_model(case, kind)
    optimizer = build_optimizer(model, config.optim)
    if checkpoint is not None:
        load_optimizer(optimizer, load_training_state(checkpoint)["optimizer"])
    take_steps(case, wrapped, optimizer, case["joint"] if rank is None else case["batches"][rank], steps)
    first = rank in (None, 0)
    weights, state = gather(model.state_dict(), keep=first), gather_optimizer(optimizer, keep=first)
    assert bool(weights) == bool(state) == first
    if first:
        save_checkpoint(folder, steps[-1] + 1, model, {"optimizer": state}, config, "d", weights=weights)


def measure(model, batch):
    """What an evaluation asks of a model beside its forward."""
    from deepcoro.config_writing import Writing
    from deepcoro.evaluation.units import embed_unit_texts
    from deepcoro.models.generation import generate

    num_visible = model.config.num_visible
    clip = model.normalise(batch["clip"]).flatten(0, 1)
    tokens, views_at = model.video_encoder(clip), model.views_at(batch)
    memory = model.memory(tokens, batch["valid"], views_at)
    return {
        **model(batch, num_visible),
        "units": model.embed_units(tokens, batch["valid"], views_at),
        "texts": embed_unit_texts(model, batch),
        "written": generate(model.captioning_decoder, *memory, 2, 3, 0, Writing(max_generation_length=6)).ids,
        "attention": model.video_encoder.pool.weights(tokens),
        # Last, as in an evaluation: torch must not take its blocks for those that the next backward pass goes through.
        "prediction": model.reconstruct(clip, batch["mask_order"].flatten(0, 1), num_visible)[0],
    }


def measure_unequally(case, rank):
    """Each worker measures another number of batches, before the first step and after it."""
    from deepcoro.training.sharding import whole

    model, _ = fresh_model(case, "sharded")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = []
    for steps in (range(0), range(1)):
        take_steps(case, model, optimizer, case["batches"][rank], steps)
        with whole(model):
            measured = [measure(model.eval(), case["batches"][rank][0]) for _ in range(3 * rank)]
        found.append([{name: value.clone() for name, value in of_batch.items()} for of_batch in measured])
        model.train()
        found.append({name: tuple(p.to_local().shape) for name, p in model.named_parameters() if p.ndim})
    return found


def leave_out(case, rank):
    """Three steps, the second with gradients of the second worker that are not finite -> whether each was left out, and
    how many tensors of the weights and of the fused optimizer's state it changed."""
    from deepcoro.losses.multitask import MultitaskLoss
    from deepcoro.training.optim import build_optimizer
    from deepcoro.training.sharding import gather, gather_optimizer
    from deepcoro.training.step import train_step

    model, _ = fresh_model(case, "sharded")
    optimizer, loss = build_optimizer(model, case["config"].optim), MultitaskLoss()

    def state():
        moments = gather_optimizer(optimizer, keep=True)["state"]
        flat = {f"{index} {name}": value for index, kept in moments.items() for name, value in kept.items()}
        return gather(model.state_dict(), keep=True) | flat

    told, before = [], state()
    for factor in (1.0, float("inf") if rank == 1 else 1.0, 1.0):
        weights = {name: weight * factor for name, weight in loss.loss_weights.items() if weight > 0}
        result = train_step(model, loss, optimizer, case["batches"][rank], weights, case["config"].num_visible)
        after = state()
        told.append((bool(result.skipped), sum(not torch.equal(after[name], before.get(name)) for name in before)))
        before = after
    return told


def measure_changed(case):
    """A weight as ``whole`` has it, after all were doubled in the workers' parts."""
    from deepcoro.training.sharding import whole

    model, _ = fresh_model(case, "sharded")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    with whole(model):
        return model.video_encoder.blocks[0].attention.query.weight.clone()


def worker(folder, rank, world):
    """Run everything in a process group, and leave the outcomes in ``folder``."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    cases = torch.load(folder / "cases.pt", weights_only=False)
    kinds = ("ddp", "sharded")
    outcome = {kind: {name: run_case(case, kind, rank) for name, case in cases.items()} for kind in kinds}
    case = cases["all losses"]
    steps = range(2) if world == 2 else range(4, NUM_STEPS)
    go_on(case, "sharded", folder.parent / "run", steps, rank)
    outcome["measured"] = measure_unequally(case, rank)
    outcome["left out"], outcome["changed"] = leave_out(case, rank), measure_changed(case)
    torch.save(outcome, folder / f"outcome-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def join(parts):
    """The rows of all parts, texts padded to the longest."""
    longest = max(part["input_ids"].shape[1] for part in parts)
    parts = [
        part | {"input_ids": torch.nn.functional.pad(part["input_ids"], (0, longest - part["input_ids"].shape[1]))}
        for part in parts
    ]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def make_cases(tiny_config, tiny_model, random_batch, world):
    """Rows of the workers without report and without views, in unequal numbers, and all of them together."""
    cases = {}
    for name in NAMES[world]:
        (overrides, num_batches), batches = CASES[name], []
        config = tiny_config(*overrides)
        for rank in range(world):
            mine = [
                random_batch(config, 3, config.data.num_videos, 10 * rank + b + 1, 8 + 3 * rank + b)
                for b in range(num_batches)
            ]
            for batch in mine:
                if config.captioning.parallel_share > 0:
                    batch["parallel"] = torch.tensor([rank == 1, False, rank == 1])
                if rank == 1:
                    batch["has_report"] = torch.tensor([True, False, False])
                    batch["valid"][2, 0] = False
            batches.append(mine)
        joint = [join([batch for mine in batches for batch in mine])]
        weights = tiny_model(config, seed=3).double().state_dict()
        cases[name] = {"config": config, "batches": batches, "joint": joint, "weights": weights}
    return cases


def run_workers(folder, world):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, __file__, str(folder)]
    running = [
        subprocess.Popen([*command, str(rank), str(world)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * world, "\n".join(errors)
    return [torch.load(folder / f"outcome-{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def cases(tiny_config, tiny_model, random_batch):
    return {world: make_cases(tiny_config, tiny_model, random_batch, world) for world in NAMES}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Checkpoints of two sharded workers after 2 steps, of one process that went on to 4, of three workers after 5."""
    return tmp_path_factory.mktemp("sharding") / "run"


@pytest.fixture(scope="module")
def outcomes(cases, run):
    """``outcomes[number of workers]``: what each of them left."""
    run.mkdir()
    found = {}
    for world in NAMES:
        folder = run.parent / str(world)
        folder.mkdir()
        torch.save(cases[world], folder / "cases.pt")
        found[world] = run_workers(folder, world)
        if world == 2:
            go_on(cases[3]["all losses"], "one", run, range(2, 4))
    return found


def assert_close(found, wanted, tolerance=1e-8):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert (found[name] - value).abs().max() < tolerance, name


@pytest.mark.parametrize(("world", "case"), [(world, name) for world, names in NAMES.items() for name in names])
def test_five_steps_are_those_of_one_process_and_of_ddp(cases, outcomes, world, case):
    one = run_case(cases[world][case], "one")
    for rank in outcomes[world]:
        for kind in ("ddp", "sharded"):
            assert_close(rank[kind][case]["weights"], one["weights"])
            for found, wanted in zip(rank[kind][case]["told"], one["told"], strict=True):
                assert_close(found, wanted)


def test_a_worker_keeps_its_part_of_every_weight(outcomes):
    shapes = [rank["measured"][1] for rank in outcomes[2]]
    for name, first in shapes[0].items():
        second = shapes[1][name]
        assert first[1:] == second[1:] and 0 <= first[0] - second[0] <= max(first[0] // 2, 1), name


def test_checkpoints_go_from_two_workers_to_one_process_to_three_workers(cases, outcomes, run):
    from deepcoro.models.multitask import MultitaskModel
    from deepcoro.training.checkpoint import load_training_state, load_weights
    from deepcoro.training.optim import build_optimizer

    config = cases[2]["all losses"]["config"]
    model, _ = fresh_model(cases[2]["all losses"], "one")
    optimizer = build_optimizer(model, config.optim)
    for world, steps in ((2, range(2)), (3, range(2, 4)), (3, range(4, NUM_STEPS))):
        case = cases[world]["all losses"]
        take_steps(case, model, optimizer, case["joint"], steps)
        saved = run / "checkpoints" / str(steps[-1] + 1)
        found, wanted = load_training_state(saved)["optimizer"], optimizer.state_dict()
        assert found["param_groups"] == wanted["param_groups"]
        assert found["state"].keys() == wanted["state"].keys()
        for index, moments in wanted["state"].items():
            assert_close(found["state"][index], moments)
        loaded = MultitaskModel.from_sources(config).double()
        load_weights(saved, loaded)
        assert_close(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("world", NAMES)
def test_each_worker_measures_by_itself_what_one_process_does(cases, outcomes, world):
    case = cases[world]["all losses"]
    model, _ = fresh_model(case, "one")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for number, steps in enumerate((range(0), range(1))):
        take_steps(case, model.train(), optimizer, case["joint"], steps)
        for rank, outcome in enumerate(outcomes[world]):
            found = outcome["measured"][2 * number]
            assert len(found) == 3 * rank
            with torch.no_grad():
                wanted = measure(model.eval(), case["batches"][rank][0])
            for of_batch in found:
                assert_close(of_batch, wanted)


def test_a_step_with_a_gradient_that_is_not_finite_on_one_worker_is_left_out_on_all(outcomes):
    for rank in outcomes[2]:
        skipped, changed = zip(*rank["left out"], strict=True)
        assert skipped == (False, True, False)
        assert changed[0] > 50 and changed[1] == 0 and changed[2] > 150  # weights, nothing, weights and moments


def test_weights_that_were_changed_in_parts_are_changed_in_the_whole(cases, outcomes):
    wanted = 2 * cases[2]["all losses"]["weights"]["video_encoder.blocks.0.attention.query.weight"]
    for rank in outcomes[2]:
        assert torch.equal(rank["changed"], wanted)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

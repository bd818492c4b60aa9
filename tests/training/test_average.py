"""The average of the weights: the formula by hand, in and out of the model to the last bit, through a checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import deepcoro
from deepcoro.errors import CheckpointError, ConfigError
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.average import WeightAverage, averaged, decay_at
from deepcoro.training.checkpoint import (
    load_average,
    load_model,
    load_training_state,
    load_weights,
    save_checkpoint,
    verify_checkpoint,
)
from deepcoro.training.optim import build_optimizer, load_optimizer
from deepcoro.training.step import train_step

ROOT = Path(__file__).parents[2]
WEIGHTS = {"contrastive": 1.0, "captioning": 1.0, "masked_modeling": 0.1}


def make_layer(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Linear(3, 2, dtype=dtype)


@torch.no_grad()
def walk(layer):
    """Change the weights, as a step would."""
    for parameter in layer.parameters():
        parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize(
    ("update", "decay"), [(1, 2 / 11), (2, 3 / 12), (8, 0.5), (80, 0.9), (81, 0.9), (100_000, 0.9)]
)
def test_the_decay_rises_to_its_value(update, decay):
    assert decay_at(update, 0.9) == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize("decay", [0.1, 0.2, 0.9])  # below that of the first update, of the second, of all
def test_updates_by_hand(decay):
    layer = make_layer()
    average = WeightAverage(layer, decay)
    expected = layer.weight.tolist()
    for update in range(1, 13):
        walk(layer)
        average.update()
        weights = layer.weight.tolist()
        kept = min(decay, (1 + update) / (10 + update))
        for i in range(2):
            for j in range(3):
                expected[i][j] = kept * expected[i][j] + (1 - kept) * weights[i][j]
    found = average.state_dict()
    assert found["num_updates"] == 12 and found["weights"].keys() == {"weight", "bias"}
    # More exactly than 32 bits could have it.
    assert (found["weights"]["weight"] - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_model_has_its_own_weights_again_to_the_last_bit(dtype, kept):
    layer = make_layer(dtype)
    average = WeightAverage(layer, 0.9)
    for _ in range(5):
        walk(layer)
        average.update()
    own = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    mean = {name: tensor.clone() for name, tensor in average.state_dict()["weights"].items()}
    assert mean["weight"].dtype == kept
    parameters = list(layer.parameters())
    with average.in_place():
        assert torch.equal(layer.weight, mean["weight"].to(dtype)) and not torch.equal(layer.weight, own["weight"])
        assert torch.equal(layer.bias, mean["bias"].to(dtype))
    with pytest.raises(RuntimeError, match="in between"):
        with averaged(average):
            raise RuntimeError("in between")
    assert all(torch.equal(layer.state_dict()[name], own[name]) for name in own)
    assert all(torch.equal(average.state_dict()["weights"][name], mean[name]) for name in mean)
    # An optimizer and DDP hold on to these objects.
    assert all(one is other for one, other in zip(parameters, layer.parameters(), strict=True))
    with averaged(None):
        assert torch.equal(layer.weight, own["weight"])


def test_small_steps_are_not_lost_in_16_bits():
    layer = make_layer(torch.bfloat16)
    average = WeightAverage(layer, 0.999)
    average.num_updates = 100_000
    nn.init.ones_(layer.weight)
    average.load_state_dict({"num_updates": 100_000, "weights": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}})
    for _ in range(1000):
        average.update()
    expected = 1 - 0.999**1000  # in 16 bits it would stop at a half
    torch.testing.assert_close(average.state_dict()["weights"]["weight"], torch.full((2, 3), expected))


def test_what_is_frozen_has_no_average_and_what_is_tied_has_one():
    model = nn.ModuleDict(
        {"frozen": make_layer(), "first": make_layer(), "second": make_layer(), "norm": nn.BatchNorm1d(2)}
    )
    model["frozen"].requires_grad_(False)
    model["second"].weight = model["first"].weight
    average = WeightAverage(model, 0.5)
    weights = average.state_dict()["weights"]
    assert weights.keys() == {
        "first.weight", "first.bias", "second.weight", "second.bias", "norm.weight", "norm.bias"
    }  # fmt: skip
    assert weights["second.weight"] is weights["first.weight"]
    assert weights["first.weight"].data_ptr() != model["first"].weight.data_ptr()
    with torch.no_grad():
        model["frozen"].weight.add_(1)
    frozen = model["frozen"].weight.clone()
    with average.in_place():
        assert torch.equal(model["frozen"].weight, frozen)


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1", "yes"])
def test_a_decay_that_makes_no_sense_is_refused(tiny_config, value):
    with pytest.raises(ConfigError, match="training.ema_decay"):
        tiny_config(f"training.ema_decay={value}")


def test_an_average_of_something_else_is_refused_and_changes_nothing():
    layer = make_layer()
    average = WeightAverage(layer, 0.9)
    before = average.state_dict()["weights"]["weight"].clone()
    for weights, says in (({"weight": torch.zeros(2, 3)}, "bias .*none"), ({"weight": torch.zeros(3, 2)}, r"\(3, 2\)")):
        with pytest.raises(CheckpointError, match=says):
            average.load_state_dict({"num_updates": 3, "weights": weights})
    assert torch.equal(average.state_dict()["weights"]["weight"], before) and average.num_updates == 0


@pytest.fixture
def make_run(tiny_config, tiny_model, random_batch, text_folder, tmp_path):
    """``make_run(name, stop, ema)`` -> takes the run ``name`` to step ``stop`` as the training loop does, from its
    newest checkpoint or from the beginning, and saves there; the checkpoint and the average."""
    from deepcoro.training.checkpoint import newest_checkpoint

    def go_on(name, stop, ema="0.9", *assignments):
        config = tiny_config(f"training.ema_decay={ema}", "video_encoder.freeze=0.5", *assignments)
        run = tmp_path / name
        if not (run / "tokenizer").exists():
            load_tokenizer(str(text_folder)).save_pretrained(run / "tokenizer")
        model, checkpoint, step = tiny_model(config).train(), newest_checkpoint(run), 0
        if checkpoint is not None:
            load_weights(checkpoint, model)
        optimizer = build_optimizer(model, config.optim)
        average = WeightAverage(model, config.training.ema_decay) if config.training.ema_decay else None
        if checkpoint is not None:
            state = load_training_state(checkpoint)
            step = state["step"]
            load_optimizer(optimizer, state["optimizer"])
            if average is not None and (kept := load_average(checkpoint, state)) is not None:
                average.load_state_dict(kept)
        loss = MultitaskLoss.from_config(config)
        while step < stop:
            train_step(model, loss, optimizer, [random_batch(config, seed=step)], WEIGHTS, config.num_visible)
            step += 1
            if average is not None:
                average.update()
        state = {"step": step, "optimizer": optimizer.state_dict()}
        kept = None if average is None else average.state_dict()
        return save_checkpoint(run, step, model, state, config, "made-for-tests", kept), model, average

    return go_on


def test_a_run_that_was_stopped_has_the_average_of_an_undisturbed_one(make_run):
    _, _, whole = make_run("whole", 6)
    make_run("stopped", 2)
    make_run("stopped", 3)
    _, _, stopped = make_run("stopped", 6)
    assert stopped.num_updates == whole.num_updates == 6
    found, wanted = stopped.state_dict()["weights"], whole.state_dict()["weights"]
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_checkpoint_has_both_and_the_average_is_taken_unless_asked_otherwise(make_run, random_batch):
    place, model, average = make_run("run", 4)
    trained, mean = model.state_dict(), average.state_dict()["weights"]
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == mean.keys()
    wanted = {"trained": trained, "ema": trained | mean}
    assert sum(not torch.equal(wanted["ema"][name], trained[name]) for name in trained) > 50  # they are not alike
    assert deepcoro.load(place.parent.parent).weights == "ema"
    for weights, name in ((None, "ema"), ("ema", "ema"), ("trained", "trained")):
        loaded = deepcoro.load(place, weights=weights)
        assert loaded.weights == name
        found = loaded.model.state_dict()
        assert found.keys() == wanted[name].keys()
        assert all(torch.equal(found[key], wanted[name][key]) for key in found)
    model.eval()
    config = loaded.config
    batch = random_batch(config, seed=9)
    before = model(batch, config.num_visible)["prediction"]
    with average.in_place():
        expected = model(batch, config.num_visible)["prediction"]
    assert torch.equal(load_model(place)[0](batch, config.num_visible)["prediction"], expected)
    assert torch.equal(load_model(place, "trained")[0](batch, config.num_visible)["prediction"], before)
    with pytest.raises(CheckpointError, match="trained or ema, and not 'best'"):
        deepcoro.load(place, weights="best")


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_average_is_found(make_run, damage):
    place, _, _ = make_run("run", 1)
    verify_checkpoint(place)
    file = place / "model_ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    if damage == "changed":
        file.write_bytes(content)
    for act in (verify_checkpoint, deepcoro.load):
        with pytest.raises(CheckpointError, match=r"model_ema\.safetensors"):
            act(place)


def test_an_average_can_come_and_go(make_run):
    place, model, _ = make_run("run", 2, "null")
    assert not (place / "model_ema.safetensors").exists() and deepcoro.load(place).weights == "trained"
    with pytest.raises(CheckpointError, match=r"no average.*training\.ema_decay"):
        deepcoro.load(place, weights="ema")
    _, _, average = make_run("run", 2, "0.9")  # as the run would go on: with the weights there
    assert average.num_updates == 0
    mean = average.state_dict()["weights"]
    assert all(torch.equal(mean[name], model.state_dict()[name]) for name in mean)
    place, _, _ = make_run("run", 3, "0.9")
    assert deepcoro.load(place).weights == "ema"
    place, _, _ = make_run("run", 4, "null")
    assert deepcoro.load(place).weights == "trained" and "average" not in load_training_state(place)


@pytest.fixture
def some_ray():
    """A Ray for a test; one that others started stays as it is."""
    import ray

    from deepcoro.launch.resources import start_ray

    started_here = not ray.is_initialized()
    start_ray(num_cpus=2)
    yield
    if started_here:
        ray.shutdown()


def test_what_validates_beside_the_run_takes_the_average(some_ray, make_run, dataset_folder):
    from deepcoro.launch.validate import validate_step
    from deepcoro.training.validation import Validation

    place, model, average = make_run("run", 3, "0.9", f"data.path={dataset_folder}")
    run = place.parent.parent
    here = Validation(deepcoro.load(run).config, run, torch.device("cpu"))
    trained = here.run(model)["masked_modeling/mse"]
    with average.in_place():
        expected = here.run(model)["masked_modeling/mse"]
    assert expected != trained
    assert validate_step(run, 3)["masked_modeling/mse"] == pytest.approx(expected, rel=1e-6)


def sharded_average(rank):
    """On one of two workers: the average of a layer that FSDP2 divided, beside that of a whole one."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", rank=rank, world_size=2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.number = make_layer(), nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    whole, parts = Model(), Model()
    fully_shard(parts, mesh=init_device_mesh("cpu", (2,)), ignored_params={parts.number})
    averages = [WeightAverage(whole, 0.9), WeightAverage(parts, 0.9)]

    def full(tensor):
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def compare(tensors, wanted):
        assert tensors.keys() == wanted.keys()
        for name in wanted:
            assert torch.equal(full(tensors[name]), wanted[name]), name

    for _ in range(4):
        with torch.no_grad():
            for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
                one.mul_(1.5).add_(0.1)
                other.mul_(1.5).add_(0.1)
        for average in averages:
            average.update()
    state = {name: tensor.clone() for name, tensor in averages[0].state_dict()["weights"].items()}
    compare(averages[1].state_dict()["weights"], state)
    own = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    with averages[1].in_place():
        compare(parts.state_dict(), state)
    compare(parts.state_dict(), own)
    fresh = WeightAverage(parts, 0.9)
    fresh.load_state_dict({"num_updates": 4, "weights": state})
    compare(fresh.state_dict()["weights"], state)
    dist.destroy_process_group()


def test_parts_of_a_sharded_model_have_the_average_of_the_whole(tmp_path):
    """The file is also the program that a worker runs: ``python test_average.py RANK``."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(told)


if __name__ == "__main__":
    sharded_average(int(sys.argv[1]))

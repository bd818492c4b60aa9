"""A run whose model is divided among its workers is the run it would be without, and goes on either way."""

from __future__ import annotations

import json

import pytest
import torch

import deepcoro
from deepcoro.launch.train import train
from deepcoro.training.validation import Validation


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_sharded_run_is_the_run_it_would_be_and_goes_on_either_way(local_ray, small_config, tmp_path):
    def config(name, *assignments):
        always = ("resources.num_workers=2", "optim.schedule=constant", f"name={name}")
        return small_config(tmp_path, *always, *assignments)

    plain = train(config("plain"))
    run = train(config("sharded", "resources.sharding=full", "training.num_steps=3"))
    tags = {name for line in lines_of(run) for name in line}
    assert "validation/captioning/tree_accuracy" in tags
    (run / "validation" / "3.json").unlink()  # as if the run had been lost while it was validated
    run = train(config("sharded", "resources.sharding=full", "training.num_steps=3"))
    again = json.loads((run / "validation" / "3.json").read_text())["metrics"]
    trained = deepcoro.load(run)
    alone = Validation(trained.config, run, torch.device("cpu")).run(trained.model)
    assert again == pytest.approx(alone, rel=1e-4, abs=1e-5)  # some are near 0
    run = train(config("sharded", "training.num_steps=5"))
    run = train(config("sharded", "resources.sharding=full"))
    totals = [[line["loss/total"] for line in lines_of(folder) if "loss/total" in line] for folder in (plain, run)]
    assert totals[1] == pytest.approx(totals[0], rel=1e-4) and len(totals[0]) == 6
    weights = [deepcoro.load(folder).model.state_dict() for folder in (plain, run)]
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-4), name

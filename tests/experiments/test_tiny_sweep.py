"""The sweeps of the demo can be searched, and what the benchmark draws and counts is what it says."""

import json
import shutil

import numpy as np
import pytest

from deepcoro.errors import ConfigError
from deepcoro.launch.space import load_space
from deepcoro.launch.space_check import check_space
from deepcoro.launch.sweep import check_sweep
from deepcoro.launch.sweep_folder import save_sweep
from experiments import tiny_sweep
from experiments.bench import sweep as bench


@pytest.mark.parametrize("space", tiny_sweep.SPACES)
def test_each_space_can_be_searched_from_the_demo(space, tmp_path):
    asked = tiny_sweep.asked(space, 9, tiny_sweep.experiment().merge({"root": str(tmp_path)}))
    assert check_sweep(asked) and not asked.resume
    assert asked.folder == tmp_path / f"tiny-{space}"
    training = asked.config.training
    assert training.num_steps % training.evaluate_every == 0 == training.num_steps % training.checkpoint_every
    assert training.checkpoint_every < training.num_steps  # else a trial that is killed begins anew


def test_it_goes_on_with_a_sweep_that_is_the_same_still(tmp_path, monkeypatch):
    config = tiny_sweep.experiment().merge({"root": str(tmp_path / "runs")})
    begun = tiny_sweep.asked("mask_ratio", 12, config)
    begun.folder.mkdir(parents=True)
    save_sweep(begun)
    again = tiny_sweep.asked("mask_ratio", 15, config.override(["resources.cpus_per_worker=1"]))
    assert again.resume and again.num_trials == 15 and again.stopping == "asha" and again.folder == begun.folder
    assert again.config == begun.config.merge({"resources": {"cpus_per_worker": 1}})
    with pytest.raises(ConfigError, match="training.num_steps: 162 -> 81\n"):
        tiny_sweep.asked("mask_ratio", 12, config.override(["training.num_steps=81"]))
    (tmp_path / "mask_ratio.py").write_text(begun.space.path.read_text().replace("0.9, 0.05", "0.8, 0.05"))
    monkeypatch.setattr(tiny_sweep, "_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="is not the space that"):
        tiny_sweep.asked("mask_ratio", 12, config)


def test_both_sweeps_of_the_benchmark_try_the_drawn_configurations(tmp_path):
    points = bench.draw(18, seed=0)
    assert points == bench.draw(18, seed=0) != bench.draw(18, seed=1)
    logs = np.log10([list(point.values()) for point in points])
    ends = np.log10(list(bench.RATES.values()))
    assert (logs >= ends[:, 0]).all() and (logs <= ends[:, 1]).all() and np.ptp(logs[:, 0]) > 2
    space = load_space(bench.write_space(tmp_path / "rates.py", bench.RATES, points))
    assert list(space.start) == points
    config = bench.make_config(tmp_path, 90)
    check_space(space, config)
    check_space(load_space(bench.write_seeds(tmp_path / "seeds.py", [{"seed": 1}, {"seed": 2}])), config)


def test_clips_are_counted_to_the_last_step_of_each_trial(tmp_path):
    bench.make_config(tmp_path, 90).save(tmp_path / "config.yaml")
    rows = []
    for number, (state, steps, value) in enumerate(
        [("complete", 90, 0.5), ("pruned", 13, 0.9), ("complete", 90, 0.25)]
    ):
        run = tmp_path / "trials" / f"trial_{number}"
        run.mkdir(parents=True)
        lines = [{"step": step, "loss/total": 1.0} for step in range(1, steps + 1)] + [
            {"step": 99, "validation/x": 1.0}
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows.append({"state": state, "values": {bench.METRIC: value}, "run": run.name, "error": None, "params": {}})
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": rows}))
    found = bench.Results(tmp_path)
    assert found.clips == 16 * (90 + 13 + 90)
    assert (found.value, found.values, found.num_complete) == (0.5, [0.5, 0.25], 2)
    rows[0] |= {"state": "fail", "error": "it broke"}
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": rows}))
    found = bench.Results(tmp_path)  # its clips are spent, and it is no candidate for the best
    assert found.clips == 16 * (90 + 13 + 90)
    assert (found.value, found.values, found.num_failed) == (0.25, [0.25], 1)
    shutil.rmtree(tmp_path / "trials" / "trial_0")  # it failed before its first step
    assert bench.Results(tmp_path).clips == 16 * (13 + 90)
    rows[2] |= {"state": "fail", "error": "so did this"}
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": rows}))
    with pytest.raises(RuntimeError, match="2 failed.*it broke"):
        bench.Results(tmp_path)

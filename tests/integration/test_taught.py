"""A run with every kind of teacher, on two workers: what it tells, and that it goes on exactly."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from deepcoro.errors import CheckpointError
from deepcoro.launch.evaluate import evaluate
from deepcoro.launch.train import train

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
TAUGHT = (
    "name=taught", "resources.num_workers=2", "masked_modeling.target=ema", "masked_modeling.teacher_momentum=0.9",
    "masked_modeling.loss_type=l1", "masked_modeling.decoder_drop=0.5", "masked_modeling.visible_weight=0.5",
    "masked_modeling.visible_warmup_steps=2", "loss.weights.distillation=0.5", "loss.start_fraction.distillation=0.3",
    "distillation.local_views=2", "distillation.head_hidden_size=32", "distillation.head_bottleneck_size=16",
    "distillation.num_prototypes=24", "distillation.teacher_momentum=0.9",
)  # fmt: skip


def saved(run, step):
    place = run / "checkpoints" / str(step)
    state = torch.load(place / "training_state.pt", weights_only=True)
    return load_file(place / "model.safetensors"), state["teachers"]


def test_a_run_with_teachers_goes_on_as_if_it_had_never_stopped(local_ray, small_config, tmp_path, capsys):
    teacher = train(small_config(tmp_path, "contrastive.embedding_dim=24", "video_encoder.width=72"))
    config = small_config(tmp_path, *TAUGHT, f"distillation.teacher={teacher}")
    run = train(config)
    assert "predicts features: reconstruction metrics and strips" in capsys.readouterr().err
    weights, state = saved(run, 6)
    assert state["masked_modeling"]["below"] == 0 and state["distillation"]["checkpoint"].endswith("checkpoints/6")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss/total" in line]
    assert all(0.02 < line["masked_modeling/target_std_of_clips"] <= 1.1 for line in steps)
    assert [line["step"] for line in steps if "loss/distillation_local" in line] == [3, 4, 5, 6]
    for line in steps[2:]:
        parts = ("video", "text", "similarity", "local")
        told = sum(line[f"loss/distillation_{name}"] for name in parts)
        rest = line["loss/contrastive"] + line["loss/captioning"] + 0.1 * line["loss/masked_modeling"]
        assert line["loss/total"] == pytest.approx(rest + 0.5 * told, rel=1e-5)
    assert not any("reconstruction" in name or name.startswith("masked") for name in evaluate(run, num_examples=0))
    assert "No reconstruction: with masked_modeling.target=ema" in capsys.readouterr().out

    shutil.rmtree(run / "checkpoints" / "6")
    train(config)  # from step 3
    again, state_again = saved(run, 6)
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    for part, names in (("masked_modeling", ("weights",)), ("distillation_local", ("weights", "center"))):
        for name in names:
            one, other = state[part][name], state_again[part][name]
            pairs = zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else [(one, other)]
            assert all(torch.equal(a, b) for a, b in pairs)

    shutil.rmtree(run / "checkpoints" / "6")
    shutil.rmtree(teacher / "checkpoints" / "6")  # it has another newest checkpoint now
    with pytest.raises(CheckpointError, match="distillation.teacher has other weights in .*checkpoints/3"):
        train(config)

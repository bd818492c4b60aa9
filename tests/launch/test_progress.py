"""The line that says how far a run is."""

import json
import time

from deepcoro.launch.progress import Progress
from deepcoro.training.board import describe_model


def test_the_time_left_is_that_of_all_steps_left_be_it_days(tmp_path, tiny_config):
    progress = Progress(tmp_path, tiny_config("training.num_steps=1000"))
    now = time.time() + 1
    losses = {"loss/total": 1.0, "throughput/clips_per_second": 2.0, "throughput/data_wait_share": 0.0}
    lines = [{"step": step, "time": now + 200 * step, **losses} for step in (100, 110)]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert "left" not in progress._line()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "step 110/1000  left 2 days, 1:26:40  loss 1.000" in progress._line()  # 890 steps of 200 s


def test_what_is_trained_is_told_once_a_start(tmp_path, tiny_config, tiny_model, capsys):
    config = tiny_config("video_encoder.freeze=0.5")
    model = tiny_model(config)
    model.loaded = ["video_encoder: weights of somewhere"]
    describe_model(tmp_path, model)
    progress = Progress(tmp_path, config)
    progress._started = 0
    progress._show()
    progress._show()
    told = capsys.readouterr().err
    assert told.count("video_encoder: weights of somewhere") == 1
    encoder = model.video_encoder
    number = sum(p.numel() for p in encoder.parameters())
    frozen = sum(
        p.numel() for part in (encoder.patch_norm, encoder.embed, encoder.blocks[0]) for p in part.parameters()
    )
    assert f"video_encoder {number / 1e6:.2f} ({(number - frozen) / 1e6:.2f} trained)" in told
    assert "text_encoder" in told


def test_an_earlier_starts_model_is_not_told(tmp_path, tiny_config, tiny_model, capsys):
    describe_model(tmp_path, tiny_model(tiny_config()))
    progress = Progress(tmp_path, tiny_config())
    progress._started = time.time() + 60
    progress._show()
    assert capsys.readouterr().err == ""

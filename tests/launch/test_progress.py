"""The line that says how far a run is."""

import json
import time

from deepcoro.launch.progress import Progress


def test_the_time_left_is_that_of_all_steps_left_be_it_days(tmp_path, tiny_config):
    progress = Progress(tmp_path, tiny_config("training.num_steps=1000"))
    now = time.time() + 1
    losses = {"loss/total": 1.0, "throughput/clips_per_second": 2.0, "throughput/data_wait_share": 0.0}
    lines = [{"step": step, "time": now + 200 * step, **losses} for step in (100, 110)]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert "left" not in progress._line()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "step 110/1000  left 2 days, 1:26:40  loss 1.000" in progress._line()  # 890 steps of 200 s

"""What a run writes down of itself, and how it counts its time."""

import contextlib
import html.parser
import io
import json
import re
import resource
import time

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata

from deepcoro.training.board import Board, note, note_problems, reports_table
from deepcoro.training.pictures import Pictures
from deepcoro.training.throughput import Throughput


def read(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def scalars(run, name):
    return [(event.step, event.value) for event in read(run).Scalars(name)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextlib.contextmanager
def full_at(num_bytes):
    """No file can grow beyond ``num_bytes``; a write across the border leaves what fits, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_scalars_stand_in_both_places(tmp_path):
    board = Board(tmp_path, 0)
    board.scalars(1, {"loss/total": 2.5})
    board.scalars(2, {"loss/total": 1.5, "lr/video": 0.1})
    board.close()
    assert [(line["step"], line["loss/total"]) for line in lines(tmp_path / "metrics.jsonl")] == [(1, 2.5), (2, 1.5)]
    assert scalars(tmp_path, "loss/total") == [(1, 2.5), (2, 1.5)]
    assert [step for step, _ in scalars(tmp_path, "lr/video")] == [2]


def test_what_is_not_finite_stands_in_tensorboard_alone(tmp_path):
    """Readers of JSON that are stricter than Python's would take none of the line."""
    board = Board(tmp_path, 0)
    board.scalars(1, {"loss/total": float("nan"), "optim/grad_norm": float("inf"), "optim/bad_steps": 1})
    board.close()
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line.keys() == {"step", "time", "optim/bad_steps"}
    ((step, value),) = scalars(tmp_path, "loss/total")
    assert step == 1 and value != value


def test_a_line_is_there_at_once(tmp_path):
    board = Board(tmp_path, 0)
    board.scalars(1, {"a": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["a"] == 1.0
    board.close()


def test_a_resumed_run_takes_back_the_steps_it_does_again(tmp_path):
    for start, factor in ((0, 1.0), (3, 10.0)):  # within one second, by which event files are named
        board = Board(tmp_path, start)
        for step in range(max(1, start), 6):
            board.scalars(step, {"a": factor * step})
        board.close()
    assert scalars(tmp_path, "a") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]


def test_a_start_on_a_machine_whose_clock_is_behind_comes_after_the_earlier_one(tmp_path, monkeypatch):
    now = time.time()
    for start, clock in ((0, now), (3, now - 3600)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        board = Board(tmp_path, start)
        for step in range(max(1, start), 6):
            board.scalars(step, {"a": float(start)})
    assert scalars(tmp_path, "a") == [(1, 0.0), (2, 0.0), (3, 3.0), (4, 3.0), (5, 3.0)]


def test_programs_see_no_step_twice_after_a_resume(tmp_path):
    for start in (1, 3):
        board = Board(tmp_path, start)
        for step in range(start, 6):
            board.scalars(step, {"a": float(step)})
        board.close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_problems_are_noted_with_their_unit(tmp_path):
    batch = {"unit_id": np.array(["a", "b"]), "problem": np.array(["", "v.avi: missing"])}
    note_problems(tmp_path, [batch, batch])
    note(tmp_path, "the disk is slow")
    told = {"unit_id": "b", "problem": "v.avi: missing"}
    assert lines(tmp_path / "problems.jsonl") == [told, told, {"problem": "the disk is slow"}]


def test_no_problem_makes_no_file(tmp_path):
    note_problems(tmp_path, [{"unit_id": np.array(["a"]), "problem": np.array([""])}])
    assert not list(tmp_path.iterdir())


def test_a_line_that_a_killed_process_left_half_written_spoils_no_other(tmp_path):
    (tmp_path / "problems.jsonl").write_text('{"problem": "fir')
    note(tmp_path, "second")
    torn, whole = (tmp_path / "problems.jsonl").read_text().splitlines()
    assert (torn, json.loads(whole)) == ('{"problem": "fir', {"problem": "second"})


def test_a_full_disk_costs_the_steps_it_lasts_and_nothing_else(tmp_path, capsys):
    board = Board(tmp_path, 1)
    for step in (1, 2):
        board.scalars(step, {"a": float(step)})
    with full_at(10):  # less than any record: what fits of it is half a one
        for step in (3, 4, 5):
            board.scalars(step, {"a": float(step)})
        board.pictures(5, Pictures(reports=[("u", "true", "written")]))
    assert capsys.readouterr().err.count("WARNING") == 1
    board.scalars(6, {"a": 6.0})
    board.scalars(7, {"a": 7.0})
    board.close()
    assert scalars(tmp_path, "a") == [(1, 1.0), (2, 2.0), (6, 6.0), (7, 7.0)]
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 6, 7]
    (told,) = lines(tmp_path / "problems.jsonl")
    assert "4 writes of steps 3 to 5" in told["problem"] and "File too large" in told["problem"]
    assert capsys.readouterr().err == ""
    with full_at(10):
        board.scalars(8, {"a": 8.0})
    assert "cannot be written" in capsys.readouterr().err  # a new outage is told anew


def test_half_a_line_is_taken_back(tmp_path, capsys):
    board = Board(tmp_path, 1)
    for step in range(1, 10):
        board.scalars(step, {"a": float(step)})
    metrics = tmp_path / "metrics.jsonl"
    before = metrics.read_bytes()
    with full_at(len(before) + 10):
        board.scalars(10, {"a": 10.0})
    assert metrics.read_bytes() == before
    board.scalars(11, {"a": 11.0})
    assert [line["step"] for line in lines(metrics)] == [*range(1, 10), 11]


def test_a_disk_that_is_full_from_the_start_still_takes_back_what_is_run_again(tmp_path, capsys):
    first = Board(tmp_path, 1)
    for step in range(1, 6):
        first.scalars(step, {"a": 1.0})
    with full_at(10):
        second = Board(tmp_path, 3)
        second.scalars(3, {"a": 2.0})
    for step in (4, 5):
        second.scalars(step, {"a": 2.0})
    assert scalars(tmp_path, "a") == [(1, 1.0), (2, 1.0), (4, 2.0), (5, 2.0)]
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 4, 5]
    assert "1 writes of steps 3 to 3" in lines(tmp_path / "problems.jsonl")[0]["problem"]
    assert capsys.readouterr().err.count("WARNING") == 1


def test_what_is_missing_at_the_end_is_told_at_the_end(tmp_path, capsys):
    board = Board(tmp_path, 1)
    with full_at(10):
        board.scalars(1, {"a": 1.0})
        board.close()
    assert "1 writes of steps 1 to 1 are missing" in capsys.readouterr().err
    board = Board(tmp_path, 1)
    with full_at(10):
        board.scalars(2, {"a": 1.0})
    board.close()
    assert "1 writes of steps 2 to 2 are missing" in lines(tmp_path / "problems.jsonl")[0]["problem"]


def test_a_problem_that_cannot_be_written_down_is_told_on_the_terminal(tmp_path, capsys):
    with full_at(10):
        note(tmp_path, "no room for the checkpoint")
        note_problems(tmp_path, [{"unit_id": np.array(["unit-7"]), "problem": np.array(["v.avi: missing"])}])
    told = capsys.readouterr().err
    assert "no room for the checkpoint" in told and "unit-7 v.avi: missing" in told
    assert (tmp_path / "problems.jsonl").read_text() == ""


@pytest.fixture
def some_pictures():
    chance = np.random.default_rng(0)
    strips, similarity = chance.integers(0, 256, (2, 12, 20), np.uint8), chance.integers(0, 256, (8, 8, 3), np.uint8)
    attention = chance.integers(0, 256, (2, 8, 20, 3), np.uint8)
    return Pictures(strips, [("u_0", "LAD: normal.", "RCA <1|2> & *so* on"), ("u_1", "", "")], similarity, attention)


def test_pictures_come_back_as_they_were_drawn(tmp_path, some_pictures):
    board = Board(tmp_path, 1)
    board.pictures(4, some_pictures)
    board.pictures(8, some_pictures)
    events = read(tmp_path)
    drawn = {f"pictures/reconstruction/{n}": strip for n, strip in enumerate(some_pictures.strips)}
    drawn |= {f"pictures/attention/{n}": picture for n, picture in enumerate(some_pictures.attention)}
    drawn["pictures/similarity"] = some_pictures.similarity
    assert set(events.Tags()["images"]) == set(drawn)
    for tag, picture in drawn.items():
        images = events.Images(tag)
        assert [(image.step, image.height, image.width) for image in images] == [
            (s, *picture.shape[:2]) for s in (4, 8)
        ]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string))), picture)
    table = events.Tensors("reports")[0].tensor_proto.string_val[0].decode()
    assert table == reports_table(some_pictures.reports)
    assert events.SummaryMetadata("reports").plugin_data.plugin_name == "text"
    assert [event.step for event in events.Tensors("legend")] == [4]


def test_parts_that_a_model_lacks_leave_no_trace(tmp_path, some_pictures):
    board = Board(tmp_path, 1)
    board.pictures(1, Pictures())
    board.pictures(2, Pictures(strips=some_pictures.strips))
    tags = read(tmp_path).Tags()
    assert set(tags["images"]) == {"pictures/reconstruction/0", "pictures/reconstruction/1"}
    assert "reports" not in tags["tensors"]


class Cells(html.parser.HTMLParser):
    """Texts of the cells of a table, by row."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


@example([("a_b_c *d* __e__ **f**", "<b>g</b> &lt; | `h` \\| ~~i~~", "[j](http://k.l) ![m](n) <http://o.p> q@r.s")])
@given(
    st.lists(st.tuples(*[st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=["Cc"]))] * 3))
)
def test_a_cell_shows_the_text_and_nothing_else(reports):
    """Whatever a tokenizer puts together, through TensorBoard's own Markdown."""
    cells = Cells()
    cells.feed(markdown_to_safe_html(reports_table(reports)))
    assert cells.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    shown = [[" ".join(text.split()) for text in row] for row in cells.rows[1:] if any(row)]
    assert shown == [[str(n), *(" ".join(text.split()) for text in row)] for n, row in enumerate(reports)]


def test_a_run_is_one_entry_of_the_hparams_tab(tmp_path, tiny_config):
    config = tiny_config("optim.lr=0.002", "captioning.do_sample=true", "training.best_metric=captioning/exact_match")
    board = Board(tmp_path, 1)
    board.hparams(config, {"data/valid_share": 1.0, "retrieval/mrr": 0.5, "captioning/exact_match": 0.25})
    board.close()
    (folder,) = {path.parent for path in (tmp_path / "tensorboard").rglob("*tfevents*")}
    assert folder == tmp_path / "tensorboard"
    found = {tag: read(tmp_path).SummaryMetadata(tag).plugin_data.content for tag in read(tmp_path).Tags()["tensors"]}
    start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG]).hparams
    assert start["optim.lr"].number_value == 0.002  # differs
    assert start["captioning.do_sample"].string_value == "true"
    assert start["video_encoder.tubelet"].string_value == "[2, 8, 8]"
    assert start["masked_modeling.mask_ratio"].number_value == 0.75  # a default, but usual
    assert start["loss.weights.captioning"].number_value == 1.0 and "seed" in start
    assert not set(start) & {"masked_modeling.strategy", "root", "name"}
    experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG])
    columns = {info.name for info in experiment.hparam_infos}
    assert set(start) <= columns and "masked_modeling.strategy" in columns  # another run may have set it
    metrics = [info.name.tag for info in experiment.metric_infos]  # the scalars that the loop writes
    assert metrics == ["validation/captioning/exact_match", "validation/retrieval/mrr", "validation/data/valid_share"]


def test_charts_of_the_layout_take_the_scalars_of_a_run(tmp_path):
    Board(tmp_path, 1).close()
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    taken = {
        "losses": ["loss/total", "loss/captioning"],
        "loss weights": ["loss_weight/captioning"],
        "learning rates": ["learning_rate/video"],
        "report to video": ["validation/retrieval/report_to_video/recall_at_5"],
        "video to report": ["validation/retrieval/video_to_report/recall_at_1"],
        "reports": ["validation/captioning/exact_match", "validation/captioning/finding_f1"],
        "reconstruction": ["validation/masked_modeling/mse"],
    }
    names = [name for of_chart in taken.values() for name in of_chart]
    names += ["validation/retrieval/report_to_video/median_rank", "validation/captioning/finding_f1/prox_lad"]
    for title, patterns in charts.items():
        assert [name for name in names if any(re.match(p, name) for p in patterns)] == taken[title], title


def test_waiting_for_data_is_told_from_working():
    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    throughput, seen = Throughput(torch.device("cpu")), []
    for number in throughput.waiting(slow()):
        seen.append(number)
        time.sleep(0.05)
        throughput.add(4)
    scalars = throughput.read()
    assert seen == [0, 1, 2]
    assert 0.3 < scalars["throughput/data_wait_share"] < 0.7
    assert 10 < scalars["throughput/clips_per_second"] <= 12 / 0.3
    assert scalars["memory/process_peak_gb"] > 0.01
    assert scalars["throughput/board_share"] == 0
    assert throughput.read()["throughput/clips_per_second"] == pytest.approx(0.0)


def test_the_share_spent_on_telling_is_of_all_time_so_far():
    throughput = Throughput(torch.device("cpu"))
    time.sleep(0.1)
    with throughput.telling():
        time.sleep(0.1)
    assert 0.3 < throughput.read()["throughput/board_share"] < 0.6
    time.sleep(0.2)
    assert 0.15 < throughput.read()["throughput/board_share"] < 0.35

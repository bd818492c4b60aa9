"""A dry run tells what training would find, names everything that keeps it from starting, and leaves no trace."""

import json

import pytest

from deepcoro.launch import dry_run as module
from deepcoro.launch.dry_run import dry_run
from deepcoro.launch.lock import hold
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.checkpoint import save_checkpoint
from tests.models.published import save_published


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch):
    monkeypatch.setattr(module, "start_ray", lambda: None)
    monkeypatch.setattr(module, "nodes", lambda: [{"CPU": 2.0}])


@pytest.fixture
def config(tiny_config, dataset_folder, tmp_path):
    def make(*assignments):
        return tiny_config(f"data.path={dataset_folder}", f"root={tmp_path}/runs", *assignments)

    return make


def words(text, start):
    (found,) = [row for row in text.splitlines() if row.strip().startswith(start)]
    return found.split()


def test_what_a_run_would_do_by_hand(config, tmp_path, capsys, tiny_model):
    assert dry_run(config("captioning.vocab_size=null")) == []
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith(f"{tmp_path}/runs/tiny: a dry run")
    assert f"{tmp_path}/runs/tiny/config.yaml" in text
    assert words(text, "optim.warmup_steps") == ["optim.warmup_steps", "2", "(1000)"]
    # videos, with text, patients: v3 has none (its study has neither report nor findings).
    assert words(text, "train ") == ["train", "7", "6", "5"]
    assert words(text, "val ") == ["val", "1", "1", "1"] and words(text, "test ") == ["test", "1", "1", "1"]
    assert "10 steps of 4 videos, 40 in all: 5.7 epochs of 7" in text and "the run begins" in text
    model = tiny_model(config())
    assert words(text, "video_encoder ")[1] == f"{sum(p.numel() for p in model.video_encoder.parameters()) / 1e6:.2f}"
    assert "measured on this CPU" in text and "10 steps left" in text
    assert words(text, "CPU ") == ["CPU", "1.34", "2"] and words(text, "GPU ") == ["GPU", "0", "0"]
    assert text.endswith("it would start\n")
    assert list(tmp_path.iterdir()) == []


def test_the_filter_counts(config, capsys):
    problems = dry_run(config("data.filter=coronary_tree == 'left'"))
    text = capsys.readouterr().out
    assert words(text, "train ")[1] == "3"  # v0, v3, v4
    # The one validation cine is of the right tree: training would fail at its first validation.
    (problem,) = problems
    assert "'val' is empty after data.filter" in problem and "it would NOT start" in text


def test_everything_that_is_wrong_is_told_at_once(config, tmp_path):
    wrong = config("data.path=/none", "text_encoder.name=/none", "resources.num_workers=4")
    problems = "\n".join(dry_run(wrong))
    assert "/none/studies.parquet is missing" in problems
    assert "text_encoder.name '/none'" in problems
    assert "asks for 4.34 CPUs" in problems and "there are 2" in problems
    assert list(tmp_path.iterdir()) == []


def test_another_vocabulary_than_the_tokenizers_is_refused(config):
    assert "captioning.vocab_size is 7" in "\n".join(dry_run(config("captioning.vocab_size=7")))


def test_a_large_model_is_not_run(config, capsys):
    sizes = ["width=768", "depth=12", "num_heads=12", "tubelet=[2, 16, 16]"]
    clip = ["data.num_frames=16", "data.frame_size=224"]
    assert dry_run(config(*clip, *(f"video_encoder.{size}" for size in sizes))) == []
    text = capsys.readouterr().out
    # A layer is 4 d^2 of attention and 8 d^2 of feed-forward, with biases 9 d and two norms 4 d; the pool is one such
    # layer with one norm less and a probe; the embedding takes 512 pixels, normalised first; one norm ends it.
    d = 768
    number = 12 * (12 * d * d + 13 * d) + (12 * d * d + 12 * d) + (512 * d + d) + 2 * 512 + 2 * d
    assert words(text, "video_encoder ") == ["video_encoder", *[f"{number / 1e6:.2f}", "M"] * 2]
    assert "not measured" in text


def test_gpus_that_are_not_there_do_not_fit(config, capsys):
    (problem,) = dry_run(config("resources.use_gpu=true"))
    assert "asks for 1 GPUs" in problem
    text = capsys.readouterr().out
    assert words(text, "GPU ") == ["GPU", "1", "0"] and "that does not fit" in text


@pytest.fixture
def begun(config, tmp_path, tiny_model, text_folder):
    run = tmp_path / "runs" / "tiny"
    load_tokenizer(str(text_folder)).save_pretrained(run / "tokenizer")
    save_checkpoint(run, 4, tiny_model(config()), {"step": 4}, config(), "made-for-tests")
    return run


def test_a_run_that_was_begun_goes_on(config, begun, capsys):
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    assert dry_run(config()) == []
    text = capsys.readouterr().out
    assert "the run goes on from step 4" in text and "6 steps left" in text
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == before
    assert dry_run(config("training.num_steps=4")) == []
    assert "nothing left to train" in capsys.readouterr().out


def test_it_does_not_go_on_with_another_model_or_beside_another_process_or_from_damage(config, begun):
    (problem,) = dry_run(config("video_encoder.depth=1"))
    assert "video_encoder.depth: 2 -> 1" in problem
    with hold(begun):
        (problem,) = dry_run(config())
    assert "being trained already" in problem
    manifest = begun / "checkpoints" / "4" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": 5}))
    (problem,) = dry_run(config())
    assert "no checkpoint" in problem and "is sound" in problem


def test_published_weights_say_what_the_encoder_is(config, tmp_path, capsys):
    save_published("timesformer", tmp_path / "weights")
    wanted = config().override([f"video_encoder.pretrained={tmp_path}/weights"])
    assert dry_run(wanted) == []
    text = capsys.readouterr().out
    assert words(text, "video_encoder.attention")[1] == "divided"
    assert "measured on this CPU" in text
    (problem,) = dry_run(wanted.override(["video_encoder.depth=7"]))
    assert "video_encoder.depth is 7, and the checkpoint" in problem


@pytest.mark.parametrize("text", [(), ("loss.weights.contrastive=0", "loss.weights.captioning=0")])
def test_weights_that_are_not_there_are_told(config, text, capsys):
    (problem,) = dry_run(config(*text).override(["video_encoder.pretrained=/none"]))
    assert "video_encoder.pretrained '/none': nothing could be loaded" in problem
    assert "not known without what is missing" in capsys.readouterr().out

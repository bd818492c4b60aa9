"""The command line: what it runs, and that a user's mistake is one message without a traceback."""

import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from deepcoro.cli import load_experiment, main
from deepcoro.config import Config
from deepcoro.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def run(*words):
    return CliRunner().invoke(main, list(words))


def test_the_real_experiment_is_the_seeds_defaults():
    config = load_experiment(ROOT / "experiments" / "multitask.py")()
    assert config == Config(name="multitask")
    assert config.video_encoder.size == "base" and config.data.num_frames == 16 and config.data.frame_size == 224
    assert "BiomedBERT" in config.text_encoder.source


def test_the_demo_is_the_same_description_at_another_size():
    config = load_experiment(ROOT / "experiments" / "demo.py")()
    assert config.loss == Config().loss
    assert config.masked_modeling.mask_ratio == 0.75


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "no/such.py"], "there is no experiment no/such.py"),
        (["train", "experiments/multitask.py", "masked_modeling.mask_ration=0.5"], "masked_modeling.mask_ratio"),
        (["train", "experiments/multitask.py", "masked_modeling.mask_ratio=1.0"], "less than 1"),
        (["train", "experiments/multitask.py", "--config", "no.yaml"], "cannot read the config no.yaml"),
        (["train", "experiments/multitask.py", "data.path=/no/data"], "/no/data/studies.parquet is missing"),
        (["evaluate", "runs/none"], "runs/none holds no checkpoint"),
    ],
)
def test_a_users_mistake_is_one_message(words, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = run(*words)
    assert result.exit_code == 2
    assert result.output.startswith("error: ") and says in result.output
    assert "Traceback" not in result.output


def test_an_experiment_file_without_the_function_is_refused(tmp_path):
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="no function experiment"):
        load_experiment(file)


def test_python_on_an_experiment_says_the_same(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["multitask.py", "optim.lr=-1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("experiments/multitask.py", run_name="__main__")
    assert ended.value.code == 2
    assert "optim.lr" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["train"], ["evaluate"]])
def test_help_is_there(words):
    result = run(*words, "--help")
    assert result.exit_code == 0 and "Usage" in result.output

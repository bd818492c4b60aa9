"""The command line: what it runs, and that a user's mistake is one message without a traceback."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from deepcoro.cli import load_experiment, main
from deepcoro.config import Config
from deepcoro.errors import ConfigError, RunStopped, TrainingError

ROOT = Path(__file__).resolve().parent.parent


def run(*words):
    return CliRunner().invoke(main, list(words))


def test_the_real_experiment_is_the_seeds_defaults():
    config = load_experiment(ROOT / "experiments" / "multitask.py")()
    assert config == Config(name="multitask")
    assert config.video_encoder.width == 768 and config.data.num_frames == 16 and config.data.frame_size == 224
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
        (["train", "experiments/multitask.py", "--dry-run", "root=s3://bucket"], "is a URI"),
        (["train", "no.yaml"], "cannot read the config no.yaml"),
        (["check", "no/such.py"], "there is no experiment no/such.py"),
        (["check", "optim.lr=-1"], "optim.lr"),
        (["show", "no/such"], "no/such is not there"),
        (["show", "README.md"], "neither Python nor YAML"),
        (["evaluate", "runs/none"], "runs/none holds no checkpoint"),
        (["generate", "runs/none", "--study", "s0"], "runs/none holds no checkpoint"),
        (["compare", "runs/none", "runs/nor"], "deepcoro evaluate"),
    ],
)
def test_a_users_mistake_is_one_message(words, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = run(*words)
    assert result.exit_code == 2
    assert result.output.startswith("error: ") and says in result.output


@pytest.mark.parametrize(
    "words", [["evaluate", "r"], ["compare", "r", "r"], ["generate", "r", "--study", "s"], ["show", "r"]]
)
def test_a_runs_folder_is_looked_for_where_runs_are_written(words, monkeypatch):
    monkeypatch.setenv("DEEPCORO_HOME", "/shared/coro")
    result = run(*words)
    assert result.exit_code == 2 and "/shared/coro/r" in result.output
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


COMMANDS = ["check", "show", "train", "evaluate", "compare", "generate"]


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_tells_what_it_does_with_an_example_and_the_exit_codes(words, flag):
    result = run(*words, flag)
    assert result.exit_code == 0 and result.output.startswith("Usage")
    assert "Exit code" in result.output
    if words:
        assert f"\n      deepcoro {words[0]}" in result.output  # examples keep their lines
    else:
        assert all(f"\n  {name} " in result.output for name in COMMANDS)


def test_help_needs_nothing_heavy():
    code = "import sys\nfrom deepcoro.cli import main\ntry: main(['train', '-h'])\nexcept SystemExit: pass\n"
    code += "print('loaded', *[m for m in ('torch', 'ray', 'pyarrow', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"


@pytest.fixture
def calls(monkeypatch):
    """What the commands call, without doing it."""
    import deepcoro.launch.check
    import deepcoro.launch.compare
    import deepcoro.launch.dry_run
    import deepcoro.launch.evaluate
    import deepcoro.launch.generate
    import deepcoro.launch.train

    made = []
    for name in ("check", "compare", "dry_run", "evaluate", "generate", "train"):
        module = getattr(deepcoro.launch, name)
        monkeypatch.setattr(module, name, lambda *args, _name=name, **more: made.append((_name, args, more)))
    return made


def test_what_evaluate_compare_and_generate_are_told(calls):
    run("evaluate", "runs/a")
    run("evaluate", "runs/a", "--split", "test", "--checkpoint", "best", "--weights", "trained")
    run("compare", "runs/a", "runs/b", "--split", "test")
    run("generate", "runs/a", "--study", "s0", "--checkpoint", "40")
    run("generate", "runs/a", "--study", "s0", "--split", "val", "--weights", "ema")
    run(
        *("generate", "runs/a", "--video", "x.avi", "--angles", "-30,20", "--format", "json", "--num-beams", "4"),
        *("--no-structured", "--probabilities", "--picture", "p.png"),
    )
    run("generate", "runs/a", "--data", "s3://b/d", "--limit", "12", "--output", "out", "--split", "any")
    calls, told = calls[:3], calls[3:]
    a, b = Path("runs/a").absolute(), Path("runs/b").absolute()
    assert calls == [
        ("evaluate", (a,), {"split": "val", "checkpoint": "newest", "weights": None}),
        ("evaluate", (a,), {"split": "test", "checkpoint": "best", "weights": "trained"}),
        ("compare", (a, b, "test"), {}),
    ]
    nothing = dict.fromkeys(
        ("study", "video", "data", "split", "angles", "limit", "form", "output", "picture", "num_beams", "structured")
        + ("probabilities", "weights")
    )
    assert told == [
        ("generate", (a,), nothing | {"study": "s0", "checkpoint": "40"}),
        ("generate", (a,), nothing | {"study": "s0", "split": "val", "checkpoint": "newest", "weights": "ema"}),
        (
            "generate",
            (a,),
            nothing
            | {"video": str(a.parent.parent / "x.avi"), "angles": (-30.0, 20.0), "form": "json", "num_beams": 4}
            | {
                "structured": False,
                "probabilities": True,
                "picture": a.parent.parent / "p.png",
                "checkpoint": "newest",
            },
        ),
        (
            "generate",
            (a,),
            nothing
            | {"data": "s3://b/d", "split": "any", "limit": 12, "checkpoint": "newest"}
            | {"output": a.parent.parent / "out"},
        ),
    ]


def test_check_is_0_or_1_and_takes_a_tiny_model_or_the_experiments_own(monkeypatch):
    import deepcoro.launch.check

    seen = []
    monkeypatch.setattr(deepcoro.launch.check, "check", lambda config: seen.append(config) or config is None)
    multitask = str(ROOT / "experiments" / "multitask.py")
    words = [[], [multitask, "seed=3"], ["seed=4", "optim.lr=0.5"]]
    assert [run("check", *given).exit_code for given in words] == [0, 1, 1]
    assert seen == [None, Config(seed=3), Config(seed=4, optim={"lr": 0.5})]


def test_a_yaml_is_laid_over_the_experiment_and_assignments_over_both(calls, tmp_path):
    flat = tmp_path / "flat.yaml"  # by the keys of the original setup
    flat.write_text("mask_ratio: 0.5\ntext_lr: 0.25\nuse_loss_weight_scheduler: true\nloss_total_steps: 5000\n")
    experiment = str(ROOT / "experiments" / "demo.py")
    assert run("train", experiment, "optim.text_lr=0.125", "--config", str(flat), "--dry-run").exit_code == 0
    ((name, (config,), _),) = calls
    assert name == "dry_run" and config.name == "demo" and config.data.num_frames == 8
    assert (config.masked_modeling.mask_ratio, config.optim.text_lr) == (0.5, 0.125)
    assert config.loss.use_scheduler and config.loss.total_steps == 5000


def test_a_yaml_alone_is_an_experiment_too(calls, tmp_path):
    (tmp_path / "own.yaml").write_text("name: own\ntraining: {num_steps: 2000}\n")
    assert run("train", str(tmp_path / "own.yaml"), "seed=5").exit_code == 0
    assert calls == [("train", (Config(name="own", seed=5, training={"num_steps": 2000}),), {})]


def test_what_keeps_a_run_from_starting_is_an_error(monkeypatch):
    import deepcoro.launch.dry_run

    monkeypatch.setattr(deepcoro.launch.dry_run, "dry_run", lambda config: ["too few CPUs", "no tokenizer"])
    result = run("train", str(ROOT / "experiments" / "demo.py"), "--dry-run")
    assert (result.exit_code, result.output) == (2, "error: too few CPUs\nno tokenizer\n")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RunStopped("saved at step 5", 130), 130, "saved at step 5"),
        (TrainingError("not finite"), 1, "error: not finite"),
    ],
)
def test_a_run_that_stops_and_one_that_fails_have_codes_of_their_own(monkeypatch, error, code, says):
    import deepcoro.launch.train

    def fail(config):
        raise error

    monkeypatch.setattr(deepcoro.launch.train, "train", fail)
    result = run("train", str(ROOT / "experiments" / "demo.py"))
    assert (result.exit_code, result.output) == (code, says + "\n")


def test_a_run_is_called_what_its_job_is_unless_it_has_a_name(calls, monkeypatch):
    about = {"metadata": {"job_submission_id": "first"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(about))
    demo = str(ROOT / "experiments" / "demo.py")
    run("train", demo)
    run("train", demo, "name=mine")
    assert [args[0].name for _, args, _ in calls] == ["first", "mine"]


def test_show_writes_a_whole_config(tmp_path):
    shown = run("show", str(ROOT / "experiments" / "demo.py"))
    config = load_experiment(ROOT / "experiments" / "demo.py")()
    assert shown.exit_code == 0 and Config(**yaml.safe_load(shown.output)) == config
    (tmp_path / "flat.yaml").write_text("mask_ratio: 0.5\n")
    shown = run("show", str(tmp_path / "flat.yaml"))
    assert yaml.safe_load(shown.output)["masked_modeling"]["mask_ratio"] == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\ny = no_such_name\n", "line 2: NameError"),
        ("def experiment(:\n", "SyntaxError"),
        ("def experiment():\n    return 3\n", "must return a deepcoro.Config, and returned int"),
    ],
)
def test_an_experiment_that_cannot_be_run_is_one_message(tmp_path, text, says):
    (tmp_path / "mine.py").write_text(text)
    for command in ("train", "check"):
        result = run(command, str(tmp_path / "mine.py"))
        assert result.exit_code == 2 and says in result.output and "Traceback" not in result.output


def test_what_generate_writes_lies_where_runs_lie(monkeypatch):
    given = {}
    monkeypatch.setenv("DEEPCORO_HOME", "/shared/coro")
    monkeypatch.setattr("deepcoro.launch.generate.generate", lambda run, **options: given.update(options))
    assert run("generate", "runs/a", "--study", "s", "--output", "a.json", "--picture", "/b.png").exit_code == 0
    assert (given["output"], given["picture"]) == (Path("/shared/coro/a.json"), Path("/b.png"))

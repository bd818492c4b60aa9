"""Who may know whom, read from the import statements themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIGS = (
    "captioning",
    "contrastive",
    "data",
    "distillation",
    "encoder",
    "masking",
    "section",
    "seed",
    "sharing",
    "training",
    "writing",
)
FOUNDATION = {"errors", "levels", "reports", "config", *(f"config_{part}" for part in CONFIGS)}
WORKING = {"data", "models", "losses", "metrics"}

# What each part may import besides itself.
ALLOWED = {
    "errors": set(),
    "config": {
        "errors",
        "config_captioning",
        "config_contrastive",
        "config_data",
        "config_distillation",
        "config_grounding",
        "config_encoder",
        "config_masking",
        "config_seed",
        "config_section",
        "config_sharing",
        "config_training",
        "config_writing",
    },
    "config_captioning": {"config_section"},
    "config_contrastive": {"config_section"},
    "config_data": {"errors", "config_section"},
    "config_distillation": {"config_section"},
    "config_grounding": {"config_section"},
    "config_encoder": {"errors", "config_section"},
    "config_masking": {"config_section"},
    "config_sharing": {"config_section", "config_masking", "config_training"},
    "config_training": {"errors", "config_section"},
    "config_writing": {"config_section"},
    "config_section": {"errors"},
    "config_seed": {"errors"},
    "levels": set(),
    "reports": {"errors"},
    **dict.fromkeys(WORKING, FOUNDATION),
    "evaluation": FOUNDATION | WORKING,
    "training": FOUNDATION | WORKING | {"evaluation"},
    "inference": FOUNDATION | WORKING | {"evaluation", "training"},  # it loads what training saved
    "launch": FOUNDATION | WORKING | {"evaluation", "training", "inference"},
    "cli": FOUNDATION | WORKING | {"evaluation", "training", "inference", "launch", "cli_sweep"},
    "cli_sweep": FOUNDATION | {"launch", "cli"},  # cli when it runs, for what describes a run
}
MAY_SEE_RAY = ("data/pipeline.py", "training/loop.py", "inference", "evaluation/evaluator.py", "launch", "cli.py")


def modules(path):
    """Absolute dotted names imported anywhere in a file, inside functions and type-checking blocks too."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            yield ".".join(base)
            yield from (".".join([*base, alias.name]) for alias in node.names)


def part_of(path):
    return path.relative_to(ROOT / "deepcoro").with_suffix("").parts[0]


FILES = sorted((ROOT / "deepcoro").rglob("*.py"))
PARTS = {part_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_its_own_part_and_those_below(path):
    part = part_of(path)
    if part == "__init__":
        return
    assert part in ALLOWED, f"{part} is in no layer"
    seen = {name.split(".")[1] for name in modules(path) if name.startswith("deepcoro.")} & PARTS
    assert seen <= ALLOWED[part] | {part, "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_is_seen_only_where_it_may_be(path):
    name = str(path.relative_to(ROOT / "deepcoro"))
    if not any(name == allowed or name.startswith(allowed + "/") for allowed in MAY_SEE_RAY):
        assert "ray" not in {module.split(".")[0] for module in modules(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_never_imports_what_stands_beside_it(path):
    assert not {module.split(".")[0] for module in modules(path)} & {"experiments", "tune_spaces", "data_prep", "tests"}


def test_relative_imports_are_resolved(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "deepcoro" / "data" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ..training import loop\nfrom . import order\ndef f():\n    import ray.data\n")
    assert {"deepcoro.training.loop", "deepcoro.data.order", "ray.data"} <= set(modules(file))


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        (("models.multitask", "losses.multitask", "metrics", "training.step"), ("ray",)),
        (("data.reader", "data.collate"), ("ray", "transformers", "torch")),
        (("data.pipeline",), ("transformers", "torch")),  # what every data worker starts with
        (("config", "reports.grammar"), ("ray", "torch", "numpy", "transformers")),
    ],
)
def test_what_an_import_leaves_out(imported, absent):
    names = ", ".join(f"deepcoro.{name}" for name in imported)
    code = f"import sys, {names}; print(*[m for m in {absent!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_public_names_are_those_of_the_package():
    import deepcoro

    assert set(deepcoro.__all__) == {"Config", "VideoEncoder", "__version__", "load"}
    assert deepcoro.Config.__module__ == "deepcoro.config"
    assert deepcoro.VideoEncoder.__module__ == "deepcoro.models.video_encoder"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        deepcoro.nothing  # noqa: B018

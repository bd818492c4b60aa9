"""Plots of a sweep: every kind that applies is a picture with something on it, and the page needs no network."""

import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from deepcoro.cli import main
from deepcoro.errors import UserError
from deepcoro.launch.sweep_pictures import wrapped
from deepcoro.launch.sweep_plots import write_plots
from deepcoro.launch.sweep_results import write_results
from tests.launch.sweep_study import F1, MRR, study_of


def rows(number, values):
    generator = np.random.default_rng(0)
    return [
        ("complete", {3: values(generator), 9: values(generator)}, 10 ** generator.uniform(-5, -1))
        for _ in range(number)
    ]


def test_all_plots_of_one_objective(tmp_path):
    study = study_of([*rows(12, lambda g: float(g.random())), ("pruned", {3: 0.1}, 1e-3), ("failed", "it", 1e-3)])
    write_results(study, tmp_path)
    told = CliRunner().invoke(main, ["show", str(tmp_path), "--plots"])
    assert told.exit_code == 0, told.output
    names = ["history.png", "importances.png", "on_the_way.png", "parallel.png", "plots.html", "slice.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == names
    for name in names:
        if name.endswith(".png"):
            pixels = np.asarray(Image.open(tmp_path / "plots" / name).convert("L"), float)
            assert pixels.std() > 10 and min(pixels.shape) > 300
    page = (tmp_path / "plots" / "plots.html").read_text()
    assert page.count("<h2>") == 5 and page.startswith("<!DOCTYPE html>")
    assert not re.findall(r'<(?:script|link)[^>]*(?:src|href)="[^"]*//', page)  # nothing is fetched
    assert page.count("plotly.js v") >= 1


def test_the_front_and_each_objective_by_itself(tmp_path):
    study = study_of(rows(4, lambda g: tuple(g.random(2))), ((MRR, "maximize"), (F1, "maximize")))
    names = {path.name for path in write_plots(study, tmp_path)}
    assert {"front.png", f"history_{MRR.replace('/', '_')}.png", f"slice_{F1.replace('/', '_')}.png"} <= names
    assert not any(name.startswith(("importances", "on_the_way")) for name in names)  # too few; none are kept


def test_nothing_to_draw(tmp_path):
    with pytest.raises(UserError, match="no trial that ran to its end"):
        write_plots(study_of([("pruned", {3: 0.1}, 1e-3)]), tmp_path)


def test_names_are_broken_where_they_have_joints():
    assert wrapped("optim.lr") == "optim.lr"
    assert wrapped("masked_modeling.mask_ratio") == "masked_modeling.\nmask_ratio"
    assert wrapped("retrieval/report_to_video/mrr") == "retrieval/\nreport_to_video/\nmrr"

"""What is wrong with a sweep's space is told before anything starts; what is right means the same to Optuna."""

from pathlib import Path

import numpy as np
import optuna
import pytest

from deepcoro.config import Config
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.errors import ConfigError
from deepcoro.evaluation.evaluator import fit_baselines, measure
from deepcoro.evaluation.looking import Looked
from deepcoro.evaluation.shown import shown_lesions
from deepcoro.launch.metric_names import reported_metrics
from deepcoro.launch.space import contains, load_space, with_fields
from deepcoro.launch.space_check import check_space
from deepcoro.reports.vocabulary import SEGMENTS

SPACES = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.py"))
F1_NAME, MOTION = "captioning/finding_f1", "masked_modeling.strategy=motion"
F1 = 'OBJECTIVES = {"captioning/finding_f1": "max"}'


@pytest.fixture
def space(tmp_path):
    """``space(text of SPACE, other lines...)`` -> a space read from a file."""

    def make(text, *lines):
        lines = lines if any("OBJECTIVES" in line for line in lines) else (F1, *lines)
        (tmp_path / "s.py").write_text("\n".join(["from ray import tune", text, *lines]))
        return load_space(tmp_path / "s.py")

    return make


def refused(space, config=None):
    with pytest.raises(ConfigError) as caught:
        check_space(space, config or Config())
    return str(caught.value)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_the_shipped_spaces_fit_the_shipped_experiment(path):
    found = load_space(path)
    assert check_space(found, Config(name="multitask"))
    assert found.start
    defaults = Config().model_dump()
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    probe.enqueue_trial(dict(found.start[0]))
    changed = with_fields(Config(), found.suggest(probe.ask()))  # the first point is the default: what all is held to
    for section in ("loss", "masked_modeling"):
        assert changed.model_dump()[section] == defaults[section]
    assert changed.optim.lr == pytest.approx(Config().optim.lr, rel=1e-3)


def test_domains_mean_the_same_to_optuna(space):
    found = space(
        'SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3), "optim.layer_decay": tune.quniform(0.5, 1.0, 0.25),'
        ' "captioning.num_layers": tune.randint(2, 5), "training.batch_size": tune.qrandint(8, 32, 8),'
        ' "contrastive.loss_type": tune.choice(["sigmoid", "softmax"])}'
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [found.suggest(study.ask()) for _ in range(300)]
    assert {one["optim.layer_decay"] for one in drawn} == {0.5, 0.75, 1.0}
    assert {one["captioning.num_layers"] for one in drawn} == {2, 3, 4}  # Ray's randint leaves the upper end out
    assert {one["training.batch_size"] for one in drawn} == {8, 16, 24, 32}  # and its qrandint does not
    assert {one["contrastive.loss_type"] for one in drawn} == {"sigmoid", "softmax"}
    assert abs(np.median([np.log10(one["optim.lr"]) for one in drawn]) + 4) < 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACE = {}", "has no SPACE"),
        ('SPACE = {"optim.lr": 1e-4}', "'optim.lr' is 0.0001, and must be a domain"),
        ('SPACE = {"optim.lr": tune.grid_search([1e-4])}', "must be a domain"),
        ('SPACE = {"optim.lr": tune.randn(0, 1)}', "which Optuna cannot draw"),
        ('SPACE = {"optim.lr": tune.sample_from(lambda config: 1)}', "which Optuna cannot draw"),
        ('SPACE = {"optim.lr": tune.qloguniform(1e-5, 1e-3, 1e-5)}', "logarithmic and in steps"),
        ('SPACE = {"optim.milestones": tune.choice([["0.5"]])}', "not \\['0.5'\\]"),
        ('SPACE = {"optim.lr": tune.uniform(1, 0)}', "'optim.lr'"),
        ("\nSPACE = 1 / 0", "line 3: ZeroDivisionError"),
    ],
)
def test_what_is_no_space(space, text, message):
    with pytest.raises(ConfigError, match=message):
        space(text)


def test_what_is_no_file_objective_or_start(space, tmp_path):
    good = 'SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3)}'
    with pytest.raises(ConfigError, match="there is no space"):
        load_space(tmp_path / "none.py")
    with pytest.raises(ConfigError, match="has no OBJECTIVES"):
        space(good, "OBJECTIVES = {}")
    with pytest.raises(ConfigError, match="is 'up', and must be"):
        space(good, 'OBJECTIVES = {"captioning/finding_f1": "up"}')
    with pytest.raises(ConfigError, match="START must be a list of dicts"):
        space(good, "START = {}")


def test_keys_that_are_no_names(space):
    good = 'SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3)}'
    with pytest.raises(ConfigError, match="SPACE has the key 3, and keys must be names in quotes"):
        space("SPACE = {3: tune.uniform(0, 1)}")
    with pytest.raises(ConfigError, match="OBJECTIVES has the key None"):
        space(good, 'OBJECTIVES = {None: "max"}')
    with pytest.raises(ConfigError, match="START point 2 has the key 1"):
        space(good, 'START = [{"optim.lr": 1e-4}, {1: 1e-4}]')


def test_an_unknown_field_names_the_nearest(space):
    text = refused(space('SPACE = {"loss.weights.captoning": tune.uniform(0, 1)}'))
    assert "'loss.weights.captoning'" in text and "'loss.weights.captioning'" in text


@pytest.mark.parametrize(
    ("field", "domain", "ends"),
    [
        ("masked_modeling.mask_ratio", "uniform(0.5, 1.0)", ["at 1.0"]),
        ("loss.weights.captioning", "uniform(-1.0, 1.0)", ["at -1.0"]),
        ("captioning.num_heads", "choice([4, 6])", ["at 6", "not divisible by num_heads 6"]),
        ("optim.warmup_steps", "randint(0, 20001)", ["at 20000", "must be below training.num_steps"]),
        ("captioning.dropout", "uniform(-0.5, 1.5)", ["at -0.5", "at 1.5"]),
    ],
)
def test_a_range_is_tried_at_its_ends(space, field, domain, ends):
    text = refused(space(f'SPACE = {{"{field}": tune.{domain}}}'))
    assert all(end in text for end in ends) and len(text.splitlines()) == len([e for e in ends if e.startswith("at")])


def test_other_parameters_stand_at_the_configs_own_values(space):
    both = 'SPACE = {"optim.warmup_steps": tune.randint(0, 6000), "training.num_steps": tune.choice([%s, 10000])}'
    check_space(space(both % 9000), Config())
    assert "training.num_steps (500 | 10000), at 500" in refused(space(both % 500))


def test_an_objective_with_a_searched_weight_is_refused(space):
    weights = 'SPACE = {"loss.weights.captioning": tune.uniform(0.1, 1)}'
    for name in ("loss/total", "loss/captioning", "validation/loss/total"):
        text = refused(space(weights, f'OBJECTIVES = {{"{name}": "min"}}'))
        assert "contains what is searched (loss.weights.captioning): it would reward small weights" in text
    other = space('SPACE = {"optim.lr": tune.uniform(1e-5, 1e-4)}', 'OBJECTIVES = {"loss/total": "min"}')
    assert "is a training loss" in refused(other)


def test_an_objective_that_an_easier_task_gains_is_refused(space):
    ratio = 'SPACE = {"masked_modeling.mask_ratio": tune.uniform(0.5, 0.9)}'
    text = refused(space(ratio, 'OBJECTIVES = {"masked_modeling/mse": "min"}'))
    assert "own masked_modeling.mask_ratio" in text and "reward an easy task" in text
    check_space(
        space('SPACE = {"optim.lr": tune.uniform(1e-5, 1e-4)}', 'OBJECTIVES = {"masked_modeling/mse": "min"}'), Config()
    )


@pytest.mark.parametrize(
    ("metric", "field", "domain", "more"),
    [
        ("masked_modeling/pixel_mse", "data.frame_size", "choice([160, 224])", []),
        ("masked_modeling/mse", "data.num_frames", "choice([8, 16])", []),
        ("masked_modeling/mse", "data.sample_fps", "uniform(5, 15)", []),
        ("masked_modeling/mse", "masked_modeling.motion_temperature", "uniform(0.5, 2)", [MOTION]),
        ("retrieval/report_to_video/mrr", "contrastive.level", "choice(['clip', 'study'])", ["data.unit=study"]),
        ("retrieval/report_to_video/mrr", "data.max_text_length", "choice([64, 512])", []),
        ("captioning/finding_f1", "captioning.level", "choice(['clip', 'study'])", ["data.unit=study"]),
        ("grounding/hit_rate", "data.num_frames", "choice([8, 16])", ["captioning.tasks.aref=1"]),
    ],
)
def test_what_is_measured_with_a_field_of_the_trial_is_no_objective_beside_it(space, metric, field, domain, more):
    config = Config().override(more)
    searched = f'SPACE = {{"{field}": tune.{domain}}}'
    text = refused(space(searched, f'OBJECTIVES = {{"{metric}": "max"}}'), config)
    assert f"the trial's own {field}, which are searched" in text
    other = F1_NAME if metric != F1_NAME else "retrieval/report_to_video/mrr"
    check_space(space(searched, f'OBJECTIVES = {{"{other}": "max"}}'), config)


def test_a_metric_that_nobody_reports_names_the_nearest(space):
    rate = 'SPACE = {"optim.lr": tune.uniform(1e-5, 1e-4)}'
    assert "nearest metric of this run is 'captioning/finding_f1'" in refused(
        space(rate, 'OBJECTIVES = {"captioning/findings_f1": "max"}')
    )
    without = Config().override(["loss.weights.captioning=0"])
    assert "is reported by nobody" in refused(space(rate), without)
    sometimes = space('SPACE = {"loss.weights.captioning": tune.uniform(0.0, 1.0)}')
    assert "in part of the space its loss weighs 0" in refused(sometimes)


@pytest.mark.parametrize("field", ["data.path", "name", "evaluation.max_units", "data.filter"])
def test_what_is_measured_is_not_searched(space, field):
    value = 7 if field == "evaluation.max_units" else "'a'" if field != "data.filter" else "'video_id != \"a\"'"
    assert f"{field} cannot be searched" in refused(space(f'SPACE = {{"{field}": tune.choice([{value}])}}'))


@pytest.mark.parametrize(
    ("field", "domain", "message"),
    [
        ("resources.num_workers", "choice([1, 2])", "counted once, before the first begins"),
        ("resources.cpus_per_worker", "uniform(0.5, 1)", "counted once, before the first begins"),
        ("training.evaluate_every", "choice([100, 1000])", "measured on the same patients in the same way"),
        ("training.best_metric", 'choice(["captioning/finding_f1"])', "measured on the same patients in the same way"),
    ],
)
def test_what_a_trial_takes_and_when_it_is_measured_are_not_searched(space, field, domain, message):
    text = refused(space(f'SPACE = {{"{field}": tune.{domain}}}'))
    assert f"{field} cannot be searched" in text and message in text


def test_trials_of_different_length_are_not_stopped_by_comparison(space):
    steps = space('SPACE = {"training.num_steps": tune.choice([5000, 10000])}')
    check_space(steps, Config())
    for stopping in ("asha", "median"):
        with pytest.raises(ConfigError, match=f"training.num_steps cannot be searched with --stop {stopping}"):
            check_space(steps, Config(), stopping)


@pytest.mark.parametrize(
    ("field", "idle", "read"),
    [
        ("optim.mvm_lr", ["loss.weights.masked_modeling=0"], []),
        ("masked_modeling.decoder_drop", ["loss.weights.masked_modeling=0"], ["shared_pass.enabled=true"]),
        ("optim.captioning_lr", ["loss.weights.captioning=0"], []),
        ("optim.text_lr", ["loss.weights.contrastive=0"], []),
        ("distillation.teacher_momentum", [], ["loss.weights.distillation=1", "distillation.local_views=2"]),
        ("masked_modeling.mask_ratio", ["masked_modeling.mask_ratio_follows=schedule"], []),
        ("masked_modeling.motion_floor", [], ["masked_modeling.strategy=motion"]),
        ("optim.milestone_factor", [], ["optim.schedule=step"]),
    ],
)
def test_what_nothing_reads_is_not_searched(space, field, idle, read):
    objective = 'OBJECTIVES = {"data/valid_share": "max"}'
    searched = space(f'SPACE = {{"{field}": tune.uniform(0.5, 0.6)}}', objective)
    assert f"{field} is without effect: it is read with" in refused(searched, Config().override(idle))
    check_space(searched, Config().override(read))


def test_what_some_trials_read_is_searched(space):
    both = space(
        'SPACE = {"loss.weights.masked_modeling": tune.choice([0.0, 0.1]), "optim.mvm_lr": tune.uniform(1e-5, 1e-4)}'
    )
    check_space(both, Config().override(["loss.weights.masked_modeling=0"]))
    never = '"loss.weights.masked_modeling": tune.choice([0.0])'
    fixed = space(f'SPACE = {{{never}, "optim.mvm_lr": tune.uniform(1e-5, 1e-4)}}')
    assert "optim.mvm_lr is without effect" in refused(fixed)  # whatever the config's own weight


def test_a_weight_that_the_schedule_overrules_is_refused(space):
    weights = space('SPACE = {"loss.weights.captioning": tune.uniform(0.1, 1)}')
    assert "without effect" in refused(weights, Config().override(["loss.use_scheduler=true"]))
    final = space('SPACE = {"loss.final.captioning": tune.uniform(0.1, 1)}')
    assert "loss.use_scheduler=true alone" in refused(final)
    check_space(final, Config().override(["loss.use_scheduler=true"]))


def test_start_points_lie_in_the_space(space):
    two = 'SPACE = {"optim.lr": tune.loguniform(1e-5, 1e-3), "captioning.num_layers": tune.choice([4, 6])}'
    check_space(space(two, 'START = [{"optim.lr": 1e-3, "captioning.num_layers": 6}, {"optim.lr": 2e-5}]'), Config())
    for point, message in (
        ('{"optim.lr": 2e-3}', "START point 1: optim.lr 0.002 is outside 1e-05 to 0.001, log"),
        ('{"optim.lr": "fast"}', "optim.lr 'fast' is outside"),
        ('{"captioning.num_layers": 5}', "captioning.num_layers 5 is outside 4 | 6"),
        ('{"optim.text_lr": 1e-4}', "'optim.text_lr', which SPACE does not search; the nearest it has is 'optim.lr'"),
    ):
        assert message in refused(space(two, f"START = [{point}]"))


CONDITIONAL = """
def SPACE(trial):
    if trial.suggest_categorical("masked_modeling.strategy", ["random", "tube"]) == "tube":
        trial.suggest_float("masked_modeling.mask_ratio", 0.7, %s)
"""


def test_a_function_is_tried_in_its_conditional_parts(space):
    found = check_space(space(CONDITIONAL % 0.9), Config())
    assert found.keys() == {"masked_modeling.strategy", "masked_modeling.mask_ratio"}
    assert "masked_modeling.mask_ratio (0.7 to 1), at 1.0" in refused(space(CONDITIONAL % 1.0))
    tube = '"masked_modeling.strategy": "tube", "masked_modeling.mask_ratio"'
    check_space(space(CONDITIONAL % 0.9, f"START = [{{{tube}: 0.8}}]"), Config())
    assert "0.2 is outside 0.7 to 0.9" in refused(space(CONDITIONAL % 0.9, f"START = [{{{tube}: 0.2}}]"))
    random = f"START = [{{{tube.replace('tube', 'random')}: 0.8}}]"
    assert "does not ask for beside its other values" in refused(space(CONDITIONAL % 0.9, random))


def test_a_function_that_fails_or_returns_no_fields(space):
    assert "line 3: KeyError: 'x'" in refused(space('def SPACE(trial):\n    return {}["x"]'))
    assert "must return nothing, or values by dotted config path" in refused(space("def SPACE(trial):\n    return 3"))


def test_what_a_value_is_held_against():
    steps = optuna.distributions.FloatDistribution(0.5, 0.9, step=0.05)
    assert contains(steps, 0.75) and contains(steps, 0.9) and not contains(steps, 0.77) and not contains(steps, 0.95)
    whole = optuna.distributions.IntDistribution(8, 32, step=8)
    assert contains(whole, 24) and not contains(whole, 20) and not contains(whole, 16.5) and not contains(whole, True)


TASKS = ("captioning.tasks.aref=1",)
OF_CLIPS = ("data.unit=study", "contrastive.level=clip", "captioning.level=clip")


@pytest.fixture(scope="module")
def all_told(make_dataset, tmp_path_factory):
    """Patients of whom all is told that a metric asks for: each sign, each segment diseased in some and well in others,
    a box, and free reports, of which one cannot be read and one says the dominance."""
    signs = {"calcification": "severe", "thrombus": True, "stent": True, "in_stent_restenosis": 80}
    studies = [
        {
            "study_id": f"{split}{n}",
            "split": split,
            "dominance": ("right", "left")[n // 2 % 2],
            "findings": [
                {"segment": segment, "stenosis": 80, "occlusion": "none", "ifr": 0.8} | signs for segment in ill
            ]
            + ([] if n % 2 else [{"segment": "mid_rca", "stenosis": 100, "occlusion": "cto"}]),
        }
        for split in ("train", "val")
        for n in range(12)
        for ill in [[] if n % 2 else [segment for segment in SEGMENTS if segment != "mid_rca"]]
    ]
    reports = ("Nothing to see here.", "Right dominance. Left coronary tree. Proximal LAD: 80% stenosis (severe).")
    studies += [{"study_id": f"free{n}", "split": "val", "report": report} for n, report in enumerate(reports)]
    place = {"segment": "prox_lad", "x0": 0.25, "y0": 0.25, "x1": 0.75, "y1": 0.75}
    videos = [
        {"study_id": study["study_id"], "coronary_tree": tree, "uri": "videos/one.avi"}
        | {"boxes": [place | {"frame": frame} for frame in range(24)] if tree == "left" else None}
        for study in studies
        for tree in ("left", "right")
    ]
    return PreparedDataset.open(make_dataset(tmp_path_factory.mktemp("told"), studies, videos))


@pytest.mark.parametrize(
    "more",
    [
        TASKS,
        ("evaluation.grounding=true", "evaluation.finding_probabilities=always"),
        ("data.unit=study", "evaluation.finding_probabilities=always", "evaluation.grounding=true"),
        (*OF_CLIPS, *TASKS),
        ("loss.weights.captioning=0", "masked_modeling.target=ema"),
    ],
    ids=" ".join,
)
def test_what_an_evaluation_reports_is_known_before(more, all_told, tiny_config):
    """The reference is an evaluation itself, of records of random embeddings and of true texts: of all that may be
    reported, where there is all to report it of, each name is, and no other."""
    config = tiny_config("evaluation.num_resamples=10", *more)
    units = all_told.units("val", config.data.unit)
    chance, reader = np.random.default_rng(0), UnitReader(config, units, None, training=False)
    errors = ("normalised", "normalised_patch_mean", "pixels", "patch_mean", "interpolation", "interpolation_same_mean")
    records = []
    for number in range(len(units)):
        record = {
            "unit": number,
            "valid": True,
            "video_embedding": chance.normal(size=8).astype(np.float32),
            "text_embedding": chance.normal(size=8).astype(np.float32),
            "text_key": (number // 2,),
        }
        if config.loss.is_used("captioning"):
            record["generated"] = reader.text(number if number % 3 else 0)
            if config.evaluation.finding_probabilities == "always":
                record["segment_probabilities"] = chance.uniform(size=len(SEGMENTS))
        if config.measures_grounding:
            asked, attention = config.captioning.tasks.aref > 0, np.ones((2, 3, 3), np.float32)
            record["grounding"] = [
                Looked(one.segment, one.view, asked, (0, (0.2, 0.2, 0.7, 0.7)), attention)
                for one in shown_lesions(units, number, config)
            ]
        if config.measures_reconstruction:
            record["reconstruction"] = dict.fromkeys(errors, 0.1)
        records.append(record)
    constants = fit_baselines(all_told.units("train", config.data.unit), config)
    reported, known = set(measure(records, units, constants, config).metrics), reported_metrics(config)
    assert sorted(reported - known) == []
    assert sorted(known - reported) == []

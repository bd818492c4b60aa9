"""Trials at once on 1, 2, 3 and 4 CPUs, against the sum done by hand."""

import pytest

from deepcoro.config import Config
from deepcoro.errors import ConfigError, ResourceError
from deepcoro.launch.sweep_resources import TrialShare, choose_concurrency, num_that_fit


def with_worker(cpus, *more):
    return Config().override([f"resources.cpus_per_worker={cpus}", *more])


# A trial of a worker of 0.6 takes 0.05 + 0.6 + 0.34 = 0.99 CPUs; of a whole one 1.39.
@pytest.mark.parametrize(
    ("worker", "cpus", "fits"),
    [(0.6, 1, 1), (0.6, 2, 2), (0.6, 3, 3), (0.6, 4, 4), (1, 1, 0), (1, 2, 1), (1, 3, 2), (1, 4, 2), (1, 6, 4)],
)
def test_trials_that_fit(worker, cpus, fits):
    config, machines = with_worker(worker), [{"CPU": float(cpus)}]
    assert num_that_fit(TrialShare.of(config), machines, 8) == fits
    for asked in (1, 2, 4):
        if fits == 0:
            with pytest.raises(ResourceError):
                choose_concurrency(config, machines, asked, 8)
        else:
            number, line = choose_concurrency(config, machines, asked, 8)
            assert number == min(asked, fits)
            assert ("and not the" in line) == (asked > fits)


def test_lowered_with_the_sum_and_what_would_fit():
    number, line = choose_concurrency(with_worker(1), [{"CPU": 2.0}], 4, 8)
    assert number == 1 and "1 at once, and not the 4 asked for" in line
    assert "1.39 CPUs: driver 0.05 + 1 worker x 1 + a data task of 0.34; there are 2 CPUs" in line
    assert "resources.cpus_per_worker=0.11 all 4 fit" in line  # 4 x (0.05 + 0.11 + 0.34) = 2
    assert choose_concurrency(with_worker(0.11), [{"CPU": 2.0}], 4, 8)[0] == 4


def test_refused_alone_with_the_sum_and_what_would_fit():
    with pytest.raises(ResourceError) as caught:
        choose_concurrency(with_worker(1), [{"CPU": 1.0}], None, 8)
    assert "not even one trial fits: it takes 1.39 CPUs" in str(caught.value)
    share = float(str(caught.value).split("cpus_per_worker=")[1])
    assert share == 0.61 and choose_concurrency(with_worker(share), [{"CPU": 1.0}], None, 8)[0] == 1


def test_no_more_than_there_are_trials():
    assert choose_concurrency(with_worker(0.6), [{"CPU": 64.0}], None, 5)[0] == 5
    number, line = choose_concurrency(with_worker(0.6), [{"CPU": 64.0}], 8, 5)
    assert number == 5 and "and not" not in line


def test_workers_are_not_divided_among_machines():
    pair = with_worker(1, "resources.num_workers=2")
    assert num_that_fit(TrialShare.of(pair), [{"CPU": 1.5}, {"CPU": 1.5}], 4) == 1
    assert num_that_fit(TrialShare.of(pair), [{"CPU": 1.0}, {"CPU": 1.0}], 4) == 0
    assert num_that_fit(TrialShare.of(with_worker(3)), [{"CPU": 2.0}] * 4, 4) == 0


def test_a_trial_that_wants_a_gpu_takes_it():
    config = with_worker(1, "resources.use_gpu=true")
    machines = [{"CPU": 16.0, "GPU": 2.0}]
    assert num_that_fit(TrialShare.of(config), machines, 8) == 2
    assert (
        "1.39 CPUs and 1 GPU: driver 0.05 + 1 worker x 1 and 1 GPU" in choose_concurrency(config, machines, None, 8)[1]
    )
    with pytest.raises(ResourceError, match="and 0 GPUs; set resources.use_gpu=false"):
        choose_concurrency(config, [{"CPU": 16.0}], None, 8)


# Shares of a GPU are of one chip: of two chips, 0.6 fits on each once, 0.5 twice, and 0.25 four times.
@pytest.mark.parametrize(
    ("share", "gpus", "fits"),
    [(1, 1, 1), (0.5, 1, 2), (0.5, 2, 4), (0.6, 1, 1), (0.6, 2, 2), (0.25, 1, 4), (0.3, 2, 6), (0.1, 1, 8)],
)
def test_trials_share_a_gpu(share, gpus, fits):
    config = with_worker(1, "resources.use_gpu=true", f"resources.gpus_per_worker={share}")
    assert num_that_fit(TrialShare.of(config), [{"CPU": 64.0, "GPU": float(gpus)}], 8) == fits
    number, line = choose_concurrency(config, [{"CPU": 64.0, "GPU": float(gpus)}], 8, 8)
    assert number == fits and f"1.39 CPUs and {share} GPU:" in line
    assert choose_concurrency(config, [{"CPU": 2.8, "GPU": float(gpus)}], 8, 8)[0] == min(fits, 2)  # CPUs count too


def test_what_tune_reserves_is_what_was_counted():
    alone = TrialShare.of(with_worker(0.6, "resources.use_gpu=true", "resources.gpus_per_worker=0.5"))
    assert alone.process == {"CPU": pytest.approx(0.65), "GPU": 0.5}
    pair = TrialShare.of(with_worker(0.6, "resources.num_workers=2"))
    assert pair.process == {"CPU": 0.05}  # Ray Train reserves the workers
    assert alone.cpus == pytest.approx(0.99) and pair.cpus == pytest.approx(1.59)


def test_a_process_that_is_driver_and_worker_stands_on_one_machine():
    assert num_that_fit(TrialShare.of(with_worker(1)), [{"CPU": 1.02}, {"CPU": 0.4}], 4) == 0
    assert num_that_fit(TrialShare.of(with_worker(1)), [{"CPU": 1.05}, {"CPU": 0.34}], 4) == 1


def test_workers_of_one_run_do_not_share_a_gpu():
    with pytest.raises(ConfigError, match="resources.gpus_per_worker 0.5 is for runs of one worker"):
        with_worker(1, "resources.gpus_per_worker=0.5", "resources.num_workers=2")

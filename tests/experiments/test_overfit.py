"""What counts as learnt by heart: all of it, of every loss in use."""

from deepcoro.evaluation.report import Metric
from experiments.overfit import EXACT, MASKED, READ, learnt


def test_what_was_not_read_or_not_measured_was_not_learnt(tiny_config):
    config = tiny_config()
    assert all(config.loss.is_used(name) for name in ("contrastive", "captioning", "masked_modeling"))
    whole = {name: Metric(1.0) for name in (READ, *EXACT)} | {MASKED: Metric(0.2, baseline=1.0)}
    assert len(whole) == 5 and learnt(whole, config)
    for name in whole:
        assert not learnt({key: metric for key, metric in whole.items() if key != name}, config), name
        assert not learnt(whole | {name: Metric(0.9, baseline=1.0)}, config), name
    assert not learnt({READ: Metric(0.0)}, config)
    writing = tiny_config("loss.weights.contrastive=0", "loss.weights.masked_modeling=0")
    assert learnt({READ: Metric(1.0), "captioning/exact_match": Metric(1.0)}, writing)
    assert not learnt({READ: Metric(1.0)}, writing)

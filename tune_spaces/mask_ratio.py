"""How much of a clip masked modelling hides, and in which pattern.

    deepcoro sweep experiments/multitask.py --space tune_spaces/mask_ratio.py --num-trials 20 data.path=/data/prepared

From half (as FLIP does, and a step that is longer) to nine tenths (VideoMAE's tubes); the predecessor searched 0.6 to
0.8. The reconstruction error is no objective here: it is measured at the trial's own ratio, and less hidden is easier.
"""

from ray import tune

SPACE = {
    "masked_modeling.mask_ratio": tune.quniform(0.5, 0.9, 0.05),
    "masked_modeling.strategy": tune.choice(["random", "tube"]),
}
OBJECTIVES = {"retrieval/report_to_video/mrr": "max"}
START = [
    {"masked_modeling.mask_ratio": 0.75, "masked_modeling.strategy": "random"},  # the defaults
    {"masked_modeling.mask_ratio": 0.9, "masked_modeling.strategy": "tube"},  # VideoMAE
]

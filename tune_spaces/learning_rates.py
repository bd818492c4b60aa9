"""The learning rate of each component.

    deepcoro sweep experiments/multitask.py --space tune_spaces/learning_rates.py --num-trials 40 data.path=/prepared

The predecessor searched 1e-5 to 2e-4, with pretrained encoders. What starts from nothing wants more (the small
encoders of experiments/demo.py learn at 1e-3), and the reconstruction's rate stands at a tenth of the others.
"""

from ray import tune

SPACE = {
    "optim.lr": tune.loguniform(1e-5, 2e-3),
    "optim.text_lr": tune.loguniform(1e-6, 2e-3),
    "optim.captioning_lr": tune.loguniform(1e-5, 2e-3),
    "optim.mvm_lr": tune.loguniform(1e-6, 2e-3),
}
OBJECTIVES = {"retrieval/report_to_video/mrr": "max"}
START = [
    {"optim.lr": 6.17e-5, "optim.text_lr": 2e-5, "optim.captioning_lr": 6.17e-5, "optim.mvm_lr": 6.17e-6},  # defaults
    {"optim.lr": 1e-3, "optim.text_lr": 1e-3, "optim.captioning_lr": 1e-3, "optim.mvm_lr": 1e-3},  # experiments/demo.py
]

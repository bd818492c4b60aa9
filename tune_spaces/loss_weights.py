"""How much captioning and masked modelling weigh beside the contrastive loss.

    deepcoro sweep experiments/multitask.py --space tune_spaces/loss_weights.py --num-trials 40 data.path=/data/prepared

AdamW does not see by how much all losses are multiplied together, so only what they weigh beside each other is
searched: the contrastive loss weighs 1. The ranges hold the predecessor's sweeps (captioning 0.2 to 0.5 and masked
modelling 0.05 to 0.2, beside a contrastive loss of 1.5 to 3), and SigLIP 2 (captioning 1, masked prediction 0.25).
"""

from ray import tune

SPACE = {
    "loss.weights.contrastive": tune.choice([1.0]),
    "loss.weights.captioning": tune.loguniform(0.06, 2.0),
    "loss.weights.masked_modeling": tune.loguniform(0.015, 0.5),
}
OBJECTIVES = {
    "retrieval/report_to_video/mrr": "max",
    "captioning/finding_f1": "max",
    "masked_modeling/mse": "min",
}
START = [
    {"loss.weights.captioning": 1.0, "loss.weights.masked_modeling": 0.1},  # the defaults
    {"loss.weights.captioning": 0.16, "loss.weights.masked_modeling": 0.055},  # the middle of the predecessor's ranges
    {"loss.weights.captioning": 1.0, "loss.weights.masked_modeling": 0.25},  # SigLIP 2
]

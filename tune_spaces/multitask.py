"""Loss weights, masking and learning rates together, and whether masked modelling is worth its time at all.

    deepcoro sweep experiments/multitask.py --space tune_spaces/multitask.py --num-trials 100 data.path=/data/prepared

Without masked modelling neither its ratio nor its rate is asked for; a tube mask, which hides a place at all times,
leaves less to guess from and is tried at high ratios only. Ranges as in the other spaces of this folder.
"""


def SPACE(trial):
    """What one trial tries, under the names of the config's fields."""
    fields = {
        "loss.weights.contrastive": 1.0,
        "loss.weights.captioning": trial.suggest_float("loss.weights.captioning", 0.06, 2.0, log=True),
        "loss.weights.masked_modeling": 0.0,
        "optim.lr": trial.suggest_float("optim.lr", 1e-5, 2e-3, log=True),
        "optim.text_lr": trial.suggest_float("optim.text_lr", 1e-6, 2e-3, log=True),
        "optim.captioning_lr": trial.suggest_float("optim.captioning_lr", 1e-5, 2e-3, log=True),
    }
    if not trial.suggest_categorical("masked_modeling", [True, False]):
        return fields
    strategy = trial.suggest_categorical("masked_modeling.strategy", ["random", "tube"])
    ratio = "masked_modeling.mask_ratio" if strategy == "random" else "masked_modeling.mask_ratio_of_tubes"
    return fields | {
        "loss.weights.masked_modeling": trial.suggest_float("loss.weights.masked_modeling", 0.015, 0.5, log=True),
        "masked_modeling.strategy": strategy,
        "masked_modeling.mask_ratio": trial.suggest_float(ratio, 0.5 if strategy == "random" else 0.7, 0.9),
        "optim.mvm_lr": trial.suggest_float("optim.mvm_lr", 1e-6, 2e-3, log=True),
    }


OBJECTIVES = {"retrieval/report_to_video/mrr": "max", "captioning/finding_f1": "max"}
_RATES = {"optim.lr": 6.17e-5, "optim.text_lr": 2e-5, "optim.captioning_lr": 6.17e-5}
START = [
    {
        **_RATES,
        "loss.weights.captioning": 1.0,
        "masked_modeling": True,
        "masked_modeling.strategy": "random",
        "loss.weights.masked_modeling": 0.1,
        "masked_modeling.mask_ratio": 0.75,
        "optim.mvm_lr": 6.17e-6,
    },  # the defaults
    {**_RATES, "loss.weights.captioning": 1.0, "masked_modeling": False},
]

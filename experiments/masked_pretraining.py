r"""Pretraining without text: masked modelling alone, on an archive whose cines have no reports; and what follows it.

    python -m data_prep dicom --input /archive/angio --output /data/unread          # no --reports
    python experiments/masked_pretraining.py data.path=/data/unread root=/data/runs resources.use_gpu=true \
        resources.num_workers=8

or by ``ray job submit --working-dir . -- python experiments/masked_pretraining.py ...``. No text model is loaded. The
multitask run then begins with what it learnt, encoder and masked decoder; all else starts new, as the run tells when it
begins and ``model.json`` keeps:

    python experiments/multitask.py data.path=/data/prepared root=/data/runs name=second resources.use_gpu=true \
        resources.num_workers=8 video_encoder.pretrained=/data/runs/masked_pretraining masked_modeling.pretrained=true

The recipe is VideoMAE's (2203.12602): tubes at a ratio of 0.9, normalised pixels, AdamW with betas 0.9
and 0.95, a long warm-up and a cosine, and a rate of 1.5e-4 for each 256 clips of a batch. The decoder stays the
multitask run's default one, narrower and of half the depth of theirs, so that both runs have the same.

50,000 steps of 128 clips are 32 passes over 200,000 cines. VideoMAE took hundreds: where the archive is smaller, the
passes are more, and where a GPU is left to run, ``training.num_steps`` is what to raise. Whether it helped is for the
multitask run to show, beside one of the same length that began at random (``deepcoro compare``).
"""

from deepcoro.cli import experiment_main
from deepcoro.config import Config


def experiment() -> Config:
    """A base encoder on 16 frames of 224x224; give the path of a prepared dataset."""
    return Config(
        name="masked_pretraining",
        data={"crop_scale": (0.6, 1.0)},  # vessels keep a size that one meets; VideoMAE crops more
        masked_modeling={"strategy": "tube", "mask_ratio": 0.9},
        loss={"weights": {"contrastive": 0.0, "captioning": 0.0, "masked_modeling": 1.0}},
        optim={
            "lr": 7.5e-5,
            "mvm_lr": 7.5e-5,
            "weight_decay": 0.05,
            "mvm_weight_decay": 0.05,
            "betas": (0.9, 0.95),
            "warmup": "0.05",
        },
        training={
            "num_steps": 50_000,
            "batch_size": 128,
            "checkpoint_every": 1000,
            "evaluate_every": 5000,
            "best_metric": "masked_modeling/mse",
            "best_mode": "min",
        },
        evaluation={"max_units": 2000},
    )


if __name__ == "__main__":
    experiment_main(experiment)

"""Multitask pretraining of a base encoder on 16 frames of 224x224 with PubMedBERT, with the defaults of the training
setup.

    python experiments/multitask.py data.path=/data/prepared name=first resources.use_gpu=true resources.num_workers=8

PubMedBERT is loaded by its hub name; where there is no network, download it once and set text_encoder.name to its
folder.
"""

from deepcoro.cli import experiment_main
from deepcoro.config import Config


def experiment() -> Config:
    """Every field at its default; give the path of a prepared dataset."""
    return Config(name="multitask")


if __name__ == "__main__":
    experiment_main(experiment)

"""The demo's model on 2.5 times as many phantom patients, in batches of 32: about half an hour on 2 cores, all told.

    python -m experiments.half_hour [section.field=value ...]

Here the contrastive head has the time to tell reports apart that the demo's five minutes do not give it.
"""

from __future__ import annotations

from pathlib import Path

from deepcoro.config import Config
from experiments import demo

DATA = Path("data/half_hour")


def experiment() -> Config:
    """The demo at another length; the bias starts near -log(batch_size - 1)."""
    changes = {
        "name": "half_hour",
        "data": {"path": str(DATA / "prepared")},
        "text_encoder": {"name": str(DATA / "text_encoder")},
        "contrastive": {"logit_bias": -3.4},
        "optim": {"warmup_steps": 100},
        "training": {
            "num_steps": 2400,
            "batch_size": 32,
            "checkpoint_every": 200,
            "evaluate_every": 600,
            "best_metric": "retrieval/report_to_video/recall_at_5",
        },
    }
    return demo.experiment().merge(changes)


if __name__ == "__main__":
    demo.run_on_phantoms(experiment, DATA, 1600, __doc__)

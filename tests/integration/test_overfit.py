"""Before any claim on held-out patients: the model must be able to learn 16 studies by heart.

16 of 16 reports exact, retrieval at rank 1 both ways, reconstruction far below the patch mean.
"""

from __future__ import annotations

from deepcoro.config import Config
from deepcoro.evaluation.report import Metric
from experiments.overfit import EXACT, MASKED, learn_by_heart, learnt

STEPS = 400


def test_sixteen_studies_are_learnt_by_heart(phantom, phantom_text):
    config = Config(
        name="overfit",
        data={
            "path": str(phantom),
            "unit": "study",
            "num_videos": 2,
            "num_frames": 4,
            "frame_size": 64,
            "sample_fps": 3.0,
            "max_text_length": 128,
        },
        video_encoder={"width": 96, "depth": 2, "num_heads": 4, "tubelet": (2, 16, 16)},
        text_encoder={"name": str(phantom_text)},
        contrastive={"embedding_dim": 64, "logit_bias": -2.7},  # -log(B - 1)
        captioning={
            "hidden_size": 96,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 192,
            "max_position_embeddings": 128,
            "dropout": 0.0,
            "label_smoothing": 0.0,
        },
        masked_modeling={"decoder_hidden_size": 96, "decoder_layers": 1, "decoder_heads": 4, "mask_ratio": 0.5},
        optim={
            "lr": 2e-3,
            "text_lr": 2e-3,
            "captioning_lr": 2e-3,
            "mvm_lr": 2e-3,
            "logit_lr": 2e-2,
            "warmup_steps": 20,
        },
        training={"num_steps": STEPS, "batch_size": 16, "precision": "fp32"},
    )
    metrics = learn_by_heart(config, 16, STEPS)
    assert {*EXACT, MASKED} <= metrics.keys()
    assert {name: metrics[name].value for name in EXACT} == dict.fromkeys(EXACT, 1.0)
    assert learnt(metrics, config)
    half = Metric(0.5, baseline=1.0)
    assert not learnt(metrics | {MASKED: half}, config) and not learnt(metrics | {EXACT[0]: half}, config)

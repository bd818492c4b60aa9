"""Before any claim on held-out patients: the model must be able to learn 16 studies by heart.

16 of 16 reports exact, retrieval at rank 1 both ways, reconstruction far below the patch mean.
"""

from __future__ import annotations

import numpy as np
import torch

from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.data.text import ReportTokenizer
from deepcoro.evaluation.evaluator import predict, summarise
from deepcoro.launch.train import resolve
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.text_encoder import load_tokenizer
from deepcoro.training.optim import build_optimizer, lr_factor, set_learning_rates
from deepcoro.training.step import train_step

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
    dataset = PreparedDataset.open(str(phantom))
    units = dataset.units("train", "study")
    tokenizer = ReportTokenizer.from_pretrained(load_tokenizer(str(phantom_text)), 128)
    config = resolve(config, dataset, units).merge({"captioning": {"vocab_size": tokenizer.vocab_size}})

    sixteen = np.arange(16)
    rows = UnitReader(config, units, tokenizer, training=False).read(sixteen, sixteen)
    batch = to_torch(rows, torch.device("cpu"))
    torch.manual_seed(0)
    model = MultitaskModel.from_sources(config).train()
    optimizer = build_optimizer(model, config.optim)
    loss = MultitaskLoss(label_smoothing=0.0)
    for step in range(STEPS):
        set_learning_rates(optimizer, lr_factor(step, config.optim.warmup_steps, STEPS, 0.0))
        train_step(model, loss, optimizer, [batch], loss.loss_weights, config.num_visible)

    records = list(predict(model, config, [rows], tokenizer, torch.device("cpu")))
    metrics = summarise(records, units, None, config)
    assert metrics["captioning/exact_match"].value == 1.0
    assert metrics["retrieval/report_to_video/recall_at_1"].value == 1.0
    assert metrics["retrieval/video_to_report/recall_at_1"].value == 1.0
    assert metrics["masked_modeling/mse"].value < 0.25 * metrics["masked_modeling/mse"].baseline

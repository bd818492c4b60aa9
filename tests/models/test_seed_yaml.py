"""The flat YAML of the original training setup trains as it is printed."""

import numpy as np
import pytest
import torch

from deepcoro.config import Config
from deepcoro.data.collate import to_torch
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.data.text import ReportTokenizer
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.text_encoder import load_tokenizer, save_small_text_encoder
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step
from tests.conftest import REPORTS
from tests.test_config_seed import SEED_AS_PRINTED

VOCABULARY, STEPS = 30522, 20


@pytest.fixture
def text_folder_of_full_vocabulary(tmp_path):
    """A small BERT whose tokenizer has as many words as the YAML says, most of them never used."""
    from transformers import AutoConfig, BertModel

    folder = tmp_path / "text"
    save_small_text_encoder(REPORTS, folder, width=16, depth=1, num_heads=2, vocab_size=300)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens([f"[unused{n}]" for n in range(VOCABULARY - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    description = AutoConfig.from_pretrained(folder)
    description.vocab_size = VOCABULARY
    BertModel(description, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_seeds_yaml_trains(torchvision, text_folder_of_full_vocabulary, dataset_folder, tmp_path):
    """20 steps on real videos, all losses finite. Only what the machine asks for is another: no download of weights and
    no PubMedBERT, two clips a batch, 32 bits."""
    path = tmp_path / "seed.yaml"
    path.write_text(SEED_AS_PRINTED.replace("pretrained: true", "pretrained: false"))
    dataset = PreparedDataset.open(dataset_folder)
    config = Config.load(path).override(
        [
            f"text_encoder.name={text_folder_of_full_vocabulary}",
            f"data.path={dataset_folder}",
            "data.pixel_mean=100",
            "data.pixel_std=40",
            "training.batch_size=2",
            "training.precision=fp32",
        ]
    )
    tokenizer = ReportTokenizer.from_pretrained(load_tokenizer(config.text_encoder.source), config.data.max_text_length)
    assert tokenizer.vocab_size == config.captioning.vocab_size == VOCABULARY
    assert config.video_encoder.name == "mvit" and config.grid == (8, 7, 7)
    units = dataset.units("train")
    reader = UnitReader(config, units, tokenizer, training=True)
    torch.manual_seed(0)
    model = MultitaskModel.from_sources(config).train()
    optimizer, loss = build_optimizer(model, config.optim), MultitaskLoss.from_config(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = []
    for step in range(STEPS):
        positions = np.arange(2 * step, 2 * step + 2)
        batch = to_torch(dict(reader.read(positions, positions % len(units))), torch.device("cpu"))
        result = train_step(
            model, loss, optimizer, [batch], loss.loss_weights, config.num_visible, config.training.precision,
            max_grad_norm=config.optim.max_grad_norm,
        )  # fmt: skip
        seen.append({name: value.item() for name, value in result.losses.items()})
        print(step, seen[-1], flush=True)
    assert len(seen) == STEPS
    assert all(set(losses) == {"contrastive", "captioning", "masked_modeling"} for losses in seen)
    assert all(np.isfinite(value) for losses in seen for value in losses.values())
    unmoved = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert not [name for name in unmoved if not name.endswith("key.bias")]

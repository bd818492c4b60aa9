"""Operations of the sizes that are really trained, held against what torch counts; and what a step leaves out."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from deepcoro.config import Config
from deepcoro.launch.estimate import empty_model, synthetic_batch
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.passes import embedding_flops, is_exact, passes, step_flops
from deepcoro.training.teachers import Teachers

ROWS, TOKENS = 2, 128
SIZES = {
    "small": ((8, 112), {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}),
    "base": ((16, 224), {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}),
}


@pytest.mark.parametrize("size", SIZES)
def test_operations_of_the_sizes_are_those_that_torch_counts(size, tmp_path):
    (frames, pixels), text = SIZES[size]
    config = Config(
        data={"num_frames": frames, "frame_size": pixels, "pixel_mean": 100.0, "pixel_std": 40.0},
        video_encoder={"size": size},
        text_encoder={"name": str(tmp_path)},
        captioning={"vocab_size": 30522},
    )
    BertConfig(**text, intermediate_size=4 * text["hidden_size"]).save_pretrained(tmp_path)
    model = empty_model(config).train()
    # Tensors with shapes and nothing in them: as base really is, a step would take half a minute.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        batch = {
            "clip": torch.empty(ROWS, 1, frames, pixels, pixels, dtype=torch.uint8),
            "valid": torch.empty(ROWS, 1, dtype=torch.bool),
            "angles": torch.empty(ROWS, 1, 2),
            "view_index": torch.empty(ROWS, 1, dtype=torch.long),
            "mask_order": torch.empty(ROWS, 1, config.num_tokens, dtype=torch.long),
            "input_ids": torch.empty(ROWS, TOKENS, dtype=torch.long),
            "text_length": torch.empty(ROWS, dtype=torch.long),
        }
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = model(batch, config.num_visible)
            logits = out["caption_hidden"] @ out["caption_weight"].T
            pairs = out["logit_scale"] * out["video_embedding"] @ out["text_embedding"].T
            (logits.sum() + pairs.sum() + out["prediction"].sum()).backward()
    found = passes(config, model, TOKENS)
    assert step_flops(found, ROWS) == pytest.approx(counter.get_total_flops(), rel=0.005)
    assert sum(part.useful_flops for part in found) * ROWS == step_flops(found, ROWS)


def test_what_is_computed_again_is_no_use(tiny_config):
    plain, saving = (
        passes(config, empty_model(config), 20)
        for config in (tiny_config(), tiny_config("video_encoder.checkpoint_activations=true"))
    )
    assert [part.useful_flops for part in saving] == [part.useful_flops for part in plain]
    # An encoder's blocks are four times a forward pass where they were three; the tokens' embedding is as it was.
    again = [part for part in saving if part.computed_again]
    for part in again:
        ahead = part.step_flops - part.useful_flops
        assert ahead == pytest.approx((part.useful_flops - 6.0 * part.outside) / 3)
    assert [part.tokens for part in again] == [18, tiny_config().num_visible]


def test_losses_that_a_step_leaves_out_cost_nothing(tiny_config):
    config = tiny_config()
    model = empty_model(config)

    def cost(*losses, **more):
        return step_flops(passes(config, model, 20, losses=losses, **more), 1)

    masked, captioning, contrastive = cost("masked_modeling"), cost("captioning"), cost("contrastive")
    encoder = passes(config, model, 20)[0].step_flops
    whole = cost("masked_modeling", "captioning", "contrastive")
    assert whole == pytest.approx(masked + captioning + contrastive - encoder)  # which both that read texts share
    assert cost("masked_modeling", views=0.5) == pytest.approx(masked / 2)
    assert cost() == 0


def test_each_loss_has_texts_of_its_own_length(tiny_config):
    config = tiny_config("data.unit=study", "data.num_videos=2", "contrastive.level=study", "captioning.level=clip")
    found = passes(config, empty_model(config), {"contrastive": 40, "captioning": 11})
    assert [(part.tokens, part.clips) for part in found if part.width == 16] == [(40, 1), (10, 2)]


def test_only_our_encoder_and_berts_are_exact(tiny_config):
    config = tiny_config()
    model = empty_model(config)
    assert is_exact(config, model)
    model.text_encoder.transformer.config.model_type = "deberta"
    assert not is_exact(config, model)
    mvit = Config(video_encoder={"name": "mvit"}, loss={"weights": {"contrastive": 0, "captioning": 0}})
    model.text_encoder = None
    assert not is_exact(mvit, model)


def test_accumulated_micro_batches_are_embedded_once_more(tiny_config, tiny_model):
    """What torch counts of the forward pass that the contrastive loss needs, and nothing where there is one batch."""
    config = tiny_config("training.accumulation_steps=2", "training.batch_size=4")
    model = tiny_model(config).train()
    batch = synthetic_batch(config, 2, 48, torch.device("cpu"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch, None, ["contrastive"])
    assert embedding_flops(config, model, 48, 2) == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert embedding_flops(tiny_config(), model, 48, 2) == 0
    alone = tiny_config("training.accumulation_steps=2", "loss.weights.contrastive=0")
    assert embedding_flops(alone, tiny_model(alone), 48, 2) == 0


@pytest.mark.parametrize(
    "more",
    [
        ("masked_modeling.target=ema", "masked_modeling.decoder_drop=0.5", "masked_modeling.visible_weight=1"),
        ("loss.weights.distillation=1", "distillation.local_views=3", "distillation.head_hidden_size=64"),
    ],
)
def test_what_a_teacher_costs_is_what_torch_counts(tiny_config, tiny_model, more):
    """Its forward pass over whole clips, and what the model does to match it."""
    config = tiny_config("loss.weights.contrastive=0", "loss.weights.captioning=0", *more)
    model = tiny_model(config).train()
    teachers, loss = Teachers(config, model, torch.device("cpu")), MultitaskLoss.from_config(config)
    batch, weights = synthetic_batch(config, 2, 9, torch.device("cpu")), loss.with_parts(config.loss.highest)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        teachers.teach([batch], weights)
        torch.stack([*loss.sums(model(batch, config.num_visible), batch).values()]).sum().backward()
    found = step_flops(passes(config, model, 9), 2)
    plain = step_flops(passes(tiny_config("loss.weights.contrastive=0", "loss.weights.captioning=0"), model, 9), 2)
    assert found == pytest.approx(counter.get_total_flops(), rel=0.06)
    assert found > plain

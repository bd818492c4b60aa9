"""Clips of a study by themselves or together: the same batch, other rows."""

import numpy as np
import pytest
import torch

from deepcoro.data.collate import to_torch, trim_text
from deepcoro.data.pipeline import batches_of
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.evaluation.evaluator import predict, summarise
from deepcoro.evaluation.units import embed_unit_texts, write_texts
from deepcoro.levels import rows_at_level
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import train_step

STUDY = ("data.unit=study", "data.num_videos=2")
CLIPS = (*STUDY, "contrastive.level=clip", "captioning.level=clip")
CPU = torch.device("cpu")


@pytest.fixture
def batch_of(dataset_folder, report_tokenizer):
    """``batch_of(config, training)`` -> the first three training units (studies s0 to s2) as a Batch of tensors."""

    def read(config, training=False, rows=3):
        units = PreparedDataset.open(dataset_folder).units("train", config.data.unit)
        found = UnitReader(config, units, report_tokenizer, training).read(np.arange(rows), np.arange(rows))
        return to_torch(trim_text(found), CPU)

    return read


def test_each_clip_of_a_study_has_the_text_of_its_tree(tiny_config, batch_of, report_tokenizer):
    batch = batch_of(tiny_config(*CLIPS))
    words = [[report_tokenizer.decode(ids) for ids in row] for row in batch["clip_input_ids"].tolist()]
    assert "Right coronary tree" in words[0][0]  # v1 was made first
    assert "occlusion" in words[0][0]
    assert "80%" not in words[0][0]
    assert "Left coronary tree" in words[0][1]
    assert "80%" in words[0][1]
    assert "coronary arteries." in words[1][0]  # a report without findings is each clip's
    assert batch["clip_has_report"].tolist() == [[True, True], [True, False], [False, False]]
    assert batch["clip_report_key"][0, 0] != batch["clip_report_key"][0, 1]
    assert batch["clip_text_length"].shape == (3, 2)
    assert batch["clip_prefix_length"].tolist() == [[1, 1]] * 3
    assert "clip_has_report" not in batch_of(tiny_config(*STUDY))
    assert "clip_has_report" not in batch_of(tiny_config())


def test_the_clip_texts_are_those_of_videos_as_units(tiny_config, batch_of, dataset_folder, report_tokenizer):
    batch = batch_of(tiny_config(*CLIPS))
    units = PreparedDataset.open(dataset_folder).units("train")
    reader = UnitReader(tiny_config(), units, report_tokenizer, training=False)
    names = [units.video_rows(u)[0]["video_id"] for u in range(len(units))]
    alone = reader.read(np.arange(2), np.array([names.index("v1"), names.index("v0")]))
    assert batch["clip_report_key"][0].tolist() == alone["report_key"].tolist()
    assert torch.equal(batch["clip"][0], torch.from_numpy(alone["clip"][:, 0]))


def test_rows_of_a_level(tiny_config, batch_of):
    batch = batch_of(tiny_config(*CLIPS))
    rows = rows_at_level(batch, "clip")
    assert rows["has_report"].tolist() == [True, True, True, False, False, False]
    first, second, third = batch["study_key"].tolist()
    assert rows["study_key"].tolist() == [first, first, second, second, third, third]
    assert len({first, second, third}) == 3
    assert rows["input_ids"].shape == (6, batch["clip_input_ids"].shape[2])
    assert rows_at_level(batch, "study") is batch
    videos = batch_of(tiny_config())
    assert rows_at_level(videos, "clip") is videos
    assert "severity" not in rows
    severe = batch_of(tiny_config(*CLIPS, "contrastive.severity_weight=0.5"))
    assert rows_at_level(severe, "clip")["severity"].tolist() == [100, 80, 0, 0, 0, 0]
    assert rows_at_level(severe, "study")["severity"].tolist() == [100, 0, 0]


@pytest.mark.parametrize(
    ("contrastive", "captioning"), [("clip", "clip"), ("clip", "study"), ("study", "clip"), ("study", "study")]
)
def test_shapes_and_gradients_at_every_level(tiny_config, tiny_model, batch_of, contrastive, captioning):
    levels = (f"contrastive.level={contrastive}", f"captioning.level={captioning}")
    severe = "contrastive.severity_weight=0.5"
    config = tiny_config(*STUDY, *levels, severe, "study_pooling.num_layers=1", "study_pooling.order=true")
    model, batch = tiny_model(config).train(), batch_of(config)
    out = model(batch, config.num_visible)
    assert out["video_embedding"].shape == out["text_embedding"].shape == ((6 if contrastive == "clip" else 3), 12)
    assert len(out["caption_hidden"]) == (6 if captioning == "clip" else 3)
    loss = MultitaskLoss.from_config(config)
    counts = loss.counts(batch, 1)
    # Of s0 (an occlusion on the right, 80% on the left) and s1, whose findings are not known.
    assert counts["contrastive"].item() == pytest.approx(1.5 + 1.4 + 1 if contrastive == "clip" else 1.5 + 1)
    optimizer = build_optimizer(model, config.optim)
    train_step(model, loss, optimizer, [batch], loss.loss_weights, config.num_visible)
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert ("view_embedding" in dict(model.named_children())) == ("study" in (contrastive, captioning))
    assert (model.study_pooling is not None) == (contrastive == "study")


def test_clips_by_themselves_are_what_videos_as_units_are(tiny_config, tiny_model, batch_of):
    """The losses of two clips of one study equal those of the same two clips as units of their own."""
    config = tiny_config(*CLIPS)
    model = tiny_model(config).eval()
    together = batch_of(config, rows=1)
    alone = {
        "clip": together["clip"][0][:, None],
        "valid": together["valid"][0][:, None],
        "angles": together["angles"][0][:, None],
        "view_index": together["view_index"][0][:, None],
        "mask_order": together["mask_order"][0][:, None],
        **rows_at_level(together, "clip"),
    }
    losses = [MultitaskLoss.from_config(config)(model(b, config.num_visible), b) for b in (together, alone)]
    for name in losses[0]:
        assert torch.allclose(losses[0][name], losses[1][name], atol=1e-6), name


def test_a_clip_that_is_not_there_counts_for_no_loss(tiny_config, tiny_model, batch_of):
    config = tiny_config(*CLIPS)
    model, batch = tiny_model(config).eval(), batch_of(config)
    changed = dict(batch, clip=torch.where(batch["valid"][..., None, None, None], batch["clip"], 200))
    changed["clip_input_ids"] = torch.where(batch["clip_has_report"][..., None], batch["clip_input_ids"], 7)
    losses = [MultitaskLoss.from_config(config)(model(b, config.num_visible), b) for b in (batch, changed)]
    for name in losses[0]:
        assert torch.allclose(losses[0][name], losses[1][name], atol=1e-6), name
    assert torch.isfinite(losses[0]["total"])


def test_view_dropout_leaves_views_out_of_studies_and_of_nothing_else(tiny_config, tiny_model, batch_of):
    config = tiny_config(*STUDY, "study_pooling.view_dropout=0.9", "captioning.level=clip")
    model, batch = tiny_model(config).train(), batch_of(config)
    torch.manual_seed(0)
    first, *others = (model(batch, config.num_visible) for _ in range(12))
    same = [torch.allclose(first["video_embedding"][0], o["video_embedding"][0], atol=1e-4) for o in others]
    assert any(same)
    assert not all(same)
    for other in others:
        assert torch.allclose(first["video_embedding"][1], other["video_embedding"][1], atol=1e-6)  # its only clip
        for name in ("caption_hidden", "prediction"):
            assert torch.allclose(first[name], other[name], atol=1e-6)
    model.eval()
    assert torch.equal(model(batch)["video_embedding"], model(batch)["video_embedding"])


def test_angles_are_seen_by_pooling_and_decoder_only_where_they_are_asked_for(tiny_config, tiny_model, batch_of):
    for asked in (True, False):
        config = tiny_config(*STUDY, f"study_pooling.angles={str(asked).lower()}")
        model, batch = tiny_model(config).eval(), batch_of(config)
        turned = dict(batch, angles=batch["angles"].nan_to_num(0) + 40)
        before, after = model(batch), model(turned)
        for name in ("video_embedding", "caption_logits"):
            assert torch.allclose(before[name][0], after[name][0], atol=1e-6) == (not asked)


def test_order_is_seen_only_where_it_is_asked_for(tiny_config, tiny_model, batch_of):
    for asked in (True, False):
        config = tiny_config(*STUDY, f"study_pooling.order={str(asked).lower()}", "study_pooling.num_layers=1")
        model, batch = tiny_model(config).eval(), batch_of(config)
        turned = dict(batch, **{name: batch[name].flip(1) for name in ("clip", "angles", "view_index", "valid")})
        swapped = dict(batch, view_index=batch["view_index"].flip(1))
        before, after, other = (model(b)["video_embedding"] for b in (batch, turned, swapped))
        assert torch.allclose(before, after, atol=1e-5)  # places in the batch mean nothing
        assert torch.allclose(before[0], other[0], atol=1e-5) == (not asked)


def test_padding_views_change_nothing(tiny_config, tiny_model, batch_of):
    config = tiny_config(*STUDY, "study_pooling.num_layers=2", "study_pooling.order=true")
    model, batch = tiny_model(config).eval(), batch_of(config)
    padded = dict(batch)
    for name, filler in (("clip", 255), ("valid", False), ("angles", torch.nan), ("view_index", 3), ("mask_order", 0)):
        more = torch.full((3, 5, *batch[name].shape[2:]), filler, dtype=batch[name].dtype)
        padded[name] = torch.cat([batch[name], more], dim=1)
    before, after = model(batch), model(padded)
    for name in ("video_embedding", "caption_logits"):
        assert torch.allclose(before[name], after[name], atol=1e-6), name


def test_evaluation_takes_all_videos_and_training_as_many_as_it_is_told(tiny_config, batch_of):
    config = tiny_config("data.unit=study", "data.num_videos=1")
    assert batch_of(config)["clip"].shape[1] == 2
    assert batch_of(config, training=True)["clip"].shape[1] == 1


@pytest.mark.parametrize(
    ("numbers", "most", "wanted"),
    [
        ([1] * 5, 2, [[1, 1], [1, 1], [1]]),
        ([2, 2, 3, 1], 6, [[2, 2], [3, 1]]),
        ([1, 9, 1, 1], 4, [[1], [9], [1, 1]]),  # a study with more is a batch by itself
        ([1, 3], 4, [[1], [3]]),  # padding counts
        ([], 4, []),
    ],
)
def test_batches_hold_so_many_clips(numbers, most, wanted):
    assert [numbers[piece] for piece in batches_of(numbers, most)] == wanted


def test_a_unit_of_clips_is_their_mean(tiny_config, tiny_model, batch_of):
    config = tiny_config(*CLIPS)
    model, batch = tiny_model(config).eval(), batch_of(config)
    with torch.no_grad():
        tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
        rows = model.embed_video(tokens, batch["valid"], model.views_at(batch))
        units = model.embed_units(tokens, batch["valid"], model.views_at(batch))
        mean = rows[:2].mean(dim=0)
        assert torch.allclose(units[0], mean / mean.norm(), atol=1e-6)
        assert torch.allclose(units[1], rows[2], atol=1e-6)
        texts = embed_unit_texts(model, batch)
        alone = model.embed_text(*(rows_at_level(batch, "clip")[key] for key in ("input_ids", "text_length")))
        assert torch.allclose(texts[0], (alone[0] + alone[1]) / (alone[0] + alone[1]).norm(), atol=1e-6)
        assert torch.allclose(texts[1], alone[2], atol=1e-6)
        twice = dict(batch, clip_report_key=torch.ones_like(batch["clip_report_key"]))
        assert torch.allclose(embed_unit_texts(model, twice)[0], alone[0], atol=1e-6)  # said twice, counted once


def test_texts_of_clips_are_joined(tiny_config, tiny_model, batch_of, report_tokenizer):
    config = tiny_config(*CLIPS)
    model, batch = tiny_model(config).eval(), batch_of(config)
    with torch.no_grad():
        tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
        views_at = model.views_at(batch)
        written = write_texts(model, report_tokenizer, tokens, batch["valid"], views_at)
        assert len(written) == 3
        single = write_texts(model, report_tokenizer, tokens[2:3], batch["valid"][1:2, :1], views_at[1:2, :1])
    assert written[1] == single[0]


@pytest.mark.parametrize("levels", [STUDY, CLIPS])
def test_every_study_is_measured(tiny_config, tiny_model, dataset_folder, report_tokenizer, levels):
    config = tiny_config(*levels)
    units = PreparedDataset.open(dataset_folder).units("train", "study")
    rows = UnitReader(config, units, report_tokenizer, training=False).read(np.arange(5), np.arange(5))
    records = list(predict(tiny_model(config), config, [rows], report_tokenizer, CPU))
    assert [record["unit"] for record in records] == [*range(5)]
    assert [record["valid"] for record in records] == [True, True, True, True, False]
    for record in records[:4]:
        assert np.linalg.norm(record["video_embedding"]) == pytest.approx(1, abs=1e-5)
        assert isinstance(record["generated"], str)
        assert ("text_embedding" in record) == (record["unit"] in (0, 1, 3))  # s2 has no text
    metrics = summarise(records, units, None, config)
    assert ("captioning/exact_match" in metrics) == (levels is STUDY)
    assert "retrieval/report_to_video/recall_at_1" in metrics

"""Training on reports, findings and boxes together: what is asked, what is compared, and that it is learnt.

Letters: B rows, L text tokens, V vocabulary.
"""

import numpy as np
import pytest
import torch

from deepcoro.config_writing import Writing
from deepcoro.data.caption_tasks import TASKS, prompt_ids, read_region
from deepcoro.data.collate import to_torch, trim_text
from deepcoro.data.reader import UnitReader
from deepcoro.data.tables import PreparedDataset
from deepcoro.evaluation.pointing import write_regions
from deepcoro.evaluation.units import write_texts
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.generation import generate
from deepcoro.reports.grammar import Finding, render_finding
from deepcoro.training.loop import Worker
from deepcoro.training.optim import build_optimizer, set_learning_rates
from deepcoro.training.step import train_step

CPU = torch.device("cpu")
WEIGHTS = {"contrastive": 0.7, "captioning": 1.0, "masked_modeling": 0.1}
FULL = ("data.crop_scale=[1, 1]", "data.time_jitter=0", "data.intensity_jitter=0")
NUM_CLIPS = 8


@pytest.fixture(scope="module")
def clips(make_dataset, write_video, tmp_path_factory):
    """Eight cines with a bright square, each in a place of its own, and the finding of its segment."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "videos").mkdir()
    studies, videos = [], []
    segments = ("prox_lad", "mid_lad", "prox_lcx", "mid_lcx", "prox_rca", "mid_rca", "dist_rca", "pda")
    for number, segment in enumerate(segments):
        x, y = 2 + 6 * (number % 4), 3 + 14 * (number // 4)
        frames = np.full((7, 32, 32), 60, np.uint8)  # as many as a clip of 4 frames spans: each clip has 0, 2, 4, 6
        frames[:, y : y + 10, x : x + 8] = 120
        frames[2 * (number % 4), y : y + 10, x : x + 8] = 250
        write_video(folder / "videos" / f"v{number}.avi", frames)
        edges = {"x0": x / 32, "y0": y / 32, "x1": (x + 8) / 32, "y1": (y + 10) / 32}
        boxes = [{"segment": segment, "frame": 2 * (number % 4), **edges}]
        tree = "left" if number < 4 else "right"
        finding = {"segment": segment, "stenosis": 20 + 10 * number, "occlusion": "none"}
        studies.append({"study_id": f"s{number}", "dominance": "right", "findings": [finding]})
        videos.append({"study_id": f"s{number}", "coronary_tree": tree, "boxes": boxes, "num_frames": 7})
    return make_dataset(folder, studies, videos)


@pytest.fixture(scope="module")
def read(clips, task_tokenizer):
    """``read(config, positions, training)`` -> a Batch of tensors: at position p clip p % 8."""
    units = PreparedDataset.open(clips).units("train")

    def rows(config, positions, training=True):
        positions = np.asarray(positions)
        found = UnitReader(config, units, task_tokenizer, training).read(positions, positions % NUM_CLIPS)
        return to_torch(trim_text(found), CPU)

    return rows


def plain_caption_loss(logits, batch):
    """Mean over tokens of -log p: each token after the prefix up to the end token, row by row."""
    told = []
    for row in range(len(logits)):
        n, given = int(batch["caption_length"][row]), int(batch["prefix_length"][row])
        for place in range(given, n):
            told.append(-logits[row, place - 1].log_softmax(0)[batch["caption_ids"][row, place]])
    return torch.stack(told).mean()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_follows_the_prefix_is_learnt_and_reports_are_compared(task_config, tiny_model, read, share):
    config = task_config(f"captioning.parallel_share={share}", "captioning.label_smoothing=0.0")
    batch = read(config, range(24))
    assert set(batch["task"].tolist()) == {0, 1, 2}
    assert set(batch["prefix_length"].tolist()) == {3}
    model = tiny_model(config).double().eval()
    with torch.no_grad():
        out = model(batch, config.num_visible)
        losses = MultitaskLoss.from_config(config)(out, batch)
        assert losses["captioning"].item() == pytest.approx(plain_caption_loss(out["caption_logits"], batch).item())
        reports = model.embed_text(batch["input_ids"], batch["text_length"])
        assert torch.equal(out["text_embedding"], reports)
        # A prefix is given and not asked for; what a box says is asked for.
        frame = dict(batch, caption_ids=batch["caption_ids"].clone())
        frame["caption_ids"][:, 1] = 7
        counts = [MultitaskLoss.from_config(config).counts(b, 1)["captioning"] for b in (batch, frame)]
        assert counts[0] == counts[1] == (batch["caption_length"] - batch["prefix_length"]).sum()
    model.train()
    hidden = model(batch, config.num_visible)
    trained = MultitaskLoss.from_config(config).sums(hidden, batch)["captioning"] / counts[0]
    assert trained.item() == pytest.approx(losses["captioning"].item())


def test_parallel_rows_are_those_the_batch_says(task_config, tiny_model, read):
    config = task_config("captioning.parallel_share=0.5")
    batch = read(config, range(24))
    assert 0 < batch["parallel"].sum() < 24
    model = tiny_model(config).double().eval()
    other = dict(batch, caption_ids=torch.where(batch["caption_ids"] > 5, 6, batch["caption_ids"]))
    with torch.no_grad():
        one, two = (model(b, None)["caption_logits"] for b in (batch, other))
    same = [torch.equal(one[row], two[row]) for row in range(24)]
    assert same == batch["parallel"].tolist()


@pytest.mark.parametrize("number", [2, 4])
def test_any_number_of_micro_batches_is_the_one_batch(task_config, tiny_model, read, number):
    config = task_config("captioning.parallel_share=0.5", "contrastive.positives=text")
    size = 16 // number
    whole = [read(config, range(16))]
    parts = [read(config, range(size * n, size * n + size)) for n in range(number)]
    assert len({part["caption_ids"].shape[1] for part in parts}) > 1  # padded to another length each
    gradients, losses = [], []
    for batches in (whole, parts):
        model = tiny_model(config).double().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = MultitaskLoss.from_config(config)
        result = train_step(model, loss, optimizer, batches, WEIGHTS, config.num_visible, max_grad_norm=1e9)
        losses.append(result.losses["captioning"].item())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert gradients[0]["captioning_decoder.mask_token"].abs().sum() > 0
    for name, grad in gradients[0].items():
        assert torch.allclose(grad, gradients[1][name], atol=1e-10), name


def test_clips_of_a_study_are_asked_what_they_are_as_units(task_config, tiny_model, read):
    """The same clips as rows of 2 studies and as units by themselves: one loss, and reports are compared in both."""
    study = ("data.unit=study", "data.num_videos=2", "contrastive.level=clip", "captioning.level=clip")
    config = task_config("captioning.parallel_share=0.5")
    alone = read(config, range(8, 16))
    assert len(set(alone["task"].tolist())) > 1
    assert alone["parallel"].any()
    of_clips = {"input_ids", "text_length", "prefix_length", "has_report", "report_key"}
    of_clips |= {"task", "caption_ids", "caption_length", "has_caption", "parallel"}
    together = {
        "clip": alone["clip"].view(4, 2, *alone["clip"].shape[2:]),
        **{name: alone[name].view(4, 2, *alone[name].shape[2:]) for name in ("valid", "angles", "view_index")},
        "mask_order": alone["mask_order"].view(4, 2, -1),
        "study_key": alone["study_key"][::2],
        **{f"clip_{name}": alone[name].view(4, 2, *alone[name].shape[1:]) for name in of_clips},
        "input_ids": alone["input_ids"][::2],
    }
    model, losses = tiny_model(config).eval(), []
    for asked, batch in ((config, alone), (task_config(*study, "captioning.parallel_share=0.5"), together)):
        model.config = asked
        losses.append(MultitaskLoss.from_config(asked)(model(batch, config.num_visible), batch))
    for name in losses[0]:
        assert losses[0][name].item() == pytest.approx(losses[1][name].item(), abs=1e-5), name


def test_cut_texts_of_a_step_are_summed(task_config, tiny_model, read):
    config = task_config()
    batch = read(config, range(4))
    batch["num_cut"] = torch.tensor([1, 0, 2, 0])
    model, loss = tiny_model(config), MultitaskLoss.from_config(config)
    optimizer = build_optimizer(model, config.optim)
    result = train_step(model, loss, optimizer, [batch, batch], WEIGHTS, config.num_visible).on_host()
    assert (result.cut_texts.item(), result.lost_views.item()) == (6, 0)
    assert not result.skipped


def test_cut_texts_are_told_of_once(tiny_config, tmp_path):
    worker = object.__new__(Worker)
    worker.config, worker.run, worker.rank, worker.step = tiny_config(), tmp_path, 0, 3
    worker.counters = {"cut_texts": 0}
    for number in (0, 2, 5):
        worker._count_cut_texts(number)
    assert worker.counters["cut_texts"] == 7
    (line,) = (tmp_path / "problems.jsonl").read_text().splitlines()
    assert "step 3: 2 texts were longer than data.max_text_length=64" in line


def overlap(one, other):
    """Intersection over union of two boxes."""
    x0, y0, x1, y1 = (pick(a, b) for pick, a, b in zip((max, max, min, min), one, other, strict=True))
    inside = max(0, x1 - x0) * max(0, y1 - y0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return inside / (sum(areas) - inside)


def test_eight_clips_are_learnt_by_heart(task_config, tiny_model, read, clips, task_tokenizer):
    """Asked for a finding it tells where it is, asked for a place what is there, and without either the report."""
    words = task_tokenizer
    config = task_config(
        *FULL, "video_encoder.width=48", "captioning.hidden_size=48", "captioning.intermediate_size=96",
        "captioning.label_smoothing=0.0", "captioning.max_generation_length=40", "captioning.parallel_share=0.25",
        "data.frame_size=32", "optim.lr=0.003", "optim.captioning_lr=0.003",
    )  # fmt: skip
    model = tiny_model(config).train()
    loss, optimizer = MultitaskLoss.from_config(config), build_optimizer(model, config.optim)
    batches = [read(config, range(16 * n, 16 * n + 16)) for n in range(8)]
    for step in range(400):
        set_learning_rates(optimizer, min(1, step / 20, 2 - step / 200))
        train_step(model, loss, optimizer, [batches[step % 8]], {"captioning": 1.0}, config.num_visible)
    model.eval()
    batch = read(config, range(NUM_CLIPS), training=False)
    units = PreparedDataset.open(clips).units("train")
    with torch.no_grad():
        tokens, views_at = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1)), model.views_at(batch)
        reports = write_texts(model, words, tokens, batch["valid"], views_at)
        memory, mask = model.memory(tokens, batch["valid"], views_at)
        assert reports == [words.decode(row) for row in batch["input_ids"].tolist()]
        for number in range(NUM_CLIPS):
            finding = Finding.from_dict(units.study_row(number)["findings"][0])
            (true,) = units.video_rows(number)[0]["boxes"]
            for task in ("aref", "gcap"):
                place = f"Frame {number % 4}: " + " ".join(str(round(500 * true[k])) for k in ("x0", "y0", "x1", "y1"))
                given = {"aref": render_finding(finding), "gcap": f"{place}."}[task]
                prompt = torch.tensor([prompt_ids(words, config.captioning, task, given)])
                one = (memory[number : number + 1], mask[number : number + 1])
                ends, most = (words.end_id, words.pad_id), Writing(max_generation_length=40)
                ids = generate(model.captioning_decoder, *one, prompt, *ends, most).ids
                text = words.decode(ids[0].tolist())
                if task == "gcap":
                    assert text == render_finding(finding)
                    continue
                found = read_region(text)
                assert found is not None, text
                frame, box = found
                assert frame == number % 4
                assert overlap(box, [true[k] for k in ("x0", "y0", "x1", "y1")]) > 0.8
        told = [Finding.from_dict(units.study_row(number)["findings"][0]) for number in range(NUM_CLIPS)]
        asked = [render_finding(finding) for finding in told]
        pointed = write_regions(model, words, tokens, batch["valid"], views_at, range(NUM_CLIPS), asked)
        for number, region in enumerate(pointed):  # all together, as each by itself
            assert (region.segment, region.frame) == (told[number].segment, number % 4)
            (true,) = units.video_rows(number)[0]["boxes"]
            assert overlap(region.box, [true[k] for k in ("x0", "y0", "x1", "y1")]) > 0.8
    assert [*TASKS] == ["report", "aref", "gcap"]

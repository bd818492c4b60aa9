"""Small things that many tests need: a tiny config, a tiny text encoder, a prepared dataset, random batches."""

from __future__ import annotations

import json
import math
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads only get in each other's way on tensors this small

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

# No test hangs on how fast this machine is, and the examples are the same each time, so that a failure is of the change
# and not of the day. HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

REPORTS = (
    "Left coronary tree. Left main: normal. Proximal LAD: 80% stenosis (severe), TIMI 2 flow. LCX: normal.",
    "Right coronary tree. Proximal RCA: 70% stenosis (severe), iFR 0.89, Medina 1,1,0. PDA: normal.",
    "Right dominance. Mid RCA: chronic total occlusion (100%), collateral filling, TIMI 0 flow.",
    "First diagonal: in-stent restenosis 35%, minimal calcification, thrombus, treated by PCI.",
)
TINY = (
    "name=tiny",
    "data.num_frames=4",
    "data.frame_size=24",
    "data.max_text_length=64",
    "data.pixel_mean=100.0",
    "data.pixel_std=40.0",
    "video_encoder.width=24",
    "video_encoder.depth=2",
    "video_encoder.num_heads=2",
    "video_encoder.tubelet=[2, 8, 8]",
    "contrastive.embedding_dim=12",
    "contrastive.logit_bias=-1.0",
    "captioning.hidden_size=16",
    "captioning.num_layers=2",
    "captioning.num_heads=2",
    "captioning.intermediate_size=32",
    "captioning.max_position_embeddings=64",
    "captioning.max_generation_length=16",
    "captioning.dropout=0.0",
    "masked_modeling.decoder_hidden_size=24",
    "masked_modeling.decoder_layers=1",
    "masked_modeling.decoder_heads=2",
    "optim.warmup_steps=2",
    "training.num_steps=10",
    "training.batch_size=4",
    "training.precision=fp32",
)


def pytest_configure(config):
    config.addinivalue_line("markers", "real_data: reads real videos or DICOM files that lie outside the repository")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """A tiny BERT with its tokenizer, in the Hugging Face format, without dropout."""
    return _text_encoder(tmp_path_factory.mktemp("text_encoder"), REPORTS)


def _text_encoder(folder, texts):
    from deepcoro.models.text_encoder import save_small_text_encoder

    save_small_text_encoder(texts, folder, width=16, depth=1, num_heads=2, vocab_size=300)
    description = json.loads((folder / "config.json").read_text())
    description |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="session")
def report_tokenizer(text_folder):
    from deepcoro.data.text import ReportTokenizer
    from deepcoro.models.text_encoder import load_tokenizer

    return ReportTokenizer.from_pretrained(load_tokenizer(str(text_folder)), 64)


@pytest.fixture(scope="session")
def tiny_config(text_folder, report_tokenizer):
    """``tiny_config("section.field=value", ...)`` -> a Config that trains in milliseconds."""
    from deepcoro.config import Config

    text = (f"text_encoder.name={text_folder}", f"captioning.vocab_size={report_tokenizer.vocab_size}")
    return lambda *assignments: Config().override([*TINY, *text, *assignments])


@pytest.fixture(scope="session")
def task_text_folder(tmp_path_factory):
    """As ``text_folder``, of a tokenizer that knows the words of the captioning tasks too."""
    from deepcoro.data.caption_tasks import WORDS

    return _text_encoder(tmp_path_factory.mktemp("task_text_encoder"), [*REPORTS, *WORDS])


@pytest.fixture(scope="session")
def task_tokenizer(task_text_folder):
    from deepcoro.data.text import ReportTokenizer
    from deepcoro.models.text_encoder import load_tokenizer

    return ReportTokenizer.from_pretrained(load_tokenizer(str(task_text_folder)), 64)


@pytest.fixture(scope="session")
def task_config(tiny_config, task_text_folder, task_tokenizer):
    """``task_config("section.field=value", ...)`` -> as ``tiny_config``, asking for reports, findings and boxes."""
    text = (f"text_encoder.name={task_text_folder}", f"captioning.vocab_size={task_tokenizer.vocab_size}")
    tasks = ("captioning.tasks.report=1", "captioning.tasks.aref=1", "captioning.tasks.gcap=1")
    return lambda *assignments: tiny_config(*text, *tasks, *assignments)


@pytest.fixture(scope="session")
def tiny_model():
    """``tiny_model(config, seed)`` -> a MultitaskModel with repeatable weights."""
    import torch

    from deepcoro.models.multitask import MultitaskModel

    def build(config, seed=0):
        torch.manual_seed(seed)
        return MultitaskModel.from_sources(config)

    return build


@pytest.fixture(scope="session")
def random_batch():
    """``random_batch(config, rows, views, seed, length)`` -> a Batch of tensors, all valid, texts all different."""
    import torch

    from deepcoro.reports.vocabulary import SEGMENTS

    def build(config, rows=4, views=1, seed=0, length=9):
        chance = torch.Generator().manual_seed(seed)
        frames, size, tokens = config.data.num_frames, config.data.frame_size, config.num_tokens
        lengths = torch.randint(4, length + 1, (rows,), generator=chance)
        lengths[0] = length
        ids = torch.randint(5, config.captioning.vocab_size, (rows, length), generator=chance)
        ids[torch.arange(length) >= lengths[:, None]] = 0
        order = torch.stack([torch.randperm(tokens, generator=chance) for _ in range(rows * views)])
        maps = {}
        if config.loss.is_used("grounding"):
            shape = (rows, views, math.prod(config.grounding.cells(config.grid)))
            there, which = (torch.randint(n, shape, generator=chance, dtype=torch.int32) for n in (3, len(SEGMENTS)))
            maps["segments_at"] = torch.where(there == 0, 1 << which, 0)
            maps["stenosis_at"] = torch.where(there == 0, 40 + 3 * which, -1).to(torch.int8)
            maps["edges_at"] = (
                torch.rand(*shape, 4, generator=chance) + torch.where(there == 0, 0, torch.nan)[..., None]
            )
            maps["lesions_known"] = torch.rand(shape, generator=chance) < 0.7
            maps["tree"] = torch.randint(-1, 2, (rows, views), generator=chance, dtype=torch.int8)
        return maps | {
            "clip": torch.randint(0, 256, (rows, views, frames, size, size), generator=chance, dtype=torch.uint8),
            "valid": torch.ones(rows, views, dtype=torch.bool),
            "angles": torch.zeros(rows, views, 2),
            "view_index": torch.arange(views).expand(rows, -1),
            "mask_order": order.view(rows, views, tokens),
            "input_ids": ids,
            "text_length": lengths,
            "prefix_length": torch.ones(rows, dtype=torch.long),
            "task": torch.zeros(rows, dtype=torch.long),
            "has_report": torch.ones(rows, dtype=torch.bool),
            "report_key": torch.arange(1, rows + 1) + 100 * seed,
            "study_key": torch.arange(1, rows + 1) + 100 * seed,
            "position": torch.arange(rows),
        }

    return build


@pytest.fixture(scope="session")
def write_video():
    """``write_video(path, frames [T, H, W] uint8, fps)`` -> a grey MJPEG, as prepared datasets hold them."""
    import av

    def write(path, frames, fps=15):
        with av.open(str(path), "w", format="avi") as container:
            stream = container.add_stream("mjpeg", rate=fps)
            stream.height, stream.width = frames.shape[1:]
            stream.pix_fmt = "yuvj420p"
            stream.options = {"qmin": "1", "qmax": "2"}
            stream.codec_context.qmin, stream.codec_context.qmax = 1, 2
            for picture in frames:
                planes = np.concatenate([picture, np.full((len(picture) // 2, picture.shape[1]), 128, np.uint8)])
                for packet in stream.encode(av.VideoFrame.from_ndarray(planes, format="yuvj420p")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)

    return write


@pytest.fixture(scope="session")
def ramp_frames():
    """``ramp_frames(num, size)`` -> frames [T, H, W] that are each of one grey level: 20, 26, 32, ..."""
    return lambda num, size=32: np.repeat(20 + 6 * np.arange(num, dtype=np.uint8), size * size).reshape(num, size, size)


@pytest.fixture(scope="session")
def make_dataset(write_video, ramp_frames):
    """``make_dataset(folder, studies, videos)`` -> a prepared dataset; rows name what differs from the defaults."""
    from deepcoro.data.schema import STUDIES_SCHEMA, VIDEOS_SCHEMA

    def make(folder, studies, videos):
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        study_rows = [{"patient_id": "p-" + row["study_id"], "split": "train"} | row for row in studies]
        video_rows = []
        for number, given in enumerate(videos):
            row = {
                "video_id": f"v{number}",
                "num_frames": 24,
                "height": 32,
                "width": 32,
                "fps": 15.0,
                "acquisition": "diagnostic",
                "acquisition_order": number,
                "partial": False,
            } | given
            row.setdefault("uri", f"videos/{row['video_id']}.avi")
            if not (folder / row["uri"]).exists():
                write_video(folder / row["uri"], ramp_frames(row["num_frames"]), 15)
            video_rows.append(row)
        pq.write_table(pa.Table.from_pylist(study_rows, schema=STUDIES_SCHEMA), folder / "studies.parquet")
        pq.write_table(pa.Table.from_pylist(video_rows, schema=VIDEOS_SCHEMA), folder / "videos.parquet")
        card = {"pixel_mean": 100.0, "pixel_std": 40.0, "fingerprint": "made-for-tests"}
        (folder / "dataset.json").write_text(json.dumps(card))
        return str(folder)

    return make


LEFT = {"segment": "prox_lad", "stenosis": 80, "occlusion": "none"}
RIGHT = {"segment": "mid_rca", "stenosis": 100, "occlusion": "cto", "timi": 0}


@pytest.fixture(scope="session")
def dataset_folder(make_dataset, tmp_path_factory):
    """Five training studies and one each for validation and test.

    s0, s3: equal findings of both trees, two videos each (left, right). s1: a report without findings. s2: neither.
    s4: a report, and one video that is damaged. s5: validation. s6: test.
    """
    folder = tmp_path_factory.mktemp("prepared")
    studies = [
        {"study_id": "s0", "dominance": "right", "findings": [LEFT, RIGHT], "lvef": 60.0},
        {"study_id": "s1", "report": "Normal coronary arteries.", "lvef": 30.0},
        {"study_id": "s2"},
        {"study_id": "s3", "dominance": "right", "findings": [LEFT, RIGHT]},
        {"study_id": "s4", "report": "Not to be seen."},
        {"study_id": "s5", "split": "val", "dominance": "right", "findings": [RIGHT]},
        {"study_id": "s6", "split": "test", "report": "Held out."},
    ]
    videos = [
        # Study by study, but s0's second cine was made before its first.
        {"video_id": "v0", "study_id": "s0", "coronary_tree": "left", "acquisition_order": 2, "primary_angle": -20.0},
        {"video_id": "v1", "study_id": "s0", "coronary_tree": "right", "acquisition_order": 1, "acquisition": "pci"},
        {"video_id": "v2", "study_id": "s1"},
        {"video_id": "v3", "study_id": "s2", "coronary_tree": "left"},
        {"video_id": "v4", "study_id": "s3", "coronary_tree": "left", "acquisition_order": 1},
        {"video_id": "v5", "study_id": "s3", "coronary_tree": "right", "acquisition_order": 2},
        {"video_id": "v6", "study_id": "s4"},
        {"video_id": "v7", "study_id": "s5", "coronary_tree": "right"},
        {"video_id": "v8", "study_id": "s6"},
    ]
    path = make_dataset(folder, studies, videos)
    damaged = folder / "videos" / "v6.avi"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    return path

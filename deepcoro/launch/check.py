"""Whether everything that a run needs works here: one line a part, each tried even where another failed.

The model is the run's own, or a tiny one; it is trained for one step on noise. Nothing is kept.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import ray
import torch

from deepcoro.config import Config
from deepcoro.data.decode import decode_frames
from deepcoro.data.reader import UnitReader
from deepcoro.data.schema import UNITS, Batch
from deepcoro.data.tables import PreparedDataset
from deepcoro.data.text import ReportTokenizer
from deepcoro.errors import DataError, DeepCoroError, ResourceError, UserError
from deepcoro.launch.estimate import CPU_RATE_PER_THREAD, synthetic_batch
from deepcoro.launch.paths import absolute
from deepcoro.launch.resources import check_resources, nodes, set_environment, start_ray
from deepcoro.launch.train import resolve, save_tokenizer
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.passes import passes, step_flops
from deepcoro.models.pretrained import resolve_architecture
from deepcoro.models.text_encoder import save_small_text_encoder
from deepcoro.reports.grammar import Finding, render_report
from deepcoro.training.mask_ratio import MaskRatio
from deepcoro.training.optim import build_optimizer, parameter_groups
from deepcoro.training.step import train_step
from deepcoro.training.validation import run_tokenizer

_ROWS = 2  # of noise: the fewest that have something to tell apart
_TEXT_TOKENS = 24
_SECONDS_IN_BF16 = 2.0  # a step on the CPU that is thought to take longer is tried in fp32
_FINDINGS = [
    Finding("prox_lad", stenosis=80, timi=2),
    Finding("mid_rca", stenosis=100, occlusion="cto", timi=0, collaterals=True),
]


class NotTried(Exception):
    """A part that cannot be tried, and is not needed or waits for another one."""


def check(config: Config | None = None) -> bool:
    """Try every part on ``config``, or on a tiny one of its own; print a line each. Returns whether all is well."""
    set_environment()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        parts = Check(config, Path(scratch))
        failed = [name for name, part in parts.all().items() if not _told(name, part)]
    verdict = "failed: " + ", ".join(failed) if failed else "all is well"
    print(f"\n{verdict} ({time.perf_counter() - began:.0f} seconds)", flush=True)
    return not failed


def _told(name: str, part: Callable[[], str]) -> bool:
    """Try a part and say how it went; whether it did not fail."""
    try:
        state, text = "ok", part()
    except NotTried as reason:
        state, text = "-", str(reason)
    except DeepCoroError as error:
        state, text = "FAILED", str(error)
    except Exception as error:  # whatever broke is what this is here to find
        state, text = "FAILED", f"{type(error).__name__}: {error}"
    lines = text.splitlines() or [""]
    print(f"{state:<6}  {name:<9}  {lines[0]}", *(f"{'':19}{line}" for line in lines[1:]), sep="\n", flush=True)
    return state != "FAILED"


class Check:
    """The parts, in the order in which each finds what it needs.

    Args:
        config: the run's; ``None`` for a tiny one with a tokenizer of its own.
        scratch: a folder that is gone afterwards.
    """

    def __init__(self, config: Config | None, scratch: Path) -> None:
        self.own, self.scratch = config is None, scratch
        self.config = tiny_config(scratch) if config is None else config
        with contextlib.suppress(UserError):  # weights that cannot be read are told of when the model is made
            self.config = resolve_architecture(self.config)
        self.report = render_report(_FINDINGS, "right", None)  # one of the data's own, where there is one
        self.tokenizer: ReportTokenizer | None = None
        self.model: MultitaskModel | None = None
        self.out: dict[str, torch.Tensor] | None = None
        self.device = torch.device("cuda" if self.config.resources.use_gpu and torch.cuda.is_available() else "cpu")

    def all(self) -> dict[str, Callable[[], str]]:
        """The parts by name."""
        return {
            "ray": self.cluster,
            "gpu": self.gpu,
            "decoder": self.decoder,
            "data": self.data,
            "tokenizer": self.tokens,
            "model": self.build,
            "forward": self.forward,
            "losses": self.losses,
            "step": self.step,
            "captions": self.captions,
        }

    def cluster(self) -> str:
        """Ray starts or answers, runs a task, and has what the run asks for."""
        start_ray()
        there = ray.cluster_resources()
        if ray.get(ray.remote(num_cpus=0.1)(_add).remote(1, 1), timeout=120) != 2:
            raise ResourceError("a task on Ray gave a wrong result")
        check_resources(self.config, nodes())
        return f"{ray.__version__}, {len(ray.nodes())} node(s), {there.get('CPU', 0):g} CPUs; a task ran on it"

    def gpu(self) -> str:
        """There is a GPU where the config wants one."""
        here = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        if not self.config.resources.use_gpu:
            more = f"; there is {here[0]}: set resources.use_gpu=true to use it" if here else ""
            return f"not asked for (resources.use_gpu=false){more}"
        cluster = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else 0
        if not here and cluster:
            return f"{cluster:g} in the cluster; this machine has none: the model is tried on its CPU"
        if not here:
            raise ResourceError(
                "resources.use_gpu is true, and torch sees no GPU here; look at nvidia-smi and "
                f"CUDA_VISIBLE_DEVICES (this torch is {torch.__version__}), or set resources.use_gpu=false"
            )
        return f"{len(here)} x {here[0]}"

    def decoder(self) -> str:
        """A small MJPEG is written, and its frames come back in the order asked for."""
        frames = np.stack([np.full((64, 64), 20 + 12 * number, np.uint8) for number in range(12)])
        frames[:, 16:48, 16:48] += 40
        path = self.scratch / "cine.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=15)
            stream.height, stream.width, stream.pix_fmt = 64, 64, "yuvj420p"
            for picture in frames:
                planes = np.concatenate([picture, np.full((32, 64), 128, np.uint8)])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuvj420p")))
            container.mux(stream.encode())
        indices = np.array([7, 0, 11, 3])
        found = decode_frames(str(path), indices, len(frames))
        error = np.abs(found.astype(int) - frames[indices]).mean()
        if found.shape != (4, 64, 64) or error > 3:
            raise DataError(f"frames came back as {found.shape}, off by {error:.1f} grey levels; reinstall av (PyAV)")
        return f"PyAV {av.__version__}: MJPEG written and read, frames off by {error:.2f} of 255 grey levels"

    def data(self) -> str:
        """A batch of the run's own cines can be read."""
        if self.own:
            self.config = self._with_pixels()
            raise NotTried("no experiment was given: noise is used")
        part = self.config.data
        path = absolute(part.path, "data.path")
        if "://" not in path and not Path(path).exists():
            self.config = self._with_pixels()
            raise NotTried(f"there is nothing at data.path {path}: noise is used")
        try:
            dataset = PreparedDataset.open(path)
            units = dataset.units("train", part.unit, part.filter)
            self.config = resolve(self.config, dataset, units)
        except DeepCoroError:
            self.config = self._with_pixels()
            raise
        some = np.arange(min(4, len(units)))
        reader = UnitReader(self.config, units, None, training=True)
        batch = reader.read(some, some)
        told = np.flatnonzero(units.has_text(needs_report=self.config.data.text_needs_report))
        if len(told):
            self.report = reader.text(int(told[0])) or self.report
        if not batch["valid"].any():
            raise DataError(f"none of {len(some)} {UNITS[part.unit]} could be read: {batch['problem'][0]}")
        read = f"{int(batch['valid'].any(axis=1).sum())} of {len(some)} read"
        return f"{len(units)} training {UNITS[part.unit]}, {len(told)} with text; {read}, as {_shape(batch)}"

    def tokens(self) -> str:
        """A report becomes tokens and text again."""
        if not self.config.needs_text:
            raise NotTried("no loss reads text")
        folder = self.scratch / "run"
        self.config = save_tokenizer(self.config, folder)
        self.tokenizer = run_tokenizer(self.config, folder)
        assert self.tokenizer is not None
        ids, lengths = self.tokenizer.encode([self.report])
        back = self.tokenizer.decode(ids[0, 1:].tolist())
        about = f"{self.tokenizer.vocab_size} tokens; a report of {len(self.report)} letters is {lengths[0]} of them"
        if lengths[0] == self.tokenizer.max_length:
            return f"{about}, which is all that data.max_text_length lets through: its end may be cut off"
        if _letters(back) != _letters(self.report):
            raise DataError(
                f"the tokenizer of {self.config.text_encoder.source!r} does not give a report back; use one that knows "
                f"its words\nreport  {self.report}\nback    {back}"
            )
        return f"{about}, and comes back"

    def build(self) -> str:
        """The model is made, its text encoder with the weights of its source."""
        if self.config.needs_text and self.tokenizer is None:
            raise NotTried("waits for the tokenizer")
        self.config = resolve_architecture(self.config)
        self.model = MultitaskModel.from_sources(self.config).to(self.device)
        counts = {name: number for name, (number, _) in self.model.num_parameters().items()}
        parts = ", ".join(f"{name} {number / 1e6:.2f}" for name, number in counts.items())
        about = f"{sum(counts.values()) / 1e6:.2f} M parameters on {self.device} ({parts})"
        return "\n".join([about, *self.model.loaded])

    def forward(self) -> str:
        """Every output has numbers in it that are finite."""
        with torch.no_grad():
            shares = self.config.shared_pass.enabled
            visible = MaskRatio(self.config).num_visible(0)
            out = self._made().eval()(self._batch(), visible, shared_pass=shares)
        _refuse_infinite(out)
        self.out = out
        return ", ".join(f"{name} {'x'.join(map(str, v.shape))}" for name, v in out.items() if v.ndim)

    def losses(self) -> str:
        """Each loss in use is a finite number."""
        if self.out is None:
            raise NotTried("waits for the forward pass")
        means = MultitaskLoss.from_config(self.config)(self.out, self._batch())
        _refuse_infinite(means)
        return "  ".join(f"{name} {value.item():.3f}" for name, value in means.items())

    def step(self) -> str:
        """One step of the optimizer reaches every component."""
        model = self._made().train()
        optimizer = build_optimizer(model, self.config.optim)
        before = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]
        loss = MultitaskLoss.from_config(self.config)
        weights = self.config.loss.highest
        precision, why = self._precision(model)
        result = train_step(
            model,
            loss,
            optimizer,
            [self._batch()],
            weights,
            MaskRatio(self.config).num_visible(0),
            precision,
            max_grad_norm=self.config.optim.max_grad_norm,
            shared_pass=self.config.shared_pass.enabled,
        )
        if result.skipped:
            _refuse_infinite(result.losses | {f"gradient of {part}": norm for part, norm in result.grad_norms.items()})
        moved = {group["component"]: False for group in parameter_groups(model, self.config.optim)}
        for group, old in zip(optimizer.param_groups, before, strict=True):
            changed = any(not torch.equal(a, b) for a, b in zip(old, group["params"], strict=True))
            moved[group["component"]] |= changed
        model.eval()
        if still := [component for component, changed in moved.items() if not changed]:
            raise DataError(f"a step did not change {', '.join(map(str, still))}: nothing would be learnt there")
        return f"{precision}{why}, gradient norm {result.grad_norm.item():.3f}; changed {', '.join(map(str, moved))}"

    def captions(self) -> str:
        """The decoder writes a text."""
        from deepcoro.models.generation import generate  # it loads transformers, which takes seconds

        model = self._made().eval()
        if model.captioning_decoder is None:
            raise NotTried("captioning is not used (loss.weights.captioning=0)")
        assert self.tokenizer is not None
        batch, part, words = self._batch(), self.config.captioning, self.tokenizer
        with torch.no_grad():
            tokens = model.video_encoder(model.normalise(batch["clip"]).flatten(0, 1))
            memory, mask = model.memory(tokens, batch["valid"], model.views_at(batch))
        longest = min(_TEXT_TOKENS, part.max_generation_length)
        writing = part.model_copy(update={"max_generation_length": longest})
        ids = generate(model.captioning_decoder, memory, mask, words.start_id, words.end_id, words.pad_id, writing).ids
        text = words.decode(ids[0].tolist())
        return f"{ids.shape[1]} tokens written of noise, by an untrained decoder: {text[:40]!r} ..."

    def _with_pixels(self) -> Config:
        """The config, with a middling brightness where only the data would say one."""
        part = self.config.data
        known = {"pixel_mean": part.pixel_mean or 128.0, "pixel_std": part.pixel_std or 64.0}
        return self.config.merge({"data": known})

    def _precision(self, model: MultitaskModel) -> tuple[str, str]:
        """What the step is tried in, and why, if it is not what the config says."""
        wanted = self.config.training.precision
        if wanted == "fp16":
            return "fp32", " (fp16 skips its first steps until its scale fits)"
        flops = step_flops(passes(self.config, model, _TEXT_TOKENS), _ROWS)
        if wanted == "bf16" and self.device.type == "cpu" and flops > _SECONDS_IN_BF16 * CPU_RATE_PER_THREAD:
            return "fp32", " (many CPUs take minutes for it in bf16)"
        return wanted, ""

    def _made(self) -> MultitaskModel:
        if self.model is None:
            raise NotTried("waits for the model")
        return self.model

    def _batch(self) -> dict[str, torch.Tensor]:
        length = min(_TEXT_TOKENS, self.config.data.max_text_length)
        return synthetic_batch(self.config, _ROWS, length, self.device)


def tiny_config(scratch: Path) -> Config:
    """A model of all three losses that trains a step in a moment, with a tokenizer made for it in ``scratch``."""
    texts = [render_report(_FINDINGS, "right", tree) for tree in (None, "left", "right")]
    save_small_text_encoder(texts, scratch / "text_encoder", width=32, depth=1, num_heads=2)
    return Config(
        name="check",
        data={"num_frames": 4, "frame_size": 48, "max_text_length": 128},
        video_encoder={"width": 48, "depth": 2, "num_heads": 4, "tubelet": (2, 12, 12)},
        text_encoder={"name": str(scratch / "text_encoder")},
        contrastive={"embedding_dim": 32},
        captioning={
            "hidden_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 128,
            "max_generation_length": 16,
        },
        masked_modeling={"decoder_hidden_size": 32, "decoder_layers": 1, "decoder_heads": 4},
        training={"precision": "fp32"},
    )


def _refuse_infinite(values: dict[str, torch.Tensor]) -> None:
    if wrong := [name for name, value in values.items() if not torch.isfinite(value).all()]:
        raise DataError(f"not finite: {', '.join(wrong)}; try training.precision=fp32")


def _letters(text: str) -> str:
    """A text without what tokenizers may drop: case, accents and spaces."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if not unicodedata.combining(letter) and not letter.isspace())


def _add(a: int, b: int) -> int:
    return a + b


def _shape(batch: Batch) -> str:
    return "x".join(map(str, batch["clip"].shape))

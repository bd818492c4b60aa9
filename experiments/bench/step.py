"""A whole training step, contrastive + captioning + masked modelling and AdamW, beside a bare one on the same model.

python -m experiments.bench.step [--size base] [--compile] [--quick]

Ours is ``training.step.train_step``; the bare step takes the same outputs of the model, and has the plain formulas
instead: B x B pairs, all logits at once, a mean of one batch, torch's optimizer. First both must give the same losses
and gradients. Weights are random, videos noise that lies ready on the device, texts without padding.

Operations are counted in one real step (``bench/flops.py`` says which count): the masked pass counts the tokens that it
computes. MFU is operations over time over the peak of the device; where the peak is not known, tell it by
--peak-tflops, or there is none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepcoro.config import Config
from deepcoro.launch.estimate import synthetic_batch
from deepcoro.losses.multitask import MultitaskLoss
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.passes import passes, step_flops
from deepcoro.models.text_encoder import TextEncoder
from deepcoro.training.optim import build_optimizer
from deepcoro.training.step import compile_encoder, train_step
from deepcoro.training.throughput import peak_flops
from experiments.bench.flops import count_flops
from experiments.bench.paired import machine, print_json, time_pairs

VOCABULARY = 30522
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "data": {"num_frames": 8, "frame_size": 112},
        "video_encoder": {"size": "small"},
        "captioning": {"hidden_size": 256, "num_layers": 4, "num_heads": 8, "intermediate_size": 1024},
        "text": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
    },
    "base": {
        "data": {"num_frames": 16, "frame_size": 224},
        "video_encoder": {"size": "base"},
        "captioning": {},  # the default decoder, width 512 and 6 layers
        "text": {},  # BERT-base
    },
}
BATCHES = {"cpu": {"small": 8, "base": 2}, "cuda": {"small": 256, "base": 32}}
TOKENS = 128  # of a text
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # of the largest value


@click.command()
@click.option("--size", type=click.Choice([*SIZES]), default="small", show_default=True)
@click.option("--quick", is_flag=True, help="Three pairs; on a CPU a quarter of the clips, or one.")
@click.option("--device", "kind", type=click.Choice(["cpu", "cuda"]), help="The GPU where there is one.")
@click.option("--batch", type=click.IntRange(min=1), help="Clips; on a GPU 256 small or 32 base, on a CPU 8 or 2.")
@click.option("--compile", "compiles", is_flag=True, help="Compile the video encoder, for both.")
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), help="bf16 on a GPU, fp32 on a CPU.")
@click.option("--peak-tflops", type=float, help="Of the device in this precision, for MFU.")
def main(
    size: str,
    quick: bool,
    kind: str | None,
    batch: int | None,
    compiles: bool,
    precision: str | None,
    peak_tflops: float | None,
) -> None:
    """The ratio is the bare step's time over ours; the bar: 0.95."""
    kind = kind or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision or {"cuda": "bf16", "cpu": "fp32"}[kind]
    clips = batch or max(1, BATCHES[kind][size] // (4 if quick and kind == "cpu" else 1))
    known = peak_flops(torch.cuda.get_device_name(), precision) if kind == "cuda" else None
    peak = 1e12 * peak_tflops if peak_tflops is not None else known
    num_pairs = 3 if quick else 7
    work = Workload.make(size, clips, torch.device(kind), precision)
    about, frames = machine(kind), work.config.data
    print(
        f"{size}: {sum(p.numel() for p in work.model.parameters()) / 1e6:.0f}M parameters, {clips} clips of "
        f"{frames.num_frames}x{frames.frame_size}x{frames.frame_size}, texts of {TOKENS} tokens, {precision}"
        f"{', encoder compiled' if compiles else ''}, {about}",
        flush=True,
    )
    work.assert_same()
    flops = count_flops(work.our_step, work.model.video_encoder)  # before compiling, which hides what is computed
    if compiles:
        compile_encoder(work.model)
    pairs = time_pairs(work.our_step, work.bare_step, num_pairs, warmup=3 if compiles else 1)
    rounds = [work.laps() for _ in range(3)]
    parts = {name: float(np.median([laps[name] for laps in rounds])) for name in rounds[0]}
    (low, high), whole = pairs.interval, sum(parts.values())
    figures: dict[str, object] = {
        "device": about,
        "size": size,
        "clips": clips,
        "precision": precision,
        "compiled": compiles,
        "low": low,
        "high": high,
        "tflop_per_step": flops / 1e12,
        "tflop_by_formula": step_flops(passes(work.config, work.model, TOKENS), clips) / 1e12,
        "peak_tflops": None if peak is None else peak / 1e12,
        "parts": {name: {"seconds": taken, "share": taken / whole} for name, taken in parts.items()},
    }
    for whose, taken in (("ours", pairs.ours), ("bare", pairs.theirs)):
        seconds = float(np.median(taken))
        mfu = None if peak is None else flops / seconds / peak
        figures[whose] = {
            "seconds": seconds,
            "clips_per_second": clips / seconds,
            "tflops_per_second": flops / seconds / 1e12,
            "mfu": mfu,
        }
        told = "MFU not known" if mfu is None else f"MFU {mfu:.1%}"
        rates = f"{clips / seconds:8.2f} clips/s {flops / seconds / 1e12:9.3f} TFLOP/s"
        print(f"  {whose:24} {seconds:8.4f} s {rates}   {told}")
    print(f"  ours beside bare         {pairs.ratio:8.3f}   (95% interval {low:.3f} to {high:.3f}, {num_pairs} pairs)")
    print(f"  {flops / 1e12:.3f} TFLOP a step; its parts, each waited for:")
    for name, taken in parts.items():
        print(f"    {name:34} {taken:8.4f} s {taken / whole:7.1%}")
    print_json("step", pairs.ratio, "higher", figures)


@dataclass(frozen=True)
class Workload:
    """A model, a batch for it, and an optimizer for either step."""

    config: Config
    model: MultitaskModel
    loss: MultitaskLoss
    batch: dict[str, Any]
    precision: str
    optimizer: torch.optim.Optimizer
    bare_optimizer: torch.optim.Optimizer

    @classmethod
    def make(cls, size: str, clips: int, device: torch.device, precision: str) -> Workload:
        """With random weights, and all losses in use."""
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        sections = {name: dict(fields) for name, fields in SIZES[size].items()}
        about = BertConfig(**{"vocab_size": VOCABULARY} | sections.pop("text"))
        sections["data"] |= {"pixel_mean": 127.5, "pixel_std": 75.0}
        sections["captioning"].setdefault("vocab_size", about.vocab_size)
        config = Config(**sections, training={"batch_size": clips, "precision": precision})
        model = MultitaskModel(config, TextEncoder(BertModel(about, add_pooling_layer=False)))
        model.to(device).train()
        bare = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], config.optim.lr)
        batch = synthetic_batch(config, clips, TOKENS, device)
        loss = MultitaskLoss.from_config(config)
        return cls(config, model, loss, batch, precision, build_optimizer(model, config.optim), bare)

    def our_step(self) -> None:
        """As a run takes it."""
        weights, visible = self.loss.loss_weights, self.config.num_visible
        train_step(self.model, self.loss, self.optimizer, [self.batch], weights, visible, self.precision)

    def bare_step(self) -> None:
        """As one would write it down."""
        self.bare_optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            out = self.model(self.batch, self.config.num_visible)
        self.plain_loss(out).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.bare_optimizer.step()

    def plain_loss(self, out: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the three means, every row valid and with a text of full length."""
        key, weights = self.batch["report_key"], self.loss.loss_weights
        pairs = out["logit_scale"] * out["video_embedding"] @ out["text_embedding"].T + out["logit_bias"]
        sign = torch.where(key[:, None] == key, 1.0, -1.0)
        words = (out["caption_hidden"] @ out["caption_weight"].T.to(out["caption_hidden"].dtype)).float()
        targets, smoothing = self.batch["input_ids"][:, 1:], self.loss.label_smoothing
        return (
            weights["contrastive"] * -F.logsigmoid(sign * pairs).sum() / len(key)
            + weights["captioning"] * F.cross_entropy(words.mT, targets, label_smoothing=smoothing)
            + weights["masked_modeling"] * F.mse_loss(out["prediction"].float(), out["target"])
        )

    def assert_same(self) -> None:
        """End the benchmark where loss or gradients differ: a faster way to other numbers is none."""
        with self.autocast():
            out = self.model(self.batch, self.config.num_visible)
        wanted = [out[name] for name in ("video_embedding", "text_embedding", "caption_hidden", "prediction")]
        totals = (self.loss(out, self.batch)["total"], self.plain_loss(out))
        found = [[total, *torch.autograd.grad(total, wanted, retain_graph=True)] for total in totals]
        for one, other in zip(*found, strict=True):
            difference = ((one - other).abs().max() / other.abs().max()).item()
            if not difference <= TOLERANCE[self.precision]:
                raise SystemExit(f"the two do not agree: loss or gradient differs by {difference} of its largest value")

    def laps(self) -> dict[str, float]:
        """Seconds of each part of our step: the same calls one after the other, each waited for."""
        model, batch, laps, number = self.model, self.batch, Laps(), self.config.num_visible
        self.optimizer.zero_grad(set_to_none=True)
        counts, sums = self.loss.counts(batch, self.config.num_tokens - number), {}
        with self.autocast():  # around all of it, so that weights are cast as often as in a step
            clip, at = model.normalise(batch["clip"]).flatten(0, 1), model.views_at(batch)
            tokens = model.video_encoder(clip)
            laps.end("video encoder, forward")
            text = model.embed_text(batch["input_ids"], batch["text_length"])
            laps.end("text encoder, forward")
            video = model.embed_video(tokens, batch["valid"], at)
            out = {"video_embedding": video, "text_embedding": text, "logit_scale": model.logit_scale.exp()}
            sums |= self._sums(out | {"logit_bias": model.logit_bias})
            laps.end("pooling, contrastive loss")
            assert model.captioning_decoder is not None
            memory = model.memory(tokens, batch["valid"], at)
            hidden = model.captioning_decoder(batch["input_ids"][:, :-1], *memory, return_hidden=True)
            weight = model.captioning_decoder.output_weight
            sums |= self._sums({"caption_hidden": hidden, "caption_weight": weight})
            laps.end("decoder, captioning loss")
            prediction, target = model.reconstruct(clip, batch["mask_order"].flatten(0, 1), number)
            sums |= self._sums({"prediction": prediction, "target": target})
            laps.end("masked pass, forward")
        self.loss.weigh({name: x / counts[name] for name, x in sums.items()}, self.loss.loss_weights).backward()
        laps.end("backward")
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        laps.end("optimizer")
        return laps.seconds

    def _sums(self, out: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.batch["clip"].device.type, enabled=False):
            return self.loss.sums(out, self.batch)

    def autocast(self) -> torch.autocast:
        """Of the whole forward pass."""
        return torch.autocast(self.batch["clip"].device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Laps:
    """Seconds between calls of ``end``; a GPU is waited for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def end(self, name: str) -> None:
        """What ends here has this name."""
        now = self._now()
        self.seconds[name], self._last = now - self._last, now

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


if __name__ == "__main__":
    main()

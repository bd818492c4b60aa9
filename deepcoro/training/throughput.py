"""What a run's time and memory go into.

MFU (model FLOPs utilisation; PaLM, 2204.02311, appendix B) is the share of a device's peak that the operations make up
which a step needs: those of the matrix products, forward and backward, on views that are there (with a report or not)
and on texts without their padding. What is computed a second time to save memory does not count, nor padding.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from deepcoro.config import Config
from deepcoro.models.multitask import MultitaskModel
from deepcoro.models.passes import is_exact, passes

# Operations a second of the tensor cores in half precision with sums of 32 bits, dense, as NVIDIA's data sheets have
# them; by the whole name that the driver gives, since the same chip as a PCIe card or a part of one (MIG) is slower.
_HALF_PRECISION_PEAKS = {
    "H200": 989e12,
    "H100 80GB HBM3": 989e12,  # SXM
    "A100-SXM4-40GB": 312e12,
    "A100-SXM4-80GB": 312e12,
    "A100-PCIE-40GB": 312e12,
    "A100 80GB PCIe": 312e12,
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Operations a second that a GPU of this name (``torch.cuda.get_device_name``) can do at most in ``bf16`` or
    ``fp16``; ``None`` where it is not known, as in ``fp32``, where torch chooses between units of unlike speed."""
    if precision not in ("bf16", "fp16"):
        return None
    return _HALF_PRECISION_PEAKS.get(device_name.removeprefix("NVIDIA "))


def useful_flops(
    config: Config,
    model: MultitaskModel,
    batches: Sequence[Mapping[str, Any]],
    losses: Collection[str],
    num_visible: int | None = None,
    shared_pass: bool = False,
) -> float | None:
    """Operations that a step needs which computes ``losses`` on ``batches``, a worker's micro-batches as they come out
    of the data path; ``None`` for a backbone whose operations are not known. ``num_visible`` and
    ``shared_pass`` as for ``passes``."""
    if not is_exact(config, model):
        return None
    total = 0.0
    for batch in batches:
        valid = batch["valid"]
        texts = [name for name in ("contrastive", "captioning") if config.loss.is_used(name)]
        lengths = {name: _mean_length(batch, config.level(name)) for name in texts}
        found = passes(config, model, lengths, float(valid.sum()) / len(valid), losses, num_visible, shared_pass)
        total += len(valid) * sum(part.useful_flops for part in found)
    return total


def _mean_length(batch: Mapping[str, Any], level: str) -> int:
    """Tokens of a text of the rows that a loss takes."""
    of_clips = level == "clip" and "clip_text_length" in batch
    lengths = batch["clip_text_length"][batch["valid"]] if of_clips else batch["text_length"]
    return max(1, round(float(lengths.sum()) / max(1, len(lengths))))


class Throughput:
    """Clips per second, share of time spent waiting for data, and peak memory, between two readings; and the share of
    all time so far that went into telling. Where the operations of the steps are known, those of this worker per
    second; and MFU where the peak of its device is.

    Args:
        precision: that a step multiplies in.
    """

    def __init__(self, device: torch.device, precision: str = "fp32") -> None:
        self.device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = peak_flops(name, precision)
        self._began, self._told = time.perf_counter(), 0.0
        self._restart()

    def _restart(self) -> None:
        self._since, self._waited, self._clips, self._flops = time.perf_counter(), 0.0, 0, 0.0

    def waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Pass batches through, counting the time until each is there."""
        while True:
            begin = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begin
            yield batch

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Count the time in here as spent on TensorBoard and logs."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._told += time.perf_counter() - begin

    def add(self, clips: int, flops: float | None = None) -> None:
        """Count a step: clips of all workers, and ``useful_flops`` of this one."""
        self._clips += clips
        self._flops += flops or 0.0

    def read(self) -> dict[str, float]:
        """Scalars since the last reading, and start again."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        scalars = {
            "throughput/clips_per_second": self._clips / seconds,
            "throughput/data_wait_share": self._waited / seconds,
            "throughput/board_share": self._told / max(time.perf_counter() - self._began, 1e-9),
            "memory/process_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        if self.device.type == "cuda":
            scalars["memory/gpu_peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        if self._flops > 0:
            scalars["throughput/tflops_per_second"] = self._flops / seconds / 1e12
            if self.peak is not None:
                scalars["throughput/mfu"] = self._flops / seconds / self.peak
        self._restart()
        return scalars


class Startup:
    """Seconds of a start by phase, from the command to the first step.

    Args:
        before: seconds of the phases that the launcher went through, and ``since``: the wall clock (``time.time()``) at
            which it began to start workers. Empty at a restart, which no launcher went before.
    """

    def __init__(self, before: Mapping[str, float]) -> None:
        phases = dict(before)
        if "since" in phases:
            phases["workers"] = time.time() - phases.pop("since")
        self._phases, self._told, self._last = phases, False, time.perf_counter()

    def lap(self, phase: str) -> None:
        """The phase that ends here; only its first time counts."""
        if phase not in self._phases:
            now = time.perf_counter()
            self._phases[phase], self._last = now - self._last, now

    def take(self) -> dict[str, float]:
        """Scalars of all phases, once."""
        if self._told:
            return {}
        self._told = True
        return {f"startup/{name}_seconds": seconds for name, seconds in self._phases.items()}

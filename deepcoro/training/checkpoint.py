"""Save, verify and load checkpoints: ``checkpoints/<step>/`` with a manifest of sizes and hashes.

``model.safetensors`` has the weights that training goes on from. Where a run averages them (``training.ema_decay``)
``model_ema.safetensors`` has the same names, with averages for what is trained, so that either is a whole model.

A checkpoint is written beside its place and then moved there, so that a reader never sees half of one, and it counts as
committed when its manifest is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from deepcoro import __version__
from deepcoro.config import Config
from deepcoro.errors import CheckpointError, SaveError
from deepcoro.models.multitask import MultitaskModel

MANIFEST = "manifest.json"
Weights = Literal["trained", "ema"]
_WEIGHTS: dict[str, str] = {"trained": "model.safetensors", "ema": "model_ema.safetensors"}


def save_checkpoint(
    run: Path,
    step: int,
    model: MultitaskModel,
    training_state: dict[str, Any],
    config: Config,
    fingerprint: str,
    average: Mapping[str, Any] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write ``run/checkpoints/<step>``.

    ``weights`` are the model's, where it is sharded (``sharding.gather``): it cannot be asked for them here.

    ``training_state`` holds tensors, numbers and strings only (it loads with ``weights_only=True``); ``fingerprint`` is
    the prepared dataset's; ``average`` the state of a ``WeightAverage``, of whole tensors. The tokenizer is taken from
    ``run/tokenizer``.

    Raises:
        SaveError: it could not be written (the disk is full); the older ones are as they were.
    """
    if weights is None:
        weights = _copied(model.state_dict())
    files = {_WEIGHTS["trained"]: weights}
    if average is not None:
        files[_WEIGHTS["ema"]] = weights | _copied(average["weights"])
        training_state = training_state | {"average": {"num_updates": average["num_updates"]}}
    try:
        return _write(run, step, model, files, training_state, config, fingerprint)
    # torch's writer says RuntimeError where the disk is full, and safetensors has an error of its own.
    except (OSError, SafetensorError, RuntimeError) as error:
        free = shutil.disk_usage(run).free / 1e6
        raise SaveError(
            f"the checkpoint of step {step} could not be written to {run}, where {free:,.0f} MB are free: {error}"
        ) from error


def drop_old_checkpoints(run: Path, keep: int, protected: Collection[int]) -> None:
    """Delete all but the newest ``keep`` and the ``protected`` steps.

    Raises:
        OSError: one of them stays, such as where another machine still reads it.
    """
    for old in committed_steps(run)[:-keep]:
        if old not in protected:
            shutil.rmtree(run / "checkpoints" / str(old))


def _write(
    run: Path,
    step: int,
    model: MultitaskModel,
    weights: Mapping[str, dict[str, torch.Tensor]],
    training_state: dict[str, Any],
    config: Config,
    fingerprint: str,
) -> Path:
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".[0-9]*-*"):  # of a writer that was killed; a run has one writer at a time
        shutil.rmtree(left, ignore_errors=True)
    scratch = folder / f".{step}-{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    try:
        for name, tensors in weights.items():
            save_file(tensors, scratch / name)
        torch.save(training_state, scratch / "training_state.pt")
        config.save(scratch / "config.yaml")
        if (run / "tokenizer").is_dir():
            shutil.copytree(run / "tokenizer", scratch / "tokenizer")
        model.save_descriptions(scratch)
        files = {
            str(path.relative_to(scratch)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(scratch.rglob("*"))
            if path.is_file()
        }
        manifest = {"step": step, "files": files, "dataset_fingerprint": fingerprint, "code_version": __version__}
        (scratch / MANIFEST).write_text(json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1))
        _flush(scratch)
        place = folder / str(step)
        if place.exists():
            place.rename(folder / f".{step}-replaced")
        scratch.rename(place)
        _flush_one(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(folder / f".{step}-replaced", ignore_errors=True)
    return place


def committed_steps(run: Path) -> list[int]:
    """Steps with a committed checkpoint, oldest first."""
    found = [p.parent for p in (run / "checkpoints").glob(f"*/{MANIFEST}") if p.parent.name.isdigit()]
    return sorted(int(p.name) for p in found)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest committed checkpoint of a run, or ``None``."""
    steps = committed_steps(run)
    return run / "checkpoints" / str(steps[-1]) if steps else None


def find_checkpoint(run: Path, which: str | int = "newest") -> Path:
    """The ``newest`` committed checkpoint of a run, the ``best`` one (``training.best_metric``), or that of a step.

    Raises:
        CheckpointError: there is none, or no such.
    """
    steps = committed_steps(run)
    if not steps:
        raise CheckpointError(f"{run} holds no checkpoint; train it first, or give the folder of a run or a checkpoint")
    if which == "newest":
        return run / "checkpoints" / str(steps[-1])
    if which == "best":
        best = best_step(run)
        if best is None:
            raise CheckpointError(f"{run} keeps no best checkpoint; train with training.best_metric, or ask for a step")
        return run / "checkpoints" / str(best)
    if not str(which).isdigit() or int(which) not in steps:
        raise CheckpointError(f"{run} has no checkpoint {which!r}; there are newest, best and {steps}")
    return run / "checkpoints" / str(which)


def best_step(run: Path) -> int | None:
    """The step that ``best.json`` of a run names, if its checkpoint is there."""
    if not (run / "best.json").exists():
        return None
    step = int(json.loads((run / "best.json").read_text())["step"])
    return step if step in committed_steps(run) else None


def set_damaged_aside(run: Path) -> list[str]:
    """Rename the newest checkpoints of a run to ``damaged-<step>`` until the newest is sound; say what was found.

    Raises:
        CheckpointError: there were checkpoints and none is sound: nothing is renamed, nothing is begun anew.
    """
    damaged: list[tuple[int, str]] = []
    for step in reversed(committed_steps(run)):
        try:
            verify_checkpoint(run / "checkpoints" / str(step))
            break
        except CheckpointError as error:
            damaged.append((step, str(error)))
    else:
        if damaged:
            raise CheckpointError(f"no checkpoint of {run} is sound:\n" + "\n".join(text for _, text in damaged))
    for step, _ in damaged:
        place = run / "checkpoints" / f"damaged-{step}"
        shutil.rmtree(place, ignore_errors=True)
        (run / "checkpoints" / str(step)).rename(place)
    return [f"{text}; it is now checkpoints/damaged-{step}, and the one before is used" for step, text in damaged]


def drop_checkpoints_after(run: Path, step: int) -> None:
    """Delete the checkpoints of steps that are about to be run again."""
    for later in committed_steps(run):
        if later > step:
            shutil.rmtree(run / "checkpoints" / str(later))


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest, compared with its own hash.

    Raises:
        CheckpointError: it cannot be read, or is not what was written.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        if any(not {"bytes", "sha256"} <= wanted.keys() for wanted in manifest["files"].values()):
            raise ValueError("a file has no size or hash")
        if manifest["sha256"] != _digest({name: value for name, value in manifest.items() if name != "sha256"}):
            raise ValueError("its own hash does not fit it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read ({error!r}); use another checkpoint") from error
    return manifest


def verify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Compare every file with the manifest, and return the manifest.

    Raises:
        CheckpointError: a file is missing, or is not what was written.
    """
    manifest = read_manifest(checkpoint)
    for name, wanted in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{checkpoint}: {name} is missing; use another checkpoint")
        if path.stat().st_size != wanted["bytes"] or _sha256(path) != wanted["sha256"]:
            raise CheckpointError(f"{checkpoint}: {name} is not what was saved (its hash differs from the manifest's)")
    return manifest


def choose_weights(checkpoint: Path, weights: Weights | None = None) -> Weights:
    """Which weights of a checkpoint are meant: those asked for, or else the average where there is one, because that is
    what the run itself measured.

    Raises:
        CheckpointError: there is no average, or ``weights`` is none of the two words.
    """
    has_average = _WEIGHTS["ema"] in read_manifest(checkpoint)["files"]
    if weights is None:
        return "ema" if has_average else "trained"
    if weights not in _WEIGHTS:
        raise CheckpointError(f"weights are {' or '.join(_WEIGHTS)}, and not {weights!r}")
    if weights == "ema" and not has_average:
        raise CheckpointError(
            f"{checkpoint} has no average of the weights ({_WEIGHTS['ema']}): it was trained without "
            "training.ema_decay; ask for the trained ones"
        )
    return weights


def load_weights(checkpoint: Path, model: MultitaskModel, weights: Weights = "trained") -> None:
    """Put the weights of a verified checkpoint into ``model``.

    Raises:
        CheckpointError: they belong to another architecture.
    """
    try:
        model.load_state_dict(load_file(checkpoint / _WEIGHTS[weights]))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint}: its weights do not fit this model: {error}") from error


def load_training_state(checkpoint: Path) -> dict[str, Any]:
    """Optimizer, scaler, step and samples_seen, on the CPU."""
    return torch.load(checkpoint / "training_state.pt", map_location="cpu", weights_only=True)


def load_average(checkpoint: Path, training_state: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a ``WeightAverage`` goes on from, on the CPU; ``None`` where the checkpoint, whose ``training_state`` is
    given, has no average."""
    if "average" not in training_state:
        return None
    return training_state["average"] | {"weights": load_file(checkpoint / _WEIGHTS["ema"])}


def load_model(checkpoint: Path, weights: Weights | None = None) -> tuple[MultitaskModel, Config]:
    """A verified checkpoint's model, in evaluation mode, and the config it was trained with. Nothing is fetched.
    ``weights`` as for ``choose_weights``."""
    verify_checkpoint(checkpoint)
    chosen = choose_weights(checkpoint, weights)
    config = Config.load(checkpoint / "config.yaml")
    model = MultitaskModel.from_architecture(config, checkpoint)
    load_weights(checkpoint, model, chosen)
    return model.eval(), config


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU. Tied weights are stored once each: safetensors refuses tensors that share memory."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Have the bytes on disk before the folder gets its name."""
    for path in [*folder.rglob("*"), folder]:
        _flush_one(path)


def _flush_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

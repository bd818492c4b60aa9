"""DeepCORO: multitask pretraining of video-language models of coronary angiography."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Config", "VideoEncoder", "__version__", "load"]

if TYPE_CHECKING:
    from deepcoro.config import Config
    from deepcoro.inference import load
    from deepcoro.models.video_encoder import VideoEncoder

_HOMES = {"Config": "deepcoro.config", "load": "deepcoro.inference", "VideoEncoder": "deepcoro.models.video_encoder"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: data workers import this package and must stay light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'deepcoro' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

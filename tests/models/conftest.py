"""torchvision for the tests of MViT, without disturbing transformers."""

import importlib
import sys
from pathlib import Path

import pytest

_DECLARED = []  # what declares operators must live as long as they


@pytest.fixture(scope="session")
def torchvision():
    """torchvision's Python models, beside any torch.

    Its wheel is made for torch with CUDA; beside another torch its compiled part does not load, and its import fails
    for want of operators that no model here uses. They are declared first. transformers, which would import it too
    wherever it finds it, has looked before, and remembers that there was none.
    """
    import torch
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return importlib.import_module("torchvision")  # of this torch, and installed by its user
    folder = Path(sys.prefix) / "torchvision"
    if not folder.is_dir():
        pytest.skip(f"torchvision is not in {folder}; make install puts it there")
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _DECLARED.append(library)
    sys.path.append(str(folder))
    try:
        return importlib.import_module("torchvision")
    finally:
        sys.path.remove(str(folder))

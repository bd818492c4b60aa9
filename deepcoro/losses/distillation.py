"""What a model learns from another: from a larger one its embeddings and which texts it finds alike to which videos,
from an average of itself how a whole clip looks, seen in a part of it.

All are sums over rows, so that workers and micro-batches can be divided by what there is of all of them; a similarity
is one of the videos and texts of one micro-batch of a worker, as in the softmax over fewer texts that a smaller batch
has: others' are not gathered. Nothing has a gradient to the teacher's side.

Letters: R rows, E embedding, C clips, S local views, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = ("softmax", "sigmoid")


def embedding_loss(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """Sum of 1 - cosine of ``student`` and ``teacher`` [R, E], both of length 1, over rows ``there`` [R] bool."""
    return torch.where(there, 1 - (student * teacher.detach()).sum(dim=-1), 0).sum()


def similarity_loss(student: Tensor, teacher: Tensor, told: Tensor, similarity: str = "softmax") -> Tensor:
    """Divergence of the student's from the teacher's similarities, a sum over rows ``told`` [R] bool, the only ones
    that take part.

    With ``softmax`` (TinyCLIP, 2309.12314, section 3.1): p and q are the teacher's and the student's softmax over the
    texts for a video; a row counts KL(p, q), of videos and of texts (over the videos), half each. With ``sigmoid``: p
    and q are the probabilities that a pair belongs together, each pair counts KL of the two outcomes, and a row the sum
    over the texts, as in SigLIP.

    Args:
        student, teacher: logits [R, R], videos by texts, scaled (and biased) as each model does by itself.

    Raises:
        ValueError: no such similarity.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")
    student, teacher = student[told][:, told], teacher.detach().to(student.dtype)[told][:, told]
    if similarity == "sigmoid":
        wanted = teacher.sigmoid()
        cross = F.binary_cross_entropy_with_logits(student, wanted, reduction="sum")
        return cross - F.binary_cross_entropy_with_logits(teacher, wanted, reduction="sum")
    return (_divergence(student, teacher, 1) + _divergence(student, teacher, 0)) / 2


def local_loss(student: Tensor, targets: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each local view with the whole clip, summed over views of ``valid`` [C] clips (DINO, 2104.14294,
    equation 2; SILC, 2310.13355, for a model that learns from texts too).

    Args:
        student: logits [C, S, K] of local views.
        targets: probabilities [C, K] of the teacher: the softmax of its logits less their center, over its temperature.
    """
    logs = (student / temperature).log_softmax(dim=-1)
    entropy = -(targets.detach().unsqueeze(1).to(logs.dtype) * logs).sum(dim=-1)
    return torch.where(valid.unsqueeze(1), entropy, 0).sum()


def _divergence(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Sum of KL(teacher, student) of the softmaxes along ``dim``."""
    return F.kl_div(student.log_softmax(dim), teacher.log_softmax(dim), reduction="sum", log_target=True)

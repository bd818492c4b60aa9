"""Workers in a circle, each of which passes rows on to its neighbour: everybody sees the rows of all, and holds no more
than those of one at a time.

Letters: W workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Ring:
    """The circle of all workers, or one worker alone.

    Making it is an exchange in which every worker must take part, like each of its rounds.

    Args:
        num_rows: rows of this worker; others may have more, fewer, or none.
        device: where the rows are.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
        self.sizes = [num_rows]
        if self.world > 1:
            sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor([num_rows], device=device))
            self.sizes = torch.cat(sizes).tolist()

    def go_round(
        self,
        fixed: Sequence[Tensor],
        carried: Sequence[Tensor],
        work: Callable[[Sequence[Tensor], Sequence[Tensor]], None],
    ) -> Sequence[Tensor]:
        """Call ``work(fixed, carried)`` with the rows of each worker, one's own first.

        Args:
            fixed: tensors with a line for each row of this worker, to be read by all. They are sent on while ``work``
                goes on.
            carried: likewise; what ``work`` writes into them stays in them on their way round.

        Returns:
            ``carried``, come home: with what every worker wrote into it.
        """
        for hop in range(self.world):
            next_owner = (self.rank - hop - 1) % self.world
            stays = hop == self.world - 1  # what is read has been everywhere, and need not come home
            exchange = None if stays else _Exchange(fixed, self.rank, self.world, self.sizes[next_owner])
            work(fixed, carried)
            if exchange is not None:
                fixed = exchange.wait()
            if carried and self.world > 1:
                carried = _Exchange(carried, self.rank, self.world, self.sizes[next_owner]).wait()
        return carried

    def agreed(self, number: Tensor) -> Tensor:
        """``number`` [], if it is the same on all workers; else NaN, for all to see."""
        if self.world == 1:
            return number
        ends = torch.stack([number, -number])
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        return torch.where(ends[0] == -ends[1], number, torch.nan)


class _Exchange:
    """Tensors on their way to the next worker, while those of the one before come in, ``num_rows`` lines each."""

    def __init__(self, tensors: Sequence[Tensor], rank: int, world: int, num_rows: int) -> None:
        self.sent = [x.contiguous() for x in tensors]  # kept until they are gone
        self.received = [x.new_empty(num_rows, *x.shape[1:]) for x in tensors]
        to, source = (rank + 1) % world, (rank - 1) % world
        # Both ends know the sizes: nothing is sent for a worker without rows.
        sends = [dist.P2POp(dist.isend, x, to) for x in self.sent if x.numel()]
        receives = [dist.P2POp(dist.irecv, x, source) for x in self.received if x.numel()]
        self.under_way = dist.batch_isend_irecv(sends + receives) if sends or receives else []

    def wait(self) -> list[Tensor]:
        for work in self.under_way:
            work.wait()
        return self.received

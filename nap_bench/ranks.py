"""Processes of one machine that train a run together, a GPU each; torchrun starts them. They change the order of sums alone.

Every process holds all parameters and takes every step; each looks at its share of a batch's micro-batches, and the one flat
gradient is summed over them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed


class Ranks:
    """This process among those that train together. rank: its number, of `size`; number 0 writes.

    device: this process's own: GPU number LOCAL_RANK, or the CPU.
    """

    def __init__(self, device: str):
        """Join the processes that torchrun started with this one."""
        self.rank, self.size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        if int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) != self.size:
            raise ValueError("Processes that train together have to be on one machine: torchrun --nproc-per-node N.")
        on_gpu = device.startswith("cuda")
        self.device = f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else device
        if on_gpu:
            torch.cuda.set_device(self.device)
        distributed.init_process_group("nccl" if on_gpu else "gloo")

    def share(self, pieces: Sequence[Any]) -> Sequence[Any]:
        """Those of a batch's pieces that this process looks at."""
        return pieces[self.rank :: self.size]

    def summed(self, *tensors: Tensor) -> Tensor:
        """Sum each over the processes, in place; returns the last."""
        for tensor in tensors:
            distributed.all_reduce(tensor)
        return tensors[-1]

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all agree."""
        said = torch.tensor([flag], dtype=torch.int32, device=self.device)
        return bool(self.summed(said).item())

    def told(self, word: Any = None) -> Any:
        """What the first process says, to all."""
        said = [word]
        distributed.broadcast_object_list(said, src=0, device=torch.device(self.device))
        return said[0]

    def leave(self) -> None:
        distributed.destroy_process_group()

"""A piece of eager work as one CUDA graph: hundreds of small kernels become one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

EAGER_CALLS = 3
"""Before the capture: what is allocated or chosen at first use must be there."""


class Graphed:
    """A function without arguments, run eagerly a few times, then captured, then replayed. On a CPU always eager.

    It may read and write tensors that outlive it, in place, and must depend on nothing else that changes: no Python value of the
    step, no draw from a generator. What it returns or keeps are the same tensors at every replay, with new content.
    """

    def __init__(self, function: Callable[[], None], device: torch.device):
        self._function, self._is_cuda = function, device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self) -> None:
        if not self._is_cuda:
            self._function()
        elif self._graph is not None:
            self._graph.replay()
        elif self._calls < EAGER_CALLS:
            self._calls += 1
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._function()
            torch.cuda.current_stream().wait_stream(aside)
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._function()
            self._graph.replay()

"""A piece of eager work as one CUDA graph: hundreds of small kernels become one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

EAGER_CALLS = 3
"""Before the capture: what is allocated or chosen at first use must be there."""


class Graphed:
    """Runs a function without arguments eagerly a few times, then captures it, then replays it. On a CPU always eager.

    It may read and write tensors that outlive it, in place, and must depend on nothing else that changes: no Python value of the
    step, no draw from a generator. What it returns or keeps are the same tensors at every replay, with new content.
    """

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, function: Callable[[], None]) -> None:
        """function: the same at every call; not kept, so that what it holds can go."""
        if not self._is_cuda:
            function()
        elif self._graph is not None:
            self._graph.replay()
        elif self._calls < EAGER_CALLS:
            self._calls += 1
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                function()
            torch.cuda.current_stream().wait_stream(aside)
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                function()
            self._graph.replay()

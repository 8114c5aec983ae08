"""The convolution with a seed axis against separate nn.Conv2d in channels_last: forward and backward, 8 seeds, one thread.

python bench/cnn.py [--device cuda] [--tiny]
"""

from __future__ import annotations

import argparse
import os
import statistics

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import goal, header, interleaved, ratios, spread
from torch import nn

from nap_bench.models.blocks import Conv2d

NUM_SEEDS = 8
SIZES = ((16, 8, 32), (32, 16, 16))
"""Channels in and out, height and width, batch size."""


def as_between_layers(h_SBCHW: torch.Tensor) -> torch.Tensor:
    """In the memory layout that activations and their gradients have within a network."""
    return h_SBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, h_SBCHW.shape[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = arguments.device
    blocks, num_steps = (2, 1) if arguments.tiny else (9, 10)
    header(
        f"A 3 x 3 convolution of {NUM_SEEDS} seeds, forward and backward",
        device,
        f"{blocks} interleaved blocks of {num_steps} passes; median [min, max] of blocks",
    )
    chosen = "by_seed" if device == "cpu" else "grouped"
    found = []
    print(
        f"{'channels':>8} {'image':>7} {'batch':>5}  {'':10}{'us per seed and pass':>36}{'speed over separate seeds':>34}"
    )
    for channels, side, batch_size in SIZES:
        torch.manual_seed(0)
        shape = (NUM_SEEDS, batch_size, channels, side, side)
        x_SBCHW, upstream = (as_between_layers(torch.randn(shape, device=device)) for _ in range(2))
        x_SBCHW.requires_grad_()
        separate = [
            nn.Conv2d(channels, channels, 3, padding=1).to(device, memory_format=torch.channels_last)
            for _ in range(NUM_SEEDS)
        ]
        own = [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in x_SBCHW]
        gradients = [g.contiguous(memory_format=torch.channels_last) for g in upstream]
        block = Conv2d(NUM_SEEDS, channels, channels, kernel=3, bias=True, init="torch").to_empty(device=device)
        with torch.no_grad():
            block.weight.copy_(torch.stack([conv.weight for conv in separate]))
            block.bias.copy_(torch.stack([conv.bias for conv in separate]))

        def apart(separate=separate, own=own, gradients=gradients) -> None:
            for _ in range(num_steps):
                for conv, x, gradient in zip(separate, own, gradients, strict=True):
                    torch.autograd.grad(conv(x), [x, *conv.parameters()], gradient)

        def together(name: str, block=block, x_SBCHW=x_SBCHW, upstream=upstream) -> None:
            for _ in range(num_steps):
                torch.autograd.grad(getattr(block, name)(x_SBCHW), [x_SBCHW, *block.parameters()], upstream)

        subjects = {
            "separate": apart,
            "by_seed": lambda together=together: together("by_seed"),
            "grouped": lambda together=together: together("grouped"),
        }
        times = interleaved(subjects, blocks=blocks, device=device)
        for name, seconds in times.items():
            each = [1e6 * s / num_steps / NUM_SEEDS for s in seconds]
            speed = ratios(times, "separate", name)
            print(f"{channels:8} {side:>3}x{side:<3} {batch_size:5}  {name:10}{spread(each):>36}{spread(speed):>34}")
            if name == chosen:
                found.append(
                    (f"{name} (used on {device}), {channels} channels, {side} x {side}", statistics.median(speed))
                )
    print()
    for name, speed in found:
        goal(name, speed, 1, at_most=False, unit="x", tiny=arguments.tiny)


if __name__ == "__main__":
    main()

"""The CIFAR-10 network of table1_images: whole steps with NaP against steps on one fixed batch, and reading ImageNet's files.

python bench/images.py [--device cuda] [--tiny]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import goal, header, interleaved, ratios, spread
from PIL import Image

from nap_bench import update
from nap_bench.benchmarks.stationary_images import BATCHES_AHEAD, OnDevice, StationaryImages
from nap_bench.data import imagenet
from nap_bench.methods import parse_stack, stack_of
from nap_bench.models.vgg import VGG16
from nap_bench.optimizers import SGD
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

BATCH_SIZE = 32
BLOCKS_OF_SEEDS = (1, 8)
PHOTOGRAPH = (500, 375)
"""Width and height of a typical image of ImageNet."""


def cifar(num_seeds: int, device: str, num_images: int):
    """A step of table1_images, as a function of whether batches are drawn and augmented; images are noise."""
    task = StationaryImages(
        dataset="cifar10", num_evaluations=1, steps_per_evaluation=10**6, batch_size=BATCH_SIZE, augment="crop_flip"
    )
    inputs, labels = torch.randn(num_images, 3, 32, 32), torch.randint(10, (num_images,))
    data = OnDevice(*(part.to(device) for part in (inputs, labels, inputs[:1], labels[:1])))
    methods, seeds = stack_of(parse_stack("nap")), tuple(range(num_seeds))
    spec = methods.transform_model(ModelSpec(family="vgg", size=VGG16, init="he"))
    state = build(spec, Part.of(SGD(momentum=0.9, nesterov=True)), seeds, task.shapes, device)
    state.lr.fill_(0.025)
    methods.setup(state)
    fixed = task.batch(data, seeds, 0)

    def steps(num_steps: int, *, with_data: bool) -> None:
        for _ in range(num_steps):
            inputs, y_SB = task.batch(data, seeds, state.step) if with_data else fixed
            losses_S = task.loss(update.forward(state, methods, inputs), y_SB)
            update.grad_step(state, [losses_S], methods)
            update.tail(state, methods)

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = arguments.device
    blocks, num_steps = (2, 1) if arguments.tiny else (9, 100 if device != "cpu" else 2)
    header(
        f"VGG16 on CIFAR-10 with NaP, batch {BATCH_SIZE}; then JPEGs of {PHOTOGRAPH[0]} x {PHOTOGRAPH[1]}",
        device,
        f"{blocks} interleaved blocks of {num_steps} steps; median [min, max] of blocks",
    )
    print(f"{'seeds':>5}  {'':12}{'images per second':>34}")
    stalls = []
    for num_seeds in BLOCKS_OF_SEEDS[: 1 if arguments.tiny else None]:
        steps = cifar(num_seeds, device, num_images=100 if arguments.tiny else 50000)
        subjects = {
            "fixed batch": partial(steps, num_steps, with_data=False),
            "with data": partial(steps, num_steps, with_data=True),
        }
        times = interleaved(subjects, blocks=blocks, device=device)
        for name, seconds in times.items():
            print(f"{num_seeds:5}  {name:12}{spread([num_seeds * num_steps * BATCH_SIZE / s for s in seconds]):>34}")
        stalls.append(
            (f"step with data over step without, {num_seeds} seeds", ratios(times, "with data", "fixed batch"))
        )
    print()
    batch_size = 8 if arguments.tiny else 256
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "photograph.JPEG"))
        Image.effect_mandelbrot(PHOTOGRAPH, (-2, -1.5, 1, 1.5), 90).convert("RGB").save(path, quality=90)
        draws = torch.rand(imagenet.ATTEMPTS, 4).tolist()

        def jobs(number: int):
            return [partial(imagenet.shown_in_training, path, draws, False)] * batch_size

        reader, taken = imagenet.Reader(), iter(range(10**9))

        def read() -> None:
            number = next(taken)
            reader.take(number, range(number + 1, number + 1 + BATCHES_AHEAD), jobs)

        seconds = interleaved({"read": read}, blocks=blocks, device="cpu")["read"]
        print(
            f"images read per second, {len(os.sched_getaffinity(0))} threads: {spread([batch_size / s for s in seconds])}"
        )
    print()
    for name, found in stalls:
        goal(name, statistics.median(found), 1.05, at_most=True, unit="x", tiny=arguments.tiny)


if __name__ == "__main__":
    main()

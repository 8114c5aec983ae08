"""Rainbow on Atari, learning: emulated frames per second, on a CPU over a plain one-environment Rainbow in PyTorch.

    python bench/rainbow.py [--device cuda] [--tiny]

The plain one is bench/rainbow_reference.py: the same network, batch and replay ratio (an update of 32 per 16 frames), the same game
in ALE's own C++ environment, both past their warm-up. On a GPU instead several runs at once: as seeds of one block, and as
processes of their own.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import rainbow_reference as reference
import torch
from measure import goal, header, interleaved, ratios, settle, spread
from torch import multiprocessing

from nap_bench.benchmarks import Atari
from nap_bench.experiments.fig6_atari57 import DATA_EFFICIENT, NATURE
from nap_bench.methods import stack_of
from nap_bench.optimizers import Adam
from nap_bench.rl import rainbow
from nap_bench.rl.loop import Learner, Playing
from nap_bench.schedules import Constant
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

GAME, NUM_ENVS, MIN_FILL = "pong", 16, 320
FRAME_SKIP, STEPS_PER_UPDATE = 4, 4
NETWORKS = {"Nature": (NATURE, reference.NATURE), "data-efficient": (DATA_EFFICIENT, reference.DATA_EFFICIENT)}
"""Name -> sizes, ours and the reference's; the first is Rainbow's own."""
SEVERAL = (4, 16)
"""Runs at once on a GPU."""


class OneGame:
    """ALE's vector environment of one game, as gymnasium's single ones are called: DQN Zoo's protocol."""

    def __init__(self, game: str):
        import ale_py
        from ale_py.vector_env import AtariVectorEnv

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.env = AtariVectorEnv(
            game, 1, num_threads=1, noop_max=31, use_fire_reset=False, reward_clipping=False, episodic_life=False
        )
        self.num_actions = int(self.env.single_action_space.n)
        self.over = False

    def reset(self, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if self.over:  # the vector environment resets itself in the step that follows an end
            frames, *_, info = self.env.step(np.zeros(1, dtype=np.int64))
        else:
            frames, info = self.env.reset(seed=seed)
        self.over = False
        return frames[0], {"lives": int(info["lives"][0])}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        frames, reward, ended, cut, info = self.env.step(np.array([action]))
        self.over = bool(ended[0] or cut[0])
        return frames[0], float(reward[0]), bool(ended[0]), bool(cut[0]), {"lives": int(info["lives"][0])}


def plain(size: dict[str, Any], num_steps: int) -> Callable[[], None]:
    """Blocks of `num_steps` steps of the reference, after its warm-up."""
    game = OneGame(GAME)
    network = reference.Network((4, 84, 84), game.num_actions, **size, generator=torch.Generator().manual_seed(0))
    settings = reference.Settings(capacity=10_000, min_fill=MIN_FILL)
    learning = reference.train(reference.Agent(network, num_steps=50_000_000, seed=0, settings=settings), game, seed=0)

    def block() -> None:
        for _ in islice(learning, num_steps):
            pass

    for _ in islice(learning, MIN_FILL + 8):
        pass
    return block


def ours(size: tuple, num_seeds: int, num_steps: int, device: str) -> Callable[[], None]:
    """Blocks of `num_steps` steps of every seed of a block, after the warm-up: as nap_bench/rl/loop.py, which also writes."""
    benchmark = Atari(games=(GAME,), num_envs=NUM_ENVS, min_fill=MIN_FILL, capacity=10_000)
    seeds, stack = tuple(range(num_seeds)), stack_of(())
    optimizer = Part.of(Adam(eps=0.005 / 32, clip_norm=10.0))
    state = build(ModelSpec(family="rainbow", size=size), optimizer, seeds, benchmark.shapes, device)
    learner = Learner(benchmark, state, stack, Constant(6.25e-5))
    playing = Playing(benchmark, seeds, NUM_ENVS, "training", device)
    noise = rainbow.NoiseStream("noise/acting", state, NUM_ENVS)
    playing.begin(0, 0)
    done = 0

    def vector_step() -> None:
        nonlocal done
        actions_SE = learner.agent.act(state, playing.seen, noise.at(done))
        learner.remember(playing.frame, actions_SE)
        playing.step(actions_SE)
        done += 1
        while state.step < benchmark.updates_due(done):
            learner.update()

    def block() -> None:
        for _ in range(num_steps // NUM_ENVS):
            vector_step()

    while not state.step:
        vector_step()
    return block


def peak_megabytes(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _process(index: int, barrier: Any, rates: Any, device: str, num_steps: int, seconds: float) -> None:
    """Frames per second of one run among others."""
    torch.set_num_threads(1)
    block = ours(NATURE, 1, num_steps, device)
    block()
    barrier.wait()
    start, blocks = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        block()
        settle(device)
        blocks += 1
    rates[index] = blocks * num_steps * FRAME_SKIP / (time.perf_counter() - start)


def processes(num: int, device: str, num_steps: int, seconds: float) -> float:
    """Frames per second of so many runs together, each in a process of its own; all of them are under way all the time."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(num), context.Array("d", num)
    arguments = (barrier, rates, device, num_steps, seconds)
    started = [context.Process(target=_process, args=(index, *arguments)) for index in range(num)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise RuntimeError(f"of {num} processes on {device} some failed, with {[p.exitcode for p in started]}")
    return sum(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, tiny = arguments.device, arguments.tiny
    on_gpu = device.startswith("cuda")
    blocks, num_steps = (2, 16) if tiny else (7, 1600 if on_gpu else 64)
    networks = dict(list(NETWORKS.items())[-1:]) if tiny else NETWORKS
    header(
        f"Rainbow on {GAME}, learning: batch 32, an update per 16 frames, {NUM_ENVS} environments a run (the reference: 1)",
        device,
        f"{blocks} interleaved blocks of {num_steps} steps (4 frames each) of every run; median [min, max]",
    )
    counts = {"one run": 1} | ({f"{num} seeds in a block": num for num in SEVERAL} if on_gpu else {})
    base = "one run" if on_gpu else "reference"
    print(f"{'network':16}{'':20}{'frames per second':>38}{f'times {base}':>34}{'peak memory, MB':>18}")
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for network, (size, reference_size) in networks.items():
        subjects, peaks = {}, {}
        if not on_gpu:
            subjects["reference"] = plain(reference_size, num_steps)
            peaks["reference"] = peak_megabytes(device)
        for name, count in counts.items():
            subjects[name] = ours(size, count, num_steps, device)
            peaks[name] = peak_megabytes(device)
        times = interleaved(subjects, blocks=blocks, device=device)
        for name, seconds in times.items():
            count = counts.get(name, 1)
            rates = [FRAME_SKIP * num_steps * count / s for s in seconds]
            faster = [count * ratio for ratio in ratios(times, base, name)]
            found[network, name] = statistics.median(rates), statistics.median(faster)
            print(f"{network:16}{name:20}{spread(rates):>38}{spread(faster):>34}{peaks[name]:18.0f}")
    together = {}
    if on_gpu:
        for num in SEVERAL:
            together[num] = processes(num, device, 64 if tiny else num_steps, 1.0 if tiny else 20.0)
            print(f"{'Nature':16}{f'{num} processes':20}{together[num]:38.2f}")
    print(
        "\nMemory: the peak so far, of the process on a CPU and of the device on a GPU, with replays of 10,000 steps.\n"
    )

    for network in NETWORKS:
        faster = None if on_gpu or tiny else found[network, "one run"][1]
        name = f"one run on one CPU thread, {network} network, over the reference"
        goal(name, faster, 2, at_most=False, unit="x", tiny=tiny)
    gpu = found["Nature", "one run"][0] if on_gpu and not tiny else None
    goal("one run on a GPU", gpu, 20_000, at_most=False, unit="frames/s", tiny=tiny)
    goal("one run on a GPU, stretch", gpu, 40_000, at_most=False, unit="frames/s", tiny=tiny)
    for num in SEVERAL:
        most = max(found["Nature", f"{num} seeds in a block"][0], together[num]) if on_gpu and not tiny else None
        name = f"{num} runs on a GPU together, in a block or as processes"
        goal(name, most, 60_000, at_most=False, unit="frames/s", tiny=tiny)


if __name__ == "__main__":
    main()

"""Law 9 for reinforcement learning: loss and return of every method on a small sequence, in repr.

As tests/golden/test_golden.py; renewed by `pytest tests/golden --record-golden` after a version bump.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nap_bench.benchmarks import CatchSequence
from nap_bench.experiments.base import make_run
from nap_bench.methods import METHODS, stack_of
from nap_bench.optimizers import Adam
from nap_bench.rl.loop import reinforce
from nap_bench.schedules import Cosine
from nap_bench.session import Control
from nap_bench.spec import PROTOCOL, ModelSpec
from nap_bench.store import RunFolder

FILE = Path(__file__).parent / "losses_rl.json"
TASK = CatchSequence(
    num_variants=2,
    steps_per_visit=96,
    num_envs=8,
    min_fill=56,
    frame_shape=(4, 3),
    batch_size=8,
    bins_per_visit=10,
    eval_steps=4,
    eval_envs=2,
    target_period=4,
)
SIZE = (("atoms", 5), ("channels", ()), ("hidden", 8), ("kernels", ()), ("sigma", 0.1), ("strides", ()))
ALONE = {
    "implicit_schedule": "nap+implicit_schedule",
    "redo": "redo(period=3)",
    "group_norm": "group_norm(groups=2)",
    "hare_tortoise": "hare_tortoise(momentum=0.9, period=3)",
    "regrama": "regrama(period=3, tau=0.1)",
    "snr": "snr(percentile=0.5, start=1, refresh=5)",
}
METRICS = ("online/loss", "return/evaluation")


def run_of(stack: str):
    return make_run(
        benchmark=TASK,
        model=ModelSpec(family="rainbow", size=SIZE),
        stack=ALONE.get(stack, stack),
        optimizer=Adam(clip_norm=10.0),
        schedule=Cosine(1e-2, 1e-3, restart="task"),
        seeds=(0, 1),
    )


STACKS = [stack for stack in ("baseline", *METHODS) if stack_of(run_of(stack).methods).why_not(run_of(stack)) is None]


def key(stack: str) -> str:
    method = f"{stack}@{METHODS[stack].version}" if stack in METHODS else stack
    return f"protocol {PROTOCOL}, {TASK.name}@{TASK.version}, {method}"


def measured(stack: str, path: Path) -> list[str]:
    torch.set_num_threads(1)
    folder = RunFolder(path, run_of(stack))
    folder.open()
    reinforce(run_of(stack), folder, data_dir=None, device="cpu", control=Control())
    return [line for line in folder.metrics.read_text().splitlines()[1:] if line.split(",")[2] in METRICS]


def here() -> dict[str, str]:
    return {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}


@pytest.mark.parametrize("stack", STACKS)
def test_law_9_losses_and_returns_are_the_recorded_ones(stack, tmp_path, request):
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    found, name = measured(stack, tmp_path), key(stack)
    assert len(found) == 2 * 2 * 10 * len(METRICS)
    if request.config.getoption("--record-golden") and name not in recorded:
        recorded[name] = {**here(), "rows": found}
        FILE.write_text(json.dumps(recorded, indent=0, sort_keys=True) + "\n")
    assert name in recorded, f"no golden loss for {name}: pytest tests/golden --record-golden"
    expected = recorded[name]
    if {k: expected[k] for k in here()} == here():
        assert found == expected["rows"]
        return
    # elsewhere rounding may change an action, and then everything after it: the first bin of losses only
    for ours, theirs in list(zip(found, expected["rows"], strict=True))[:2]:
        assert float(ours.rpartition(",")[2]) == pytest.approx(float(theirs.rpartition(",")[2]), rel=1e-3)


def test_every_recorded_loss_belongs_to_a_case():
    assert set(json.loads(FILE.read_text())) == {key(stack) for stack in STACKS}

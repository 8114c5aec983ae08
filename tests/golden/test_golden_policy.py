"""Law 9 for the diffusion policy: loss and reward of every method on a small run, in repr.

As tests/golden/test_golden.py; renewed by `pytest tests/golden --record-golden` after a version bump.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nap_bench.benchmarks import DiffusionPolicy
from nap_bench.experiments.base import make_run
from nap_bench.methods import METHODS, stack_of
from nap_bench.optimizers import Adam
from nap_bench.policy.loop import optimise
from nap_bench.schedules import Steps
from nap_bench.session import Control
from nap_bench.spec import PROTOCOL, ModelSpec
from nap_bench.store import RunFolder

FILE = Path(__file__).parent / "losses_policy.json"
TASK = DiffusionPolicy(
    puzzle="countdown",
    size=2,
    rule="stable",
    samples=2,
    num_rollouts=4,
    pretrain_steps=8,
    updates_per_rollout=3,
    pretrain_batch=8,
    text=0.0,  # its words depend on the version of Python
    bins=4,
)
SIZE = (("d_model", 8), ("entrance", "layer"), ("heads", 2), ("widths", (12,)))
ALONE = {"implicit_schedule": "nap+implicit_schedule", "redo": "redo(period=5)", "group_norm": "group_norm(groups=2)"}
METRICS = ("online/loss", "reward/mean")


def run_of(stack: str):
    return make_run(
        benchmark=TASK,
        model=ModelSpec(family="transformer", size=SIZE, causal=False),
        stack=ALONE.get(stack, stack),
        optimizer=Adam(),
        schedule=Steps(1e-2, at=(8 / 20,), factor=0.5),
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
    optimise(run_of(stack), folder, data_dir=None, device="cpu", control=Control())
    return [line for line in folder.metrics.read_text().splitlines()[1:] if line.split(",")[2] in METRICS]


def here() -> dict[str, str]:
    return {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}


@pytest.mark.parametrize("stack", STACKS)
def test_law_9_losses_and_rewards_are_the_recorded_ones(stack, tmp_path, request):
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    found, name = measured(stack, tmp_path), key(stack)
    assert len(found) == 2 * (4 + 4 + 4)  # two seeds; losses of both phases, rewards of the second
    if request.config.getoption("--record-golden") and name not in recorded:
        recorded[name] = {**here(), "rows": found}
        FILE.write_text(json.dumps(recorded, indent=0, sort_keys=True) + "\n")
    assert name in recorded, f"no golden loss for {name}: pytest tests/golden --record-golden"
    expected = recorded[name]
    if {k: expected[k] for k in here()} == here():
        assert found == expected["rows"]
        return
    # elsewhere rounding may change a token, and then everything after it: denoising only
    for ours, theirs in list(zip(found, expected["rows"], strict=True))[:8]:
        assert float(ours.rpartition(",")[2]) == pytest.approx(float(theirs.rpartition(",")[2]), rel=1e-3)


def test_every_recorded_loss_belongs_to_a_case():
    assert set(json.loads(FILE.read_text())) == {key(stack) for stack in STACKS}

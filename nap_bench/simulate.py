"""Loop 2: simulations. A benchmark that moves its own state: no network, no data, no optimizer, no methods.

A simulation offers `num_steps`, `start(seeds)`, `advance(state, seeds, step, lr)`, `probe_steps()` (0 and `num_steps`
are among them) and `probe(state)`. Its state is one tensor [S, ...]; nothing reduces over axis 0. The step size is
what the schedule says.
"""

from __future__ import annotations

import time

import torch

from nap_bench import checkpoint
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.optimizers import SGD
from nap_bench.record import Recorder
from nap_bench.schedules import SCHEDULES
from nap_bench.spec import ModelSpec, Part, Run
from nap_bench.store import RunFolder
from nap_bench.train import Control, Cost, Interrupted, forget_peak_memory

FIXED = {"model": ModelSpec(family="none", size=()), "methods": (), "optimizer": Part.of(SGD()), "precision": "fp64"}
"""What a run says where a simulation leaves no choice: one value, so that equal simulations are the same run."""


def check(run: Run) -> None:
    """Refuse a run that asks for something a simulation would ignore."""
    for name, wanted in FIXED.items():
        if (found := getattr(run, name)) != wanted:
            raise ValueError(
                f"{run.run_id} is a simulation, which leaves no choice of {name}: wanted {wanted}, found {found}."
            )


def simulate(run: Run, folder: RunFolder, *, data_dir: str | None, device: str, control: Control) -> dict:
    """Move a block of seeds to its end, going on from a checkpoint if there is one; returns status and cost.

    Writes metrics.csv and checkpoint in the run's folder. Raises Interrupted after a stop was asked for. A seed is
    alive while its state is finite, which is looked at where the state is probed. data_dir is not read.
    """
    check(run)
    forget_peak_memory()
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    schedule = run.schedule.build(SCHEDULES, "schedule")
    probe_steps, total = benchmark.probe_steps(), benchmark.num_steps
    saved = checkpoint.load(folder.checkpoint, run.run_id, device)
    if saved:
        step, state, last_finite_S = saved["step"], saved["state"], saved["last_finite"]
        cost = Cost(saved["wall_seconds"], saved["num_sessions"])
    else:
        step, state, cost = 0, benchmark.start(run.seeds).to(device), Cost()
        last_finite_S = torch.zeros(len(run.seeds), dtype=torch.int64, device=device)
    cost.num_sessions += 1
    recorder = Recorder(folder.metrics, run.seeds, saved["offset"] if saved else 0)

    def probe() -> None:
        finite_S = state.isfinite().flatten(1).all(dim=1)
        last_finite_S[finite_S] = step
        for name, values_S in benchmark.probe(state).items():
            recorder.log(step, name, torch.where(finite_S, values_S, torch.nan))

    def save() -> None:
        content = {
            "step": step,
            "state": state,
            "last_finite": last_finite_S,
            "offset": recorder.flush(),
            "wall_seconds": cost.seconds(),
            "num_sessions": cost.num_sessions,
        }
        checkpoint.save(folder.checkpoint, run.run_id, device, content)

    if not saved:
        probe()
    saved_at = told_at = began = time.perf_counter()
    first_step = step
    while step < total:
        state = benchmark.advance(state, run.seeds, step, schedule(step, total, total))
        step += 1
        if step in probe_steps:
            probe()
        now = time.perf_counter()
        if now - told_at > 1.0:
            control.report(step, (step - first_step) / (now - began))
            told_at = now
        if control.stop or now - saved_at > control.checkpoint_seconds:
            save()
            saved_at = now
            if control.stop:
                raise Interrupted(f"{run.run_id} stopped at step {step} of {total}; it goes on from there.")

    recorder.flush()
    status = [
        {"seed": seed, "status": "complete"} if last == total else {"seed": seed, "status": "diverged", "step": last}
        for seed, last in zip(run.seeds, last_finite_S.tolist(), strict=True)
    ]
    return {"status": status, "cost": cost.as_dict(total, state.device), "model": {"family": "none"}}

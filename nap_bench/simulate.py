"""Loop 2: simulations. A benchmark that moves its own state: no network, no data, no optimizer, no methods.

A simulation offers `num_steps`, `start(seeds)`, `advance(state, seeds, step, lr)`, `probe_steps()` (0 and `num_steps`
are among them) and `probe(state)`. Its state is one tensor [S, ...]; nothing reduces over axis 0. The step size is
what the schedule says.
"""

from __future__ import annotations

import torch

from nap_bench.benchmarks import BENCHMARKS
from nap_bench.optimizers import SGD
from nap_bench.schedules import SCHEDULES
from nap_bench.session import Control, Session
from nap_bench.spec import ModelSpec, Part, Run
from nap_bench.store import RunFolder

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
    session = Session(run, folder, device, control)
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    schedule = run.schedule.build(SCHEDULES, "schedule")
    probe_steps, total = benchmark.probe_steps(), benchmark.num_steps
    if saved := session.saved:
        step, state, last_finite_S = saved["step"], saved["state"], saved["last_finite"]
    else:
        step, state = 0, benchmark.start(run.seeds).to(device)
        last_finite_S = torch.zeros(len(run.seeds), dtype=torch.int64, device=device)

    def probe() -> None:
        finite_S = state.isfinite().flatten(1).all(dim=1)
        last_finite_S[finite_S] = step
        for name, values_S in benchmark.probe(state).items():
            session.recorder.log(step, name, torch.where(finite_S, values_S, torch.nan))

    def content() -> dict:
        return {"step": step, "state": state, "last_finite": last_finite_S}

    if not saved:
        probe()
    session.begin(step)
    while step < total:
        state = benchmark.advance(state, run.seeds, step, schedule(step, total, total))
        step += 1
        if step in probe_steps:
            probe()
        session.after(step, total, content)

    ended = session.end(last_finite_S == total, last_finite_S, total)
    return ended | {"model": {"family": "none"}}

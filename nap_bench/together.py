"""One run after another by several processes of this machine that train together, a GPU each:

    torchrun --nproc-per-node 8 -m nap_bench.together RUN_ID... --scale paper --device cuda --data-dir DATA

The results are those of `nap-bench run`, where they lie, under the same lease, and resumed from the same checkpoints by either: the
first process does what that command does, the others follow it. How many there are changes the order of sums and nothing else.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from nap_bench import plan
from nap_bench.jobs import DONE, HELD, STOPPED, STOPS, Job, Suite, attempt, check_device, say
from nap_bench.store import RunFolder

PLACES = {"--store": "store", "--results": "results", "--plan": "config/plan.jsonl"}


def main(arguments: list[str] | None = None) -> int:
    """Exit code as `nap-bench run`: 0 done, 1 failed, 75 asked to stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_ids", nargs="+", metavar="RUN_ID")
    parser.add_argument("--scale", default="paper", choices=plan.SCALES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--checkpoint-seconds", type=float, default=600.0)
    for name, default in PLACES.items():
        parser.add_argument(name, type=Path, default=Path(default))
    wanted = parser.parse_args(arguments)
    lines = {line["run_id"]: line for line in plan.load(wanted.plan)}
    if unknown := [run_id for run_id in wanted.run_ids if run_id not in lines]:
        raise ValueError(f"Not in {wanted.plan}: {', '.join(unknown)}.")
    places = dict(store=wanted.store, results=wanted.results)
    for run_id in wanted.run_ids:
        if lines[run_id]["resources"] != "lm":
            raise ValueError(f"{run_id} is too small for several processes: nap-bench run {run_id}")
    jobs = [Job(lines[run_id], **places) for run_id in wanted.run_ids]
    return together(
        jobs,
        data_dir=wanted.data_dir,
        device=wanted.device,
        suite=Suite([lines[run_id] for run_id in wanted.run_ids], wanted.scale, **places),
        checkpoint_seconds=wanted.checkpoint_seconds,
    )


def together(jobs: list[Job], *, data_dir: str | None, device: str, suite: Suite, checkpoint_seconds: float) -> int:
    """Do the jobs with the processes that torchrun started. A failing one ends them all, and torchrun the others."""
    import torch

    from nap_bench.ranks import Ranks
    from nap_bench.session import Control

    torch.set_num_threads(1)
    check_device(device)
    ranks = Ranks(device)
    control = Control(checkpoint_seconds=checkpoint_seconds, ranks=ranks)

    def stop(signum: int, frame: Any) -> None:
        control.stop = True

    for number in STOPS:
        signal.signal(number, stop)
    how = dict(data_dir=data_dir, device=ranks.device, control=control)
    code = follow(jobs, **how) if ranks.rank else lead(jobs, suite=suite, **how)
    ranks.leave()
    return code


def lead(jobs: list[Job], *, suite: Suite, data_dir: str | None, device: str, control: Any) -> int:
    """The first process: does every job that is not done, and tells the others which."""
    for index, job in enumerate(jobs):
        if job.is_done() or job.remake():
            continue
        control.ranks.told(index)
        ended = attempt(job, data_dir=data_dir, device=device, control=control, suite=suite)
        if ended == HELD:
            say(f"together: another process holds {job.run_id}. Start again once it has ended.")
        if ended != DONE:  # the others are in the middle of the run: they end with this process
            return 75 if ended == STOPPED else 1
    control.ranks.told(None)
    return 0


def follow(jobs: list[Job], *, data_dir: str | None, device: str, control: Any) -> int:
    """The other processes: take the same steps from the same checkpoint, and write to a folder that is thrown away."""
    from nap_bench.session import Interrupted
    from nap_bench.train import train

    while (index := control.ranks.told()) is not None:
        run = jobs[index].run()
        with tempfile.TemporaryDirectory(prefix="nap_bench-") as store:
            folder, leaders = RunFolder(Path(store), run), RunFolder(jobs[index].store, run)
            folder.path.mkdir(parents=True)
            if leaders.checkpoint.exists():
                folder.checkpoint.symlink_to(leaders.checkpoint.resolve())
            try:
                train(run, folder, data_dir=data_dir, device=device, control=control)
            except Interrupted:
                return 75
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"together: {error}")

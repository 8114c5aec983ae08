"""What an image must be able to do: its %test. Runs inside, in a scratch folder, in half a minute."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib  # noqa: F401
import mlflow  # noqa: F401
import sklearn  # noqa: F401
import torch

import nap_bench
from nap_bench.data.torchvision_import import import_torchvision

CODE = Path("/opt/nap_bench")


def do(*command: str) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    assert Path(nap_bench.__file__).parents[1] == CODE, nap_bench.__file__
    print("Python", sys.version.split()[0], "torch", torch.__version__, "torchvision", import_torchvision().__version__)
    sys.path.insert(0, str(CODE / "tests" / "workflow"))
    import small

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        do("nap-bench", "doctor")
        lines = small.lines(num_tasks=1, steps_per_task=10)
        run_id = lines[0]["run_id"]
        do("nap-bench", "run", "--plan", str(small.write_plan(Path(), lines)), run_id)
        assert (Path("results") / "runs" / f"{run_id}.json").stat().st_size > 0
        do("snakemake", "--snakefile", str(CODE / "Snakefile"), "--cores", "1", "--dry-run", "--quiet", "all")
        os.chdir("/")
    print("nap-bench image: %test passed", flush=True)


main()

"""What an image must be able to do: its %test. Runs inside, in a scratch folder, in half a minute."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = Path("/opt/nap_bench")


def do(*command: str) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


def main(folder: str) -> None:
    # While an image is built everybody is user 0, so the caches that environment variables name may be somebody else's.
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        os.environ[name] = f"{folder}/caches"
    import matplotlib  # noqa: F401
    import mlflow  # noqa: F401
    import sklearn  # noqa: F401
    import torch

    import nap_bench
    from nap_bench.data.torchvision_import import import_torchvision

    assert Path(nap_bench.__file__).parents[1] == CODE, nap_bench.__file__
    print("Python", sys.version.split()[0], "torch", torch.__version__, "torchvision", import_torchvision().__version__)
    sys.path.insert(0, str(CODE / "tests" / "workflow"))
    import small

    os.chdir(folder)
    do("nap-bench", "doctor")
    lines = small.lines(num_tasks=1, steps_per_task=10)
    run_id = lines[0]["run_id"]
    do("nap-bench", "run", "--plan", str(small.write_plan(Path(), lines)), run_id)
    assert (Path("results") / "runs" / f"{run_id}.json").stat().st_size > 0
    do("snakemake", "--snakefile", str(CODE / "Snakefile"), "--cores", "1", "--dry-run", "--quiet", "all")
    os.chdir("/")
    print("nap-bench image: %test passed", flush=True)


with tempfile.TemporaryDirectory() as scratch:
    main(scratch)

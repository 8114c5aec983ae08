"""The shape of the code: imports point down, everything is listed, the light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nap_bench"
LAYERS = [
    {"spec", "nap", "rng", "stats", "schedules", "apptainer", "cluster", "gpus", "estimate", "ranks", "weights"},
    {"models"},
    {"optimizers", "state"},
    {"metrics", "data"},
    {"methods", "benchmarks", "record", "checkpoint", "store"},
    {"update"},
    {"session", "train", "simulate", "policy", "rl"},
    {
        "plan",
        "jobs",
        "pack",
        "speeds",
        "status",
        "together",
        "sharing",
        "crate",
        "tune",
        "experiments",
        "report",
        "tracking",
        "catalogue",
        "doctor",
        "cli",
    },
]
"""Bottom first; a module imports from its own layer and those before it, lazy imports included."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nap_bench":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("nap_bench.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = part_of(path)
    if part == "__init__":
        assert not imported(path)
        return
    assert part in LEVEL, f"{part} stands in no layer"
    for other in imported(path):
        assert LEVEL[other] <= LEVEL[part], f"{part} imports {other}, which lies above it"


@pytest.mark.parametrize(
    ("folder", "registry"), [("methods", "METHODS"), ("benchmarks", "BENCHMARKS"), ("experiments", "EXPERIMENTS")]
)
def test_every_module_of_a_registry_is_listed(folder, registry):
    import importlib

    package = importlib.import_module(f"nap_bench.{folder}")
    modules = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__", "base", "base_rl"}
    listed = getattr(package, registry)
    homes = {
        v.__name__.rsplit(".", 1)[-1] if folder == "experiments" else v.__module__.rsplit(".", 1)[-1]
        for v in listed.values()
    }
    assert homes == modules


@pytest.mark.parametrize(
    "module",
    [
        "cli",
        "catalogue",
        "doctor",
        "plan",
        "store",
        "sharing",
        "crate",
        "jobs",
        "pack",
        "status",
        "experiments",
        "report.claims",
        "report.page",
        "tracking.publish",
    ],
)
def test_what_needs_no_torch_does_not_import_it(module):
    code = f"import sys, nap_bench.{module}; sys.exit(any(m in sys.modules for m in ('torch', 'mlflow', 'matplotlib.pyplot')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["plan", "estimate", "cluster", "apptainer"])
def test_what_the_workflow_loads_stands_alone_when_loaded_by_path(name):
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('p', {str(PACKAGE / name)!r} + '.py')\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "sys.exit(any(name.split('.')[0] in ('nap_bench', 'torch', 'numpy') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0

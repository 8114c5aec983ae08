"""Methods of other packages: found by their entry points, planned beside an exhibit, compared in its report; as the page says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nap_bench import cli, methods, plan
from nap_bench.experiments import arms
from nap_bench.methods import METHODS, Registry
from nap_bench.methods.l2 import L2
from nap_bench.report.figures import look

ROOT = Path(__file__).parents[2]
PAGE = (
    (ROOT / "docs" / "adding-a-method.md").read_text().split("\n## From outside the repository\n")[1].split("\n## ")[0]
)
BLOCKS = {kind: text for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)}
CODE = """
from dataclasses import dataclass
from nap_bench.methods.base import Method

@dataclass(frozen=True)
class Mine(Method):
    name = "mine"
"""


def install(folder: Path, code: dict[str, str], points: dict[str, str], package: str = "my-methods") -> Path:
    """What an installer leaves behind: modules, and the package's metadata."""
    for path, text in code.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    about = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    entries = "".join(f"{name} = {value}\n" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[{methods.GROUP}]\n{entries}")
    return folder


def install_the_pages(folder: Path) -> Path:
    described = tomllib.loads(BLOCKS["toml"])
    path = BLOCKS["python"].partition("\n")[0].removeprefix("# ")
    points = described["project"]["entry-points"][methods.GROUP]
    return install(folder, {path: BLOCKS["python"]}, points, described["project"]["name"])


@pytest.fixture
def small_plan(tmp_path):
    """Two arms of an exhibit at a size of seconds, and a run of another exhibit."""
    made = {}
    for arm in ("baseline", "norm_only", "nap"):
        run = arms.entry(
            "laptop", arm, {}, seeds=(0, 1), task=dict(num_examples=48, num_tasks=2, steps_per_task=20)
        ).run
        made[run.run_id] = {"run_id": run.run_id, "work": 80, "run": plan.compact(run)}
        made[run.run_id]["uses"] = {
            "laptop": {"arms": [[arm, ""]], "other": [["x", ""]]},
            "paper": {"arms": [[arm, ""]]},
        }
    path = tmp_path / "plan.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"num_runs": len(made)}, *made.values()]))
    return path


def test_without_such_packages_there_are_the_suites_methods_and_nothing_is_imported():
    code = "import sys, nap_bench.methods as m; before = set(sys.modules); list(m.METHODS); print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name.partition(".")[0] for name in eval(done.stdout)}
    assert new <= set(sys.stdlib_module_names)


def test_a_method_of_a_package_stands_among_ours(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path, {"mine_found.py": CODE}, {"mine": "mine_found:Mine"}))
    registry = Registry([L2])
    assert list(registry) == ["l2", "mine"] and registry["mine"].__module__ == "mine_found"


def test_a_package_that_is_imported_first_still_finds_this_one(tmp_path):
    install(tmp_path, {"mine_first.py": CODE}, {"mine": "mine_first:Mine"})
    code = "import mine_first; from nap_bench.methods import METHODS; assert METHODS['mine'] is mine_first.Mine"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True)


@pytest.mark.parametrize(
    ("code", "points", "message"),
    [
        (
            CODE,
            {"l2": "{module}:Mine"},
            "Two methods are called 'l2': nap_bench.methods.l2:L2 of nap_bench itself, and {module}:Mine of ",
        ),
        (CODE, {"other": "{module}:Mine"}, "is called 'mine', its entry point 'other'"),
        (CODE, {"mine": "{module}:Yours"}, "'mine', {module}:Yours of package my-methods 1.0, cannot be loaded"),
        (
            "import nowhere",
            {"mine": "{module}:Mine"},
            "cannot be loaded (No module named 'nowhere'). Repair the package",
        ),
        (
            "Mine = 3",
            {"mine": "{module}:Mine"},
            "is no method: wanted a frozen dataclass derived from nap_bench.methods.base.Method",
        ),
    ],
)
def test_what_is_wrong_with_a_package_is_said_with_its_name_and_place(
    tmp_path, monkeypatch, request, code, points, message
):
    module = f"mine_{abs(hash(request.node.name))}"
    points = {name: place.format(module=module) for name, place in points.items()}
    monkeypatch.syspath_prepend(install(tmp_path, {f"{module}.py": code}, points))
    with pytest.raises(ValueError, match=re.escape(message.format(module=module))):
        list(Registry([L2]))


def test_two_packages_with_one_name_are_refused_and_both_are_named(tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.syspath_prepend(
            install(tmp_path / name, {f"from_{name}.py": CODE}, {"mine": f"from_{name}:Mine"}, package=name)
        )
    with pytest.raises(
        ValueError, match="(?=.*from_one:Mine of package one 1.0)(?=.*from_two:Mine of package two 1.0)"
    ):
        list(Registry([L2]))


def test_an_own_plan_keeps_the_exhibits_runs_and_adds_stacks_to_arms(small_plan):
    lines = plan.load(small_plan)
    own = small_plan.with_name("mine.jsonl")
    own.write_text(plan.extend(lines, "laptop", "arms", ["l2(coef=0.1)", "leaky_relu"], ["baseline", "nap"]))
    made = plan.load(own)
    assert [line["run"] for line in made[:3]] == [line["run"] for line in lines] and len(made) == 7
    assert all(set(line["uses"]) == {"laptop"} and set(line["uses"]["laptop"]) == {"arms"} for line in made)
    added = {line["uses"]["laptop"]["arms"][0][0]: plan.expand(line["run"]) for line in made[3:]}
    assert list(added) == ["l2(coef=0.1)", "l2(coef=0.1)+nap", "leaky_relu", "leaky_relu+nap"]
    base = plan.expand(lines[2]["run"])
    assert added["leaky_relu+nap"].stack == "leaky_relu+nap" and base.stack == "nap"
    for name in ("benchmark", "model", "optimizer", "schedule", "seeds"):
        assert getattr(added["leaky_relu+nap"], name) == getattr(base, name)
    bases = ["baseline", "nap", "baseline", "nap"]
    assert plan.added(made) == dict(zip(added, bases, strict=True)) and plan.added(lines) == {}


def test_a_stack_that_makes_a_run_of_ours_shares_it(small_plan):
    text = plan.extend(plan.load(small_plan), "laptop", "arms", ["layer_norm"], ["baseline"])
    header, *made = map(json.loads, text.splitlines())
    assert header == {"num_runs": 3} and made[1]["uses"] == {
        "laptop": {"arms": [["norm_only", ""], ["layer_norm", ""]]}
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--exhibit arm --with l2", "exhibits at scale laptop: unknown 'arm'. Did you mean 'arms'"),
        ("--exhibit arms --with leaky_rel", "Unknown method 'leaky_rel'. Did you mean 'leaky_relu'"),
        ("--exhibit arms --with l2 --to nop", "arms of arms at scale laptop: unknown 'nop'. Did you mean 'nap'"),
        ("--exhibit arms --with layer_norm --to nap", "cannot exist .*both set the model's 'norm'"),
        ("--exhibit arms --scale workstation --with l2", "exhibits at scale workstation: unknown 'arms'"),
        ("--exhibit arms", "at least one --with STACK"),
        ("--exhibit arms --with l2 --check", "and no --check"),
    ],
)
def test_an_own_plan_that_cannot_be_made_says_why(small_plan, words, message, capsys):
    where = ["--plan", str(small_plan), "--out", str(small_plan.with_name("mine.jsonl"))]
    assert cli.main(["plan", *where, *words.split()]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_own_plan_never_replaces_the_suites(small_plan, capsys):
    words = ["plan", "--plan", str(small_plan), "--out", str(small_plan), "--exhibit", "arms", "--with", "l2"]
    before = small_plan.read_bytes()
    assert cli.main(words) == 2 and "choose another file" in capsys.readouterr().err
    assert small_plan.read_bytes() == before


def test_the_page_is_followed_from_an_installed_package_to_the_report(tmp_path, small_plan):
    install_the_pages(tmp_path / "site")
    show, planned, _ = (shlex.split(line) for line in BLOCKS["sh"].splitlines())
    at = ["--plan", "mine.jsonl", "--results", "mine/results"]
    commands = [show[1:], [*planned[1:], "--plan", "plan.jsonl"]]
    commands[0] += ["--plan", "plan.jsonl"]
    commands += [["run", "--pack", *at, "--store", "store", "RUNS"]]
    commands += [[step, *at, "--exhibit", "arms"] for step in ("score", "claims", "figure")]
    commands += [["report", *at, "--store", "store", "--reports", "mine/reports"]]
    code = f"""
import json
from nap_bench.cli import main
for words in {commands!r}:
    if words[-1] == "RUNS":
        words[-1:] = [json.loads(line)["run_id"] for line in open("mine.jsonl").readlines()[1:]]
    assert main(words) == 0, words
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    how = dict(cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run([sys.executable, "-c", code], check=False, **how)
    assert done.returncode == 0, done.stdout
    assert "method head_decay, version 1" in done.stdout and "code: my_methods/head_decay.py" in done.stdout
    said = re.search(r"added arms: (.+)\.\nCompare: (.+)\n", done.stdout)
    wanted = ["head_decay", "head_decay(coef=10.0)", "head_decay(coef=10.0)+nap", "head_decay+nap"]
    assert said[1].split(", ") == wanted and said[2] == BLOCKS["sh"].splitlines()[-1]
    figure = (tmp_path / "mine/results/laptop/figures/arms.svg").read_text()
    html = (tmp_path / "mine/reports/laptop/index.html").read_text()
    for arm in wanted:
        for number, panel in enumerate(arms.PANELS):
            drawn = f"panel-{number}.{arm}.{'seeds' if panel.kind == 'interval' else 'seed-0'}" in figure
            assert drawn == (("nap" if "nap" in arm else "baseline") in panel.arms), (panel.title, arm)
        assert look(arm).label in html
    assert "What your arms add" in html
    assert "head_decay" not in METHODS, "nothing of it is left here"

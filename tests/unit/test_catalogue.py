"""What there is, printed: complete, narrow enough, and true to the files of a run."""

from __future__ import annotations

import json
import os
import shlex
import time

import pytest

from nap_bench import catalogue, cli, plan
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.experiments import EXPERIMENTS, arms
from nap_bench.methods import METHODS
from nap_bench.spec import PROTOCOL


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    """The first runs of `arms`, as the plan would have them."""
    made = []
    for entry in arms.runs("laptop")[:5]:
        run = entry.run
        uses = {"laptop": {"arms": [[entry.arm, entry.setting]]}}
        line = {
            "run_id": run.run_id,
            "methods": [part.name for part in run.methods],
            "uses": uses,
            "resources": "small",
            "work": 1000,
        }
        made.append({**line, "run": plan.compact(run)})
    made[1]["uses"] = {"paper": made[1]["uses"]["laptop"]}
    made[1]["data"] = "mnist"
    return made


@pytest.fixture
def folder(tmp_path, lines):
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{}, *lines]))
    return tmp_path


@pytest.fixture
def nap_bench(folder, capsys):
    """Run a command; its standard output. Arguments of places are added."""

    def call(*words: str, code: int = 0) -> str:
        places = ["--plan", str(folder / "plan.jsonl")]
        if words[0] == "show":
            places += ["--store", str(folder / "store"), "--results", str(folder / "results")]
        assert cli.main([words[0], *places, *words[1:]]) == code
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return call


@pytest.mark.parametrize(
    ("kind", "names"),
    [("methods", METHODS), ("benchmarks", BENCHMARKS), ("exhibits", EXPERIMENTS), ("scales", plan.SCALES)],
)
def test_a_list_names_everything_in_eighty_columns(kind, names, nap_bench):
    printed = nap_bench("list", kind).splitlines()
    assert [line for line in printed if not line.startswith(" ")] == list(names)
    assert max(map(len, printed)) < 80


def test_a_list_says_defaults_and_what_has_to_be_given(nap_bench):
    assert "norm='layer', project=True, period=1" in nap_bench("list", "methods")
    assert "dataset, num_examples, num_tasks" in nap_bench("list", "benchmarks")


def test_the_readme_has_a_line_for_every_method_and_is_current(nap_bench):
    readme = (catalogue.ROOT / "README.md").read_text()
    assert catalogue.with_methods(readme) == readme, "nap-bench list methods --markdown README.md"
    own = [name for name, method in METHODS.items() if method.__module__.startswith("nap_bench.")]
    assert all(readme.count(f"| [{name}](docs/methods/{name}.md) | ") == 1 for name in own)
    assert nap_bench("list", "methods", "--markdown") in readme


def test_the_table_of_methods_is_renewed_between_its_markers_and_nowhere_else(folder, nap_bench):
    page = folder / "page.md"
    page.write_text(f"before\n{catalogue.MARKERS[0]}\nold\n{catalogue.MARKERS[1]}\nafter\n")
    nap_bench("list", "methods", "--markdown", str(page))
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")
    assert "old" not in page.read_text().splitlines() and "| [nap](docs/methods/nap.md) | " in page.read_text()
    page.write_text("no place\n")
    assert "wants its place" in nap_bench("list", "methods", "--markdown", str(page), code=2)
    assert "found 'benchmarks'" in nap_bench("list", "benchmarks", "--markdown", code=2)


def test_exhibits_and_scales_are_counted_in_the_plan(nap_bench):
    assert "runs: laptop 4, workstation 0, paper 1" in nap_bench("list", "exhibits")
    printed = nap_bench("list", "scales")
    assert "4 runs" in printed and "exhibits: arms 4" in printed and "data: mnist" in printed
    assert "data: comes with the dependencies" in printed


@pytest.mark.parametrize("name", [*METHODS, *BENCHMARKS, *EXPERIMENTS])
def test_everything_can_be_shown_in_eighty_columns(name, nap_bench):
    printed = nap_bench("show", name)
    assert max(map(len, printed.splitlines())) < 80
    (code,) = [line.removeprefix("code: ") for line in printed.splitlines() if line.startswith("code: ")]
    assert (catalogue.ROOT / code).exists()
    if name in METHODS:
        assert f"page: docs/methods/{name}.md" in printed
    for claim in EXPERIMENTS[name].CLAIMS if name in EXPERIMENTS else ():
        assert claim.id in printed


def test_unknown_names_are_answered_with_the_nearest(nap_bench, lines):
    assert "Did you mean 'methods'?" in nap_bench("list", "method", code=2)
    assert "Did you mean 'layer_norm'?" in nap_bench("show", "layernorm", code=2)
    told = nap_bench("show", lines[0]["run_id"][:-1], code=2)
    assert f"Did you mean {lines[0]['run_id']!r}?" in told and "5 runs are in" in told and "Known" not in told


def test_a_run_is_shown_as_it_trains_and_its_command_runs_it(nap_bench, lines, folder):
    line = next(line for line in lines if line["methods"] == ["layer_norm"])
    printed = nap_bench("show", line["run_id"])
    assert "laptop: arms, norm_only" in printed
    assert "norm         layer" in printed  # the method's edit, not the plan's "none"
    assert "state: missing" in printed
    assert nap_bench("show", f"results/runs/{line['run_id']}.json") == printed
    (command,) = [text.removeprefix("to run it: ") for text in printed.splitlines() if text.startswith("to run it: ")]
    program, *words = shlex.split(command)
    parsed = cli._parser().parse_args(words)
    assert program == "nap-bench" and parsed.run_ids == [line["run_id"]] and parsed.scale == "laptop"
    assert (parsed.plan, parsed.store) == (folder / "plan.jsonl", folder / "store")


def test_a_run_of_another_scale_is_run_at_its_scale(nap_bench, lines):
    printed = nap_bench("show", lines[1]["run_id"])
    assert "--scale paper" in printed and "nap-bench data mnist" in printed
    assert "is not a run of laptop scale, but of: paper" in nap_bench(
        "show", "--scale", "laptop", lines[1]["run_id"], code=2
    )


def test_a_run_of_the_sweep_is_run_by_tune(nap_bench, lines, folder):
    swept = {**lines[0], "uses": {plan.TUNING: {"arms": [["nap", "lr=0.001"]]}}}
    (folder / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{}, swept]))
    printed = nap_bench("show", swept["run_id"])
    assert "tuning: arms, nap lr=0.001" in printed and "to run it: nap-bench tune\n" in printed
    assert "runs: laptop 0, workstation 0, paper 0, tuning 1" in nap_bench("list", "exhibits")


def test_the_state_of_a_run_is_what_its_files_say(tmp_path, lines):
    line, store, results = lines[0], tmp_path / "store", tmp_path / "results"
    folder = store / line["run_id"]

    def state() -> str:
        before = sorted(tmp_path.rglob("*"))
        said = catalogue.state(line, store, results)
        assert sorted(tmp_path.rglob("*")) == before
        return said.removeprefix("state: ")

    assert state() == "missing"
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_text("x")
    assert state().startswith("missing, begun")
    (folder / "failed.json").write_text(
        json.dumps({"run_id": line["run_id"], "reason": "OSError: full", "log": "store/log"})
    )
    assert state() == "failed: OSError: full (log: store/log)"
    (folder / "lease.json").write_text(json.dumps({"host": "h", "pid": 7, "token": "t", "step": 40}))
    assert state().startswith("running: process 7 on h, update 40")
    os.utime(folder / "lease.json", (time.time() - 1000,) * 2)  # its process died
    assert state().startswith("failed")
    (folder / "done.json").write_text("{}")
    assert state().startswith("done in")
    (results / "runs").mkdir(parents=True)
    result = {"format": 1, "protocol": PROTOCOL, "run_id": line["run_id"], "cost": {"wall_seconds": 2.5}}
    result["status"] = [{"seed": 0, "status": "complete"}, {"seed": 3, "status": "diverged", "step": 9}]
    (results / "runs" / f"{line['run_id']}.json").write_text(json.dumps(result))
    assert state().startswith("done, 2.5 s; DIVERGED at seeds 3")

"""What a suite will take: arithmetic of measured speeds, and no number where none was measured."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from nap_bench import cli, estimate, plan, speeds
from nap_bench.experiments import arms
from nap_bench.spec import PROTOCOL

PLANNED = [json.loads(text) for text in (plan.ROOT / "config" / "plan.jsonl").read_text().splitlines()[1:]]


def line(stack: str = "baseline", *, seeds=(0, 1), widths=(20, 12), batch_size=16, steps=100, **more) -> dict:
    run = {
        "benchmark": {"name": "random_labels", "params": {"dataset": "digits", "batch_size": batch_size}},
        "model": {"family": "mlp", "size": {"widths": list(widths)}},
        "seeds": list(seeds),
    }
    run_id = f"{stack}-{len(seeds)}-{widths[0]}-{batch_size}-{steps}"
    uses = {"laptop": {"arms": [[stack, ""]]}}
    return {"run_id": run_id, "methods": [stack], "work": steps * len(seeds), "uses": uses, "run": run, **more}


@pytest.fixture
def table(tmp_path):
    """2 ms an update for the kind of `line()`, on one processor; nothing on a GPU."""
    about = {"device": "cpu", "torch": "2.0", "start_seconds": 4.0}
    kinds = {estimate.kind(line()): {"milliseconds": 2.0, "num_runs": 3, "bytes": 5000, "how": "finished runs"}}
    path = tmp_path / "speeds.json"
    path.write_text(json.dumps({"A processor": {**about, "kinds": kinds}}))
    return path


def test_runs_are_of_a_kind_if_nothing_but_methods_rates_and_lengths_differ():
    assert estimate.kind(line()) == estimate.kind(line("nap", seeds=(5, 6), steps=7))
    assert estimate.kind(line()) == "random_labels mlp: digits, widths 20-12, batch 16, 2 seeds"
    others = [line(seeds=(0,)), line(widths=(20, 20)), line(batch_size=8)]
    assert len({estimate.kind(other) for other in [line(), *others]}) == 4


def test_time_and_disk_follow_from_measured_speeds(table):
    made = estimate.Estimate([line(steps=100_000), line(steps=50_000)], estimate.Speeds("cpu", table))
    assert made.seconds == pytest.approx(300.0) and made.disk_bytes() == 10_000 and not made.unmeasured
    assert made.wall_seconds(1) == pytest.approx(302.0)  # half a process is started for two runs
    assert made.wall_seconds(8) == pytest.approx(200.0), "no shorter than the longest run"


def test_what_was_never_measured_is_said_to_be_so_and_is_in_no_sum(table):
    mixed = [line(steps=100_000), line(widths=(999,))]
    made = estimate.Estimate(mixed, estimate.Speeds("cpu", table))
    assert made.seconds == pytest.approx(200.0) and made.unmeasured == mixed[1:]
    how = dict(scale="laptop", num_workers=2)
    said = "\n".join(estimate.told(mixed, 3, device="cpu", speeds=estimate.Speeds("cpu", table), **how))
    assert "2 runs to do, 3 done already" in said and "measured on A processor, torch 2.0" in said
    assert "time of 1 run on a core: NOT MEASURED" in said
    on_gpu = "\n".join(estimate.told(mixed, 0, device="cuda:0", speeds=estimate.Speeds("cuda:0", table), **how))
    assert "time of 2 runs on a GPU: NOT MEASURED" in on_gpu and "minutes" not in on_gpu


def test_this_machines_own_speeds_come_first(tmp_path):
    path = tmp_path / "speeds.json"
    section = {"device": "cpu", "torch": "2.0", "kinds": {}}
    path.write_text(json.dumps({"A": section, "B": section, "C": {**section, "device": "cuda"}}))
    assert [estimate.Speeds("cpu", path, name).hardware for name in ("A", "B", "another")] == ["A", "B", "A"]
    assert estimate.Speeds("cuda", path, "A").hardware == "C"


@pytest.mark.parametrize("scale", plan.SCALES)
def test_an_estimate_of_every_scale_is_a_table_of_at_most_a_hundred_columns(scale, tmp_path, capsys):
    (tmp_path / "plan.jsonl").write_text("".join(json.dumps(text) + "\n" for text in [{}, *PLANNED]))
    places = ["--plan", str(tmp_path / "plan.jsonl"), "--results", str(tmp_path)]
    assert cli.main(["plan", "--estimate", "--scale", scale, "--cores", "64", *places]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 100
    chosen = [text for text in PLANNED if scale in text["uses"]]
    assert printed[0] == f"{scale} scale: {len(chosen):,} runs to do, 0 done already"
    total = next(text for text in printed if text.startswith("all "))
    rows = printed[printed.index("") + 2 : printed.index(total)]
    assert total.split()[1] == str(len(chosen)) == str(sum(int(row.split()[2]) for row in rows))
    assert all("NOT MEASURED" in row or row.split()[-2].replace(",", "") for row in rows)


def test_the_first_lines_of_an_invocation_are_about_what_it_was_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line(steps=number) for number in (1, 2, 3)]
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "results" / "runs" / f"{lines[0]['run_id']}.json").touch()
    outputs = [[f"results/runs/{text['run_id']}.json"] for text in lines[:2]]
    jobs = [SimpleNamespace(output=output) for output in [*outputs, ["results/laptop/scores/arms.csv"]]]
    settings = SimpleNamespace(cores=2, nodes=None)
    workflow = SimpleNamespace(dag=SimpleNamespace(jobs=jobs), resource_settings=settings)
    config = {"results_dir": "results", "scale": "laptop", "device": "cpu", "pack_slots": 1}
    todo = estimate.begin(workflow, config, lines, tmp_path / "asked.json")
    assert todo == lines[1:2]
    assert json.loads((tmp_path / "asked.json").read_text()) == [text["run_id"] for text in lines[:2]]
    assert capsys.readouterr().err.startswith("laptop scale: 1 run to do, 1 done already")


def test_the_committed_speeds_name_their_hardware_and_are_of_planned_kinds():
    table = json.loads(estimate.SPEEDS.read_text())
    assert table
    for hardware, about in table.items():
        assert hardware and about["device"] in ("cpu", "cuda") and about["torch"]
        for name, measured in about["kinds"].items():
            assert ": " in name and measured["how"]
            assert measured.get("milliseconds", measured.get("frames_per_second")) > 0


# the table


@pytest.fixture
def finished(tmp_path):
    """Three runs of a kind with their results, 10, 20 and 30 ms an update."""
    lines = [line(steps=100, seeds=(number, number + 1)) for number in range(3)]
    for number, made in enumerate(lines):
        made["run_id"] = f"random_labels.mlp.baseline-{number}"
        result = {
            **{"format": 1, "protocol": PROTOCOL, "run_id": made["run_id"]},
            "environment": {"device_name": "B", "device": "cpu", "torch": "2.1", "cpu_capability": "x", "num_cores": 4},
            "cost": {"wall_seconds": number + 1.0},
        }
        path = tmp_path / "results" / "runs" / f"{made['run_id']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        (tmp_path / "store" / made["run_id"]).mkdir(parents=True)
        (tmp_path / "store" / made["run_id"] / "metrics.csv").write_bytes(b"x" * 1000)
    return lines, dict(store=tmp_path / "store", results=tmp_path / "results")


def test_speeds_come_from_finished_runs_and_those_of_other_machines_stay(finished, table):
    lines, places = finished
    speeds.renew(table, [*lines, line()], **places, seconds=0.0, data_dir=None, device="cpu")
    found = json.loads(table.read_text())
    assert set(found) == {"A processor", "B"}, "what was known of another machine stays"
    (measured,) = found["B"]["kinds"].values()
    assert (measured["milliseconds"], measured["range"], measured["num_runs"]) == (20.0, [10.0, 30.0], 3)
    assert 1000 < measured["bytes"] < 2000
    before = table.read_bytes()
    speeds.renew(table, [*lines, line()], **places, seconds=0.0, data_dir=None, device="cpu")
    assert table.read_bytes() == before


def test_a_kind_that_never_finished_is_tried_for_a_moment_and_leaves_nothing(tmp_path):
    run = arms.entry("laptop", "nap", {}, seeds=(1000,), task=dict(num_tasks=100, steps_per_task=1000)).run
    planned = {"run_id": run.run_id, "methods": ["nap"], "work": 100_000, "run": plan.compact(run)}
    atari = {**planned, "demand": {"frames": 10**9}, "run": {**planned["run"], "seeds": [1, 2]}}
    lost = {**planned, "run": {**planned["run"], "seeds": [1, 2, 3], "benchmark": {"name": "nothing", "version": 1}}}
    how = dict(seconds=0.2, data_dir=str(tmp_path), device="cpu")
    found = dict(speeds.trials([planned, atari, lost], {}, **how))
    assert set(found) == {estimate.kind(planned), estimate.kind(atari)}, "what cannot be tried stays unknown"
    assert 0.01 < found[estimate.kind(planned)]["milliseconds"] < 1000
    assert found[estimate.kind(atari)]["frames_per_second"] == plan.MEASURED_FPS
    assert not list(tmp_path.iterdir())

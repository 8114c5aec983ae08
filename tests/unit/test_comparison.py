"""Methods across tasks: one scale, the same seeds and tasks for all, intervals, ranks that overlap, cost; rates of any run."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from nap_bench.benchmarks import BENCHMARKS
from nap_bench.experiments import EXPERIMENTS
from nap_bench.report import comparison, page, rates, svg
from nap_bench.report.comparison import Group, Task, compare, cost, drawn
from nap_bench.report.scores import Score, Scores

TASKS = (
    Task(label="first", exhibit="one", measure="accuracy", setting="a"),
    Task(label="second", exhibit="two", measure="accuracy", chance={"laptop": 0.2, "paper": 0.5}),
)
GROUPS = (Group("both", "Both tasks", TASKS), Group("single", "The first", TASKS[:1]))
LEVELS = {"nap": 0.91, "layer_norm": 0.82, "baseline": 0.3, "l2": 0.3}


def scores(num_seeds=6, skip=(), dead=(), noise=0.01, scale=1.0):
    """Two exhibits whose arms reach LEVELS; in the second LayerNorm is called norm_only."""
    generator = np.random.default_rng(0)
    tables = {}
    for exhibit, setting in (("one", "a"), ("two", "")):
        rows = []
        for arm, level in LEVELS.items():
            name = "norm_only" if (arm, exhibit) == ("layer_norm", "two") else arm
            for seed in range(num_seeds):
                value = math.nan if (arm, seed) in dead else scale * (level + noise * generator.normal())
                if (arm, exhibit) not in skip:
                    rows.append(Score(name, setting, "accuracy", None, seed + 10 * (exhibit == "two"), value))
        tables[exhibit] = Scores(rows)
    return tables


def test_a_score_is_put_between_chance_and_the_best_at_its_scale():
    first, second = TASKS
    assert first.normalised(0.1, "laptop") == pytest.approx(0.0) and first.normalised(1.0, "laptop") == pytest.approx(
        1.0
    )
    assert second.normalised(0.6, "laptop") == pytest.approx(0.5) and second.normalised(0.5, "paper") == 0.0


def test_a_diverged_seed_is_worse_than_the_worst_finite_accuracy():
    for task in TASKS:
        assert (
            task.normalised(math.nan, "laptop") == task.normalised(0.0, "laptop") < task.normalised(1e-6, "laptop") < 0
        )


def test_chance_where_classes_become_more_is_the_mean_of_what_guessing_reaches_in_each_task():
    run = next(run for _, setting, run in EXPERIMENTS["interactions"].runs("laptop") if setting == "class_incremental")
    stream = run.benchmark.build(BENCHMARKS, "benchmark")
    chances = [1 / len(stream.classes(0, task)) for task in range(stream.num_tasks)]
    assert comparison.CLASSES.chance == pytest.approx(np.mean(chances)) != 0.1


def test_the_declared_tasks_exist_and_no_chance_is_missing_for_a_scale():
    for group in comparison.GROUPS:
        for task in group.tasks:
            assert task.exhibit in EXPERIMENTS
            assert all(math.isfinite(task.normalised(1.0, scale)) for scale in ("laptop", "workstation", "paper"))


def test_methods_are_compared_on_the_tasks_that_all_of_them_have():
    both, single = compare(scores(skip={("l2", "two")}), "laptop", GROUPS)
    assert set(both["arms"]) == {"nap", "layer_norm", "baseline"} and set(single["arms"]) == set(LEVELS)
    assert both["without"] == {("second",): ["L2"]} and single["without"] == {}
    assert both["scores"]["nap"].shape == (6, 2) and single["scores"]["nap"].shape == (6, 1)
    (only,) = compare({"one": scores()["one"]}, "laptop", GROUPS[:1])
    assert only["absent"] == ["second"] and len(only["tasks"]) == 1
    assert compare({}, "laptop", GROUPS) == []
    assert (
        compare(scores(skip={(arm, e) for arm in LEVELS for e in ("one", "two") if arm != "nap"}), "laptop", GROUPS)
        == []
    )


def test_the_page_names_the_methods_that_are_left_out_and_what_they_lack(monkeypatch):
    groups = compare(scores(skip={("l2", "two")}), "laptop", GROUPS)
    monkeypatch.setattr(comparison, "compare", lambda *_: groups)
    html = page.compile("laptop", {}, {}, {}, {}, [], {})
    assert html.count("Left out, without results of second: L2.") == 1


def test_a_diverged_seed_counts_as_the_score_0_and_is_named():
    (both, _) = compare(scores(dead={("nap", 2)}), "laptop", GROUPS)
    assert both["diverged"] == {"nap": 2, "layer_norm": 0, "baseline": 0, "l2": 0}
    assert both["scores"]["nap"][2].tolist() == pytest.approx([-0.1 / 0.9, -0.2 / 0.8])


def test_seeds_that_one_method_lacks_are_dropped_for_all_and_counted():
    tables = scores()
    rows = [row for row in tables["two"].rows() if not (row.arm == "nap" and row.seed >= 14)]
    both, single = compare(tables | {"two": Scores(rows)}, "laptop", GROUPS)
    assert (both["num_seeds"], both["dropped"]) == (4, 2) and (single["num_seeds"], single["dropped"]) == (6, 0)


def test_places_that_are_not_told_apart_overlap():
    both, _ = compare(scores(), "laptop", GROUPS)
    ranks = both["ranks"]
    assert ranks["nap"] == (1, 1, 1) and ranks["layer_norm"] == (2, 2, 2)
    assert {ranks["baseline"][1:], ranks["l2"][1:]} == {(3, 4)}
    blurred, _ = compare(scores(noise=3.0), "laptop", GROUPS)
    assert {found[1:] for found in blurred["ranks"].values()} == {(1, 4)}


def test_the_number_of_pairs_is_paid_for():
    both, _ = compare(scores(), "laptop", GROUPS)
    assert len(both["pairs"]) == 6
    for pair in both["pairs"]:
        assert pair["adjusted"] >= pair["p"]
    assert min(pair["adjusted"] for pair in both["pairs"]) == pytest.approx(
        6 * min(pair["p"] for pair in both["pairs"])
    )


def test_the_page_s_rows_matrix_and_pairs_say_the_same_as_the_numbers():
    both, _ = compare(scores(), "laptop", GROUPS)
    shown = drawn(both, cost(both, {}, {}), svg.Inliner())
    assert [row["label"] for row in shown["rows"][:2]] == ["NaP", "LayerNorm"]
    assert [cell and cell["text"] for cell in shown["matrix"][0]["cells"]] == [None, "100", "100", "100"]
    for i, row in enumerate(shown["matrix"]):
        for j, cell in enumerate(row["cells"]):
            assert cell is None or float(cell["text"]) + float(shown["matrix"][j]["cells"][i]["text"]) == pytest.approx(
                100, abs=1
            )
    sure = {(pair["a"], pair["b"]): pair["adjusted"] < comparison.ALPHA for pair in both["pairs"]}
    assert {True, False} == set(sure.values())
    for a, row in zip(both["arms"], shown["matrix"], strict=True):
        for b, cell in zip(both["arms"], row["cells"], strict=True):
            assert cell is None or cell["sure"] == sure[(a, b) if (a, b) in sure else (b, a)]
    first = shown["pairs"][0]
    assert first["better"] == "NaP" and first["significant"] and first["difference"].startswith("+")
    assert all(pair["value"] >= 0 for pair in shown["pairs"])


def test_one_seed_has_places_and_no_intervals():
    both, _ = compare(scores(num_seeds=1), "laptop", GROUPS)
    shown = drawn(both, cost(both, {}, {}), svg.Inliner())
    assert shown["rows"][0]["pools"][0]["span"] == "\u2013" and shown["significant"] == 0
    assert {(row["places"]) for row in shown["rows"]} == {"1 to 4"}


def test_cost_is_relative_to_the_baseline_of_the_same_task():
    def result(speed, **more):
        return {"cost": {"steps_per_second": speed, "wall_seconds": 10.0, "peak_memory_bytes": 2e8, **more}}

    both, _ = compare(scores(), "laptop", GROUPS)
    planned = {"one": [("baseline", "a", "b1"), ("nap", "a", "n1")], "two": [("baseline", "", "b2"), ("nap", "", "n2")]}
    done = {"b1": result(100), "n1": result(50, slot_bytes=7), "b2": result(10), "n2": result(80)}
    spent = cost(both, planned, done)
    assert spent["nap"]["time"] == pytest.approx(0.5)  # twice and an eighth of the time: the geometric mean
    assert spent["baseline"]["time"] == 1.0 and spent["l2"]["time"] is None
    assert spent["nap"]["kept"] == 7 and spent["nap"]["wall"] == 20.0


def test_the_same_scores_give_the_same_chart():
    charts = []
    for _ in range(2):
        both, _single = compare(scores(), "laptop", GROUPS)
        charts.append(drawn(both, cost(both, {}, {}), svg.Inliner())["profile"])
    assert charts[0] == charts[1]
    assert charts[0].count("<g data-arm=") == 4


def curves(**metrics):
    steps = list(range(0, 1000, 10))
    return {
        "metrics": {name: {"steps": steps, "values": [[f(t), f(t)] for t in steps]} for name, f in metrics.items()},
        "spec": {"benchmark": {"name": "random_labels"}, "model": {"family": "mlp"}},
    }


RUN = curves(
    **{
        "probe/explicit_learning_rate": lambda t: 1e-3,
        "probe/effective_learning_rate/layer0": lambda t: 1e-3 / (1 + t / 330),
        "probe/norm/layer0": lambda t: 1 + t / 330,
        "probe/dead_fraction": lambda t: 0.5 if t < 500 else math.nan,
    }
)


def test_a_run_s_rates_are_relative_to_their_start_and_small():
    found = rates.explorer(
        {"fig5": [("nap", "x", "r1"), ("l2+nap", "", "r2")], "fig8": [("nap", "x", "r1")]}, {"r1": RUN}
    )
    assert list(found) == ["r1"] and found["r1"]["at"] == [["fig5", "NaP, x"], ["fig8", "NaP, x"]]
    run = found["r1"]
    assert len(run["t"]) == rates.MOST_POINTS and (run["t"][0], run["t"][-1]) == (0, 990)
    assert set(run["set"]) == {0} and run["rates"][0][0] == 0
    assert run["rates"][0][-1] == round(-100 * math.log(4)) == -run["norms"]["layer0"][-1]
    assert run["units"]["dead units"][0] == 50 and run["units"]["dead units"][-1] is None
    assert rates.times(run["rates"][0][-1]) == "\u00d70.25"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_many_runs_show_fewer_points_each():
    planned = {"fig5": [("nap", str(i), f"r{i}") for i in range(9000)]}
    found = rates.explorer({"fig5": planned["fig5"]}, {f"r{i}": RUN for i in range(9000)})
    assert len(found["r0"]["t"]) == 8 and found["r0"]["t"][-1] == 990


def test_the_overview_takes_the_setting_that_has_most_of_the_three_networks():
    planned = {"a": [("nap", "", "n")], "b": [("none", "s", "p"), ("norm_only", "s", "l"), ("nap", "s", "n")]}
    done = dict.fromkeys(("n", "p", "l"), RUN)
    (row,) = rates.overview(planned, {"a": "A", "b": "B"}, rates.explorer(planned, done), done)
    assert row["exhibit"] == "b" and None not in row["cells"] and row["kind"] == "random labels, mlp"
    assert "norms \u00d74.01" in row["cells"][0]["told"]


def test_the_matrix_says_what_nap_and_each_of_its_parts_does_to_a_method_s_gain():
    from nap_bench.experiments import fig5_continual, interactions
    from nap_bench.report.page import _matrix

    levels = {"baseline": 0.5, "l2": 0.6, "layer_norm": 0.6, "l2+layer_norm": 0.7, "nap": 0.7, "l2+nap": 0.7}
    rows = [
        Score(arm, "random_labels", "average_online_accuracy", None, seed, level + 1e-4 * (seed % 3) * (arm == "l2"))
        for arm, level in levels.items()
        for seed in fig5_continual.SEEDS
    ]
    found = _matrix(
        {"other": object(), "interactions": interactions}, {"other": Scores([]), "interactions": Scores(rows)}
    )
    (row,) = [row for row in found["rows"] if row["label"] == "L2"]
    assert [cell["kind"] for cell in row["cells"]] == ["redundant", "additive", "redundant"]
    assert row["cells"][0]["text"] == "\u22120.100" and found["streams"] == [("random labels", 3)]
    assert all(cells is None for row in found["rows"] if row["label"] != "L2" for cells in row["cells"])
    assert _matrix({"interactions": interactions}, {"interactions": Scores([])}) is None

"""The page: every claim, run and seed that was planned is on it, whatever became of it."""

import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nap_bench.report import page, tables
from nap_bench.report.claims import KINDS, Claim, Paired, judge
from nap_bench.report.figures import Panel, draw
from nap_bench.report.scores import Score, Scores

SEEDS = range(4)


def claim(name, arm, against, kind="superiority", margin=0.15, measure="late_accuracy", **changes):
    measured = Paired(label=f"{arm} - {against}", measure=measure, better="higher", arm=arm, against=against, **changes)
    sentence = f"The claim {name}."
    return Claim(
        id=name, source="Fig. 2", sentence=sentence, kind=kind, margin=margin, unit="accuracy", measurements=(measured,)
    )


CLAIMS = (
    claim("holds", "nap", "norm_only"),
    claim("fails", "norm_only", "nap"),
    claim("open", "nap", "norm_only", margin=0.4),
    claim("unrun", "nap", "nap_head"),
)
EXHIBIT = SimpleNamespace(
    TITLE="Arms <of> labels",
    PAPER="Shows that a < b & `c`.",
    DEVIATIONS=("Digits, not <b>MNIST</b>.",),
    CLAIMS=CLAIMS,
    PANELS=(Panel(kind="interval", measure="late_accuracy"),),
)
PLANNED = [("nap", "", "r.nap-1"), ("norm_only", "", "r.ln-2"), ("nap_head", "", "r.head-3"), ("baseline", "", "r.b-4")]


def recorded(start, factor, num_points=60):
    """A metric of every seed that goes from start by a factor, evenly in its logarithm."""
    steps = [10 * (i + 1) for i in range(num_points)]
    values = [[start * factor ** (i / (num_points - 1))] * len(SEEDS) for i in range(num_points)]
    return {"steps": steps, "values": values}


RECORDED = {
    "probe/explicit_learning_rate": recorded(1e-3, 1.0),
    "probe/effective_learning_rate/layer0": recorded(1e-4, 0.25),
    "probe/norm/layer0": recorded(10.0, 4.0),
    "probe/dead_fraction": recorded(0.1, 5.0),
}


def scores(num_seeds=4, dead=()):
    rows = []
    for arm, level in (("nap", 0.9), ("norm_only", 0.5)):
        for seed in SEEDS[:num_seeds]:
            value = math.nan if (arm, seed) in dead else level + 0.01 * seed * (arm == "nap")
            rows += [Score(arm, "", "late_accuracy", None, seed, value), Score(arm, "", "accuracy", 1.0, seed, value)]
    return Scores(rows)


def result(run_id, diverged=None, **environment):
    status = [{"seed": seed, "status": "complete"} for seed in SEEDS]
    if diverged is not None:
        status[diverged] = {"seed": diverged, "status": "diverged", "step": 812}
    known = dict(commit="abc", dirty=False, torch="2.13.0", device="cpu", device_name="EPYC", threads=1, container=None)
    return {
        "run_id": run_id,
        "status": status,
        "spec": {"benchmark": {"name": "random_labels"}, "model": {"family": "mlp"}},
        "metrics": RECORDED,
        "environment": known | {"resolved_model": {"family": "mlp"}} | environment,
        "cost": {"wall_seconds": 30.0, "steps_per_second": 500.0, "peak_memory_bytes": 4e8, "num_sessions": 1},
    }


def verdicts(table, exhibit=EXHIBIT):
    return judge(exhibit.CLAIMS, table, exhibit="arms", scale="laptop", expected_seeds=SEEDS)


def compiled(table=None, scale="laptop", **changes):
    table = table or scores()
    given = dict(
        exhibits={"arms": EXHIBIT},
        claims={"arms": verdicts(table)},
        scores={"arms": table},
        figures={"arms": '<?xml version="1.0"?>\n<svg width="9pt" viewBox="0 0 9 9"><g id="a"/><use href="#a"/></svg>'},
        results=[result("r.nap-1"), result("r.ln-2", diverged=3)],
        planned={"arms": PLANNED},
        failures=[{"run_id": "r.head-3", "reason": "MemoryError: 2 < 3 GB", "log": "store/r.head-3/log"}],
    )
    return page.compile(scale, **given | changes)


def row(html, name):
    return re.search(rf'<tr id="claim\.arms\.{name}"[^>]*>.*?</tr>', html, re.S).group()


def text(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_same_inputs_give_the_same_bytes_in_another_process_too(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_report\n"
        "sys.stdout.buffer.write(test_report.compiled().encode())"
    )
    for seed in ("1", "2"):
        words = [sys.executable, "-c", code, str(Path(__file__).parent)]
        environment = {"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(Path(page.__file__).parents[2])}
        done = subprocess.run(words, capture_output=True, check=True, env=environment, cwd=tmp_path)
        assert done.stdout.decode() == compiled()


def test_the_order_in_which_results_are_found_does_not_matter():
    results = [result("r.nap-1"), result("r.ln-2"), result("r.b-4", commit="def")]
    assert compiled(results=results) == compiled(results=results[::-1])


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("holds", "SUPPORTED"), ("fails", "CONTRADICTED"), ("open", "INCONCLUSIVE"), ("unrun", "NOT RUN")],
)
def test_every_claim_stands_with_its_verdict_and_scale_in_the_same_form(name, verdict):
    found = row(compiled(), name)
    assert f"{verdict} at laptop scale" in text(found)
    assert f'<span class="badge {verdict.replace(" ", "_")}">' in found
    assert f"The claim {name}." in found
    assert "reproduced" not in compiled().lower()
    assert f"{verdict} at paper scale" in text(row(compiled(scale="paper"), name))


def test_an_effect_has_its_interval_its_n_and_its_criterion():
    found = text(row(compiled(), "holds"))
    assert "+0.415 [+0.394, +0.436] n = 4" in found
    assert "Superiority: the effect is above 0.15 (accuracy)" in found
    assert all(page.criterion(kind, 0.05) for kind in KINDS)
    assert page.criterion("noninferiority", 0.05) == "Non-inferiority: the effect is above \u22120.05"


def test_many_comparisons_are_counted_and_each_is_listed():
    names = [f"lr={i}" for i in range(5)]
    paired = [Paired(label=n, measure="late_accuracy", better="higher", arm="nap", against="norm_only") for n in names]
    many = Claim(**{**vars(claim("many", "nap", "norm_only")), "measurements": tuple(paired)})
    exhibit = SimpleNamespace(**{**vars(EXHIBIT), "CLAIMS": (many,)})
    html = compiled(exhibits={"arms": exhibit}, claims={"arms": verdicts(scores(), exhibit)})
    found = text(row(html, "many"))
    assert "5 comparisons: 5 supported" in found
    assert all(f"{name}: supported +0.415" in found for name in names)


def test_a_claim_that_the_claims_file_lacks_is_not_run():
    html = compiled(claims={})
    assert all("NOT RUN at laptop scale" in text(row(html, claim.id)) for claim in CLAIMS)
    assert "nap-bench claims --exhibit arms" in html


@pytest.mark.fault("divergence: in the report", outcome="the seed is named, and counts in n")
def test_a_diverged_seed_is_named_wherever_it_matters():
    table = scores(dead={("norm_only", 3)})
    html = compiled(table)
    assert "1 of them diverged" in html
    lost = html[html.index('<h2 id="absent">') :]
    assert "arms: norm only 3 812 r.ln-2" in text(lost)
    assert "norm_only diverged at seed 3" in text(row(html, "holds"))
    numbers = text(html[html.index("<h3>Numbers") :])
    assert "norm only 0.500 [0.500, 0.500] 0.500 3 3" in numbers  # mean, interval, IQM, n, which seed


@pytest.mark.fault(
    "edited: a report is made while runs are missing or have failed",
    outcome="each is named with its reason and the command that makes it",
)
def test_missing_and_failed_runs_are_named_with_reason_and_command():
    html = compiled()
    assert "2 of 4 runs done , 1 missing, 1 failed" in text(html)
    absent = text(html[html.index('<h2 id="absent">') : html.index('<h2 id="cost">')])
    reason = "failed MemoryError: 2 &lt; 3 GB log: store/r.head-3/log nap-bench run r.head-3 for arms"
    assert reason in absent
    assert "missing not run yet nap-bench run r.b-4 for arms" in absent
    assert "nap-bench run --scale paper r.b-4" in compiled(scale="paper")


def test_a_run_that_failed_and_then_succeeded_is_done():
    html = compiled(failures=[{"run_id": "r.nap-1", "reason": "killed", "log": "x"}])
    assert "2 missing, 0 failed" in html
    assert "killed" not in html


def test_nothing_is_fetched_and_no_script_comes_from_elsewhere():
    html = compiled()
    assert not re.search(
        r"\b(src|srcset|action)=|<link|@import|url\(\s*['\"]?http|fetch\(|XMLHttp|sendBeacon|WebSocket", html
    )
    assert "default-src 'none'" in html
    assert html.count("<script") == 2  # the curves as data, and what the page can do
    outside = re.findall(r'<(\w+)[^>]*?href="(?!#)([^"]+)"', html)
    assert outside == [("a", "https://arxiv.org/abs/2407.01800")]


def test_every_link_leads_somewhere_and_ids_are_unique(tmp_path):
    draw("arms", EXHIBIT.PANELS, scores(), tmp_path / "a.svg", tmp_path / "a.png")
    figure = (tmp_path / "a.svg").read_text()
    html = compiled(
        exhibits={"arms": EXHIBIT, "map": EXHIBIT},
        planned={"arms": PLANNED, "map": PLANNED},
        figures={"arms": figure, "map": figure},
    )
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="#([^"]+)"', html)
    assert links and set(links) <= set(ids)


def test_text_is_escaped():
    html = compiled()
    assert "Arms &lt;of&gt; labels" in html
    assert "a &lt; b &amp; <code>c</code>" in html
    assert "<b>MNIST" not in html


@pytest.mark.parametrize("planned", [{}, {"arms": PLANNED}])
def test_a_page_without_any_result_says_what_to_do(planned):
    html = compiled(claims={}, scores={}, figures={}, results=[], planned=planned, failures=[])
    assert "No run of this scale is finished" in html
    for command in ("claims", "score", "figure"):
        assert f"nap-bench {command} --exhibit arms" in html
    assert page.compile("laptop", {}, {}, {}, {}, [], {}).count("No exhibit was asked for") == 1


def test_a_page_where_every_run_failed_names_them_all():
    failures = [{"run_id": run_id, "reason": f"broke {run_id}", "log": "log"} for *_, run_id in PLANNED]
    html = compiled(Scores([]), results=[], failures=failures)
    assert "0 of 4 runs done" in text(html)
    assert all(f"broke {run_id}" in html for *_, run_id in PLANNED)


def test_one_seed_has_a_number_and_no_interval():
    html = compiled(scores(num_seeds=1))
    assert "+0.400 no interval n = 1" in text(row(html, "holds"))
    assert "NOT RUN at laptop scale" in text(row(html, "holds"))
    assert "NaP 0.900 \u2013 0.900 1" in text(html)


def test_cost_counts_a_shared_run_once_in_all():
    html = compiled(exhibits={"arms": EXHIBIT, "map": EXHIBIT}, planned={"arms": PLANNED, "map": PLANNED})
    cost = text(html[html.index('<h2 id="cost">') : html.index('<h2 id="environment">')])
    assert cost.startswith("Cost 60 s in all, each run counted once; 4 runs shared between exhibits")
    assert "NaP 1 4 30 s 500 400 MB \u2013 \u2013 cpu: EPYC, 1 thread" in cost


@pytest.mark.fault(
    "edited: code between runs, so that results come from several commits or uncommitted changes",
    outcome="said in the report",
)
def test_mixed_commits_devices_and_uncommitted_changes_are_said():
    assert "All 2 runs come from one commit, one device" in compiled()
    odd = result("r.ln-2", commit="def", dirty=True, device="cuda", device_name="H200")
    html = text(compiled(results=[result("r.nap-1"), odd]))
    assert "Mixed: the runs come from 2 commits: abc (1 run), def (1 run)." in html
    assert "Mixed: the runs come from 2 devices: EPYC (1 run), H200 (1 run)." in html
    assert "1 run used a working copy with changes" in html
    assert "made outside a git checkout" in text(compiled(results=[result("r.nap-1", commit=None)]))


@pytest.mark.fault("edited: results of plans of before lie beside those of this one", outcome="they are left out")
def test_results_of_other_plans_are_left_out():
    assert compiled() == compiled(results=[result("r.nap-1"), result("r.ln-2", diverged=3), result("r.other-9")])


def test_the_page_appears_whole(tmp_path):
    page.write_page(tmp_path / "reports" / "laptop" / "index.html", compiled())
    assert [p.name for p in (tmp_path / "reports" / "laptop").iterdir()] == ["index.html"]
    assert (tmp_path / "reports" / "laptop" / "index.html").read_text() == compiled()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.5,), ["+0.500"]),
        ((0.0,), ["0"]),
        ((-2.75e-5, 0.003), ["0.000", "+0.003"]),
        ((-0.25, None, math.nan), ["\u22120.250", "\u2013", "\u2013"]),
        ((1234.5,), ["+1234.5"]),
        ((3.2e-5, -1e-6), ["+3.20e\u22125", "\u22121.00e\u22126"]),
        ((2.5e7,), ["+2.50e7"]),
    ],
)
def test_numbers_that_stand_together_share_their_form(values, expected):
    assert tables.amounts(values, signed=True) == expected


@pytest.mark.parametrize("zone", [(0.15, math.inf), (-0.05, math.inf), (-0.05, 0.05)])
def test_a_picture_keeps_the_order_of_what_it_shows(zone):
    drawn, none = tables.pictures(
        [{"low": 0.1, "estimate": 0.2, "high": 0.3}, {"low": None, "estimate": None, "high": None}], zone
    )
    assert none is None
    assert 0 < drawn["zero"] < drawn["low"] < drawn["estimate"] < drawn["high"] < 180
    assert (drawn["from"] < drawn["low"]) == (zone[0] < 0.1)
    assert (drawn["from"] + drawn["wide"] == pytest.approx(180)) == (zone[1] == math.inf)


def test_an_exhibits_own_tables_stand_with_it():
    own = [
        {"title": "Gains <b>", "columns": ("method", "class"), "rows": [["l2", "additive"]], "note": "How to read it."}
    ]
    exhibit = SimpleNamespace(**vars(EXHIBIT), tables=lambda scores: own)
    html = compiled(exhibits={"arms": exhibit})
    assert "Gains &lt;b&gt; How to read it. method class l2 additive" in " ".join(re.sub("<[^>]+>", " ", html).split())
    assert "How to read it." not in compiled(exhibits={"arms": exhibit}, scores={})


def test_what_methods_cost_besides_time_is_the_most_of_their_runs_and_a_dash_where_it_was_not_recorded():
    def with_cost(run_id, **extra):
        made = result(run_id)
        return {**made, "cost": {**made["cost"], **extra}}

    redo = with_cost("r.nap-1", extra_forward_passes=7500, slot_bytes=2_000_000)
    html = compiled(results=[redo, result("r.ln-2")])
    cost = text(html[html.index('<h2 id="cost">') : html.index('<h2 id="environment">')])
    assert "NaP 1 4 30 s 500 400 MB 0.500 2.00 MB cpu" in cost
    assert "norm only 1 4 30 s 500 400 MB \u2013 \u2013 cpu" in cost


def test_what_choosing_hyperparameters_took_is_shown_each_run_counted_once():
    def trials(*ids, **more):
        return [{"hyper": {"lr": 0.1}, "run_id": i, "scores": {"a": 1.0}, "wall_seconds": 60.0, **more} for i in ids]

    section = {"chosen": {"nap": {"lr": 0.1, "coef": 1e-5}}, "by_average_online_accuracy": {"nap": trials("a", "b")}}
    section["by_late_accuracy"] = {"nap": trials("b", "c")}
    html = compiled(tuned={"arms": section, "elsewhere": section})
    cost = text(html[html.index('<h2 id="cost">') : html.index('<h2 id="environment">')])
    assert "arms by average online accuracy, by late accuracy 1 2 3 3.0 min" in cost and "elsewhere" not in cost
    assert "NaP: lr 0.1, coef 1e-05" in cost
    del section["by_late_accuracy"]["nap"][1]["wall_seconds"]
    assert "1 2 3 \u2013" in text(compiled(tuned={"arms": section}))


def test_an_arm_of_the_readers_own_stands_beside_the_arm_it_is_made_of_with_its_paired_difference():
    (table,) = tables.differences(scores(dead={("nap", 3)}), {"nap": "norm_only"}, ["late_accuracy"])
    (row,) = table["rows"]
    assert row[2:6] == ["\u2013", "late_accuracy", "3", "+0.410"]  # seeds 0, 1, 2: 0.40, 0.41, 0.42
    assert row[6].startswith("[+0.3") and row[6].endswith("]")
    assert tables.differences(scores(), {"nap": "baseline"}, ["late_accuracy"]) == []
    assert tables.differences(scores(), {}, ["late_accuracy"]) == []

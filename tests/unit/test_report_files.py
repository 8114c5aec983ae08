"""What the report hands out, what it puts into its page from elsewhere, and that it is made in time at any size."""

from __future__ import annotations

import csv
import json
import math
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import test_report
from test_report import EXHIBIT, PLANNED, recorded, result, scores, verdicts

from nap_bench import session
from nap_bench.report import files, glossary, page, svg
from nap_bench.report.figures import LOOKS, Panel, draw, look
from nap_bench.report.scores import Score, Scores

CURVE = Panel(kind="curve", measure="accuracy", title="Accuracy")
ROWS = Panel(kind="interval", measure="late_accuracy")


def collected(**changes):
    table = scores()
    given = dict(
        exhibits={"arms": EXHIBIT},
        claims={"arms": verdicts(table)},
        scores={"arms": table},
        results=[result("r.nap-1"), result("r.ln-2", diverged=3)],
        planned={"arms": PLANNED},
        failures=[{"run_id": "r.head-3", "reason": "MemoryError: 2 & 3_GB", "log": "store/r.head-3/log"}],
    )
    return page.collect("laptop", **given | changes)


def written(folder, **changes):
    figures = folder / "drawn"
    figures.mkdir(parents=True)
    paths = [figures / f"arms.{suffix}" for suffix in ("svg", "png", "pdf")]
    draw("arms", (CURVE, ROWS), scores(), *paths[:2], path_pdf=paths[2])
    files.write(folder / "laptop", collected(**changes), {"arms": scores()}, figures)
    return {
        str(p.relative_to(folder / "laptop")): p.read_bytes() for p in (folder / "laptop").rglob("*") if p.is_file()
    }


def test_every_file_that_the_page_links_to_is_written_and_is_the_same_again(tmp_path):
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    assert first == second
    linked = {f["href"] for d in files.listed(["arms"], tmp_path) for f in d["files"]}
    assert linked == first.keys()
    html = page.render(
        collected(), {"arms": first["files/figures/arms.svg"].decode()}, files.listed(["arms"], tmp_path)
    )
    assert set(re.findall(r'href="(files/[^"]+|comparison\\.md)"', html)) <= linked


def test_a_crate_is_linked_where_there_is_one(tmp_path):
    assert "nap_bench.crate.zip" not in str([d["files"] for d in files.listed([], tmp_path)])
    (tmp_path / files.CRATE).touch()
    assert "nap_bench.crate.zip" in str([d["files"] for d in files.listed([], tmp_path)])


def test_csv_parquet_and_json_hold_the_same_rows(tmp_path):
    import pyarrow.parquet

    found = written(tmp_path)
    for name in files.TABLES:
        rows = json.loads(found[f"files/{name}.json"])
        table = pyarrow.parquet.read_table(tmp_path / "laptop" / "files" / f"{name}.parquet").to_pylist()
        text = list(csv.DictReader(found[f"files/{name}.csv"].decode().splitlines()))
        assert rows == table
        assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == text
    assert len(json.loads(found["files/runs.json"])) == len(PLANNED)
    (late,) = pyarrow.parquet.read_table(
        tmp_path / "laptop" / "files" / "scores.parquet",
        filters=[("arm", "=", "nap"), ("measure", "=", "late_accuracy"), ("seed", "=", 2)],
    ).to_pylist()
    assert late == {
        "exhibit": "arms", "arm": "nap", "setting": "", "measure": "late_accuracy", "x": None, "seed": 2, "value": 0.92
    }  # fmt: skip


def test_each_run_stands_with_its_command_its_state_and_why(tmp_path):
    rows = {row["run_id"]: row for row in json.loads(written(tmp_path)["files/runs.json"])}
    assert rows["r.nap-1"]["state"] == "done" and rows["r.nap-1"]["wall_seconds"] == 30.0
    assert rows["r.head-3"]["state"] == "failed" and "MemoryError" in rows["r.head-3"]["reason"]
    assert rows["r.ln-2"]["diverged_seeds"] == "3" and rows["r.ln-2"]["used_by"] == "arms: norm only"
    assert rows["r.b-4"]["state"] == "missing" and rows["r.b-4"]["command"] == "nap-bench run r.b-4"
    assert rows["r.b-4"]["wall_seconds"] is None


def test_a_latex_table_escapes_what_latex_would_read():
    assert files.latex("5 % of a_b & c \u2212 d") == r"5 \% of a\_b \& c $-$ d"
    text = files.as_latex([{"a": "x_1", "b": 2}], "A & B.", "tab:x")
    assert r"x\_1 & 2 \\" in text and text.count(r"\begin") == text.count(r"\end") == 2


def test_the_markdown_names_every_claim_every_comparison_and_what_is_missing():
    text = files.markdown(collected(), ["arms"])
    assert text.count("\n| ") >= 21 + 4
    assert "![Arms <of> labels](files/figures/arms.png)" in text
    assert "failed: `r.head-3`: MemoryError: 2 & 3_GB" in text and "missing: `r.b-4`" in text
    assert "| \u2713 supported | The claim holds. |" in text
    for line in re.findall(r"(?m)^\|.*$", text):
        assert line.endswith("|")


def test_nothing_at_all_gives_files_too(tmp_path):
    files.write(tmp_path, page.collect("laptop", {}, {}, {}, [], {}), {}, tmp_path)
    assert (tmp_path / "files" / "runs.csv").read_text() == "nothing\n"
    assert "0 of 0 done" in (tmp_path / "comparison.md").read_text()


def test_a_figure_in_the_page_is_small_keeps_its_arms_and_has_no_colour_that_a_dark_page_cannot_change(tmp_path):
    draw("arms", (CURVE, ROWS), scores(), tmp_path / "a.svg", tmp_path / "a.png")
    text, inliner = (tmp_path / "a.svg").read_text(), svg.Inliner()
    drawn = inliner.put(text, "Figure <one>")
    assert drawn.arms == ("nap", "norm_only")
    assert len(drawn.svg) < 0.6 * len(text)
    assert drawn.svg.count('data-arm="nap"') >= 8  # seeds, mean and band; dots, bar and mark
    assert "NaP, seed 3" in drawn.svg and "NaP: 0.915 [" in drawn.svg
    assert 'aria-label="Figure &lt;one&gt;"' in drawn.svg
    assert not re.search(r"#[0-9a-f]{6}", drawn.svg)
    assert "var(--k0072b2)" in inliner.style() and "--k0072b2:#0072b2" in inliner.style()
    ids = re.findall(r'\sid="([^"]+)"', drawn.svg + inliner.shapes())
    assert set(re.findall(r'(?:href="|url\(#?)#?([^")]+)', drawn.svg)) <= set(ids)
    assert inliner.put(text, "again").svg != drawn.svg  # no id twice in a page


def test_the_legend_of_the_page_replaces_the_one_that_is_cut_off(tmp_path):
    draw("arms", (CURVE,), scores(), tmp_path / "a.svg", tmp_path / "a.png")
    text = (tmp_path / "a.svg").read_text()
    whole = float(re.search(r'viewBox="0 0 \S+ (\S+)"', text)[1])
    top, left = map(float, re.search(r'viewBox="0 (\S+) \S+ (\S+)"', svg.Inliner().put(text, "x").svg).groups())
    assert top > 20 and top + left == pytest.approx(whole)


@pytest.mark.parametrize("color", sorted({found.color for found in LOOKS.values()}))
def test_every_arm_s_colour_can_be_seen_on_a_dark_page(color):
    assert svg.contrast(svg.on_dark(color), svg.DARK_PAGE) >= svg.LEAST_CONTRAST
    assert svg.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_the_glossary_of_the_documentation_is_the_page_s():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert glossary.markdown() in text
    html = test_report.compiled()
    for key, entry in glossary.GLOSSARY.items():
        assert html.count(f'id="metric.{key}"') == 1 and entry.formula and entry.reading


@pytest.mark.parametrize(
    ("measure", "key"),
    [
        ("last_ten_dead_fraction", "dead_fraction"),
        ("average online accuracy", "online_accuracy"),
        ("late_accuracy", "accuracy"),
        ("human_normalised", "human_normalised"),
        ("something_else", None),
    ],
)
def test_a_measure_is_explained_by_what_it_is_made_of(measure, key):
    assert glossary.entry_of(measure) == key


def many(num_runs, num_exhibits=20, num_settings=25, num_seeds=5, num_x=20):
    """A suite of so many runs, each with scores and recorded rates: exhibits of arms in settings."""
    generator = np.random.default_rng(0)
    num_arms = max(1, num_runs // (num_exhibits * num_settings))
    metrics = {f"probe/effective_learning_rate/layer{i}": recorded(1e-3, 0.5) for i in range(5)}
    metrics |= {f"probe/norm/layer{i}": recorded(1.0, 2.0) for i in range(5)}
    metrics |= {name: test_report.RECORDED[name] for name in ("probe/explicit_learning_rate", "probe/dead_fraction")}
    arms = [*("baseline", "layer_norm", "nap"), *(f"m{i}" for i in range(num_arms))][:num_arms]
    exhibits, planned, tables, results = {}, {}, {}, []
    for e in range(num_exhibits):
        name = "fig6_atari57" if e == 0 else f"e{e}"
        exhibits[name] = test_report.SimpleNamespace(**{**vars(EXHIBIT), "CLAIMS": ()})
        rows, planned[name] = [], []
        for arm in arms:
            for s in range(num_settings):
                run_id = f"r.{name}.{arm}.{s}"
                planned[name].append((arm, f"game{s}", run_id))
                results.append({**result(run_id), "metrics": metrics})
                for seed in range(num_seeds):
                    values = generator.uniform(size=num_x + 2)
                    rows += [Score(arm, f"game{s}", "curve", float(x), seed, values[x]) for x in range(num_x)]
                    rows += [
                        Score(arm, f"game{s}", m, None, seed, values[-1]) for m in ("human_normalised", "late_accuracy")
                    ]
        tables[name] = Scores(rows)
    return dict(exhibits=exhibits, claims={}, scores=tables, results=results, planned=planned)


def test_many_runs_have_pages_of_a_size_that_opens():
    given = many(1000, num_exhibits=4, num_settings=25)
    began = time.process_time()
    html = page.compile("laptop", figures={}, **given)
    assert time.process_time() - began < 30
    assert len(html) < 8e6
    assert html.count("<td><code>nap-bench run r.") == 1000
    assert "250 tasks" not in html and "25 tasks of" in html


@pytest.mark.slow
def test_ten_thousand_runs_are_reported_within_a_minute_and_two_gigabytes(tmp_path):
    given = many(10_000)
    assert len(given["results"]) == 10_000
    session._forget_peak_memory()  # of tests before it in this process
    began = time.process_time()
    report = page.collect("laptop", **given)
    html = page.render(report, {})
    files.write(tmp_path, report, given["scores"], tmp_path)
    assert time.process_time() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2e6  # kB
    assert html.count("<td><code>nap-bench run r.") == 10_000
    assert look("m1").label in html and math.isfinite(len(html))

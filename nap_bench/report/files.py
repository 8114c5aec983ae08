"""What a report hands out besides its page: tables as CSV, Parquet, JSON and LaTeX, figures as SVG, PDF and PNG, and Markdown.

    reports/<scale>/index.html      the page
    reports/<scale>/comparison.md   the same verdicts and comparisons, to be read where Markdown is shown
    reports/<scale>/files/          tables and figures; the page links to them

All are made from the data of which the page is made (`page.collect`), and the same data give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_bench.report.figures import look
from nap_bench.store import write_whole

if TYPE_CHECKING:
    from nap_bench.report.scores import Scores

TABLES = {
    "verdicts": "Verdicts on the paper's claims, each measurement",
    "claims": "Verdicts on our own claims, each measurement",
    "methods": "Methods compared: aggregates and places",
    "pairs": "Methods compared: every pair",
    "runs": "Every run: state, command, cost",
}
LATEX = ("verdicts", "methods")
FIGURES = ("svg", "pdf", "png")
Rows = list[dict[str, Any]]


def tables(report: Mapping[str, Any]) -> dict[str, Rows]:
    """Every table as rows of plain values, in a fixed order."""
    return {
        "verdicts": [row for claim in report["paper_rows"] for row in _verdict(claim, report["scale"])],
        "claims": [
            {"exhibit": claim["exhibit"], "claim": claim["id"], "sentence": claim["sentence"], **measured}
            for claim in report["own_rows"]
            for measured in _measured(claim)
        ],
        "methods": [row for group, costs in report["groups"] for row in _methods(group, costs)],
        "pairs": [row for group, _ in report["groups"] for row in _pairs(group)],
        "runs": _runs(report),
    }


def _verdict(claim: Mapping[str, Any], scale: str) -> Rows:
    """The row of a claim of the paper, once for each measurement."""
    common = {"number": claim["number"], "paper": claim["sentence"], "source": claim["source"]}
    common |= {"verdict": claim["verdict"], "scale": scale}
    measured = [
        {**common, "exhibit": one["exhibit"], "claim": one["id"], **row}
        for one in claim["claims"]
        for row in _measured(one)
    ]
    return measured or [{**common, "exhibit": "", "claim": "", **_measured({"measurements": []})[0]}]


def _measured(claim: Mapping[str, Any]) -> Rows:
    fields = ("estimate", "low", "high", "n", "num_diverged", "num_missing")
    return [
        {
            "claim_verdict": claim.get("verdict", ""),
            "kind": claim.get("kind", ""),
            "margin": claim.get("margin"),
            "unit": claim.get("unit", ""),
            "measurement": m.get("label", ""),
            "measurement_verdict": m.get("verdict", ""),
            **{field: m.get(field) for field in fields},
            "method": m.get("method", ""),
        }
        for m in claim["measurements"] or [{}]
    ]


def _methods(group: Mapping[str, Any], costs: Mapping[str, Mapping[str, Any]]) -> Rows:
    made = []
    for arm in group["arms"]:
        place, first, last = group["ranks"][arm]
        row: dict[str, Any] = {"group": group["name"], "method": look(arm).label, "arm": arm, "place": place}
        row |= {
            "place_from": first,
            "place_to": last,
            "num_tasks": len(group["tasks"]),
            "num_seeds": group["num_seeds"],
        }
        for pool, found in group["aggregates"].items():
            name = pool.replace(" ", "_")
            values = (found[arm].estimate, found[arm].low, found[arm].high)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), map(_number, values), strict=True))
        spent = costs[arm]
        row |= {
            "time_per_update_to_baseline": spent["time"],
            "wall_seconds": spent["wall"],
            "peak_memory_bytes": spent["memory"],
        }
        made.append(row)
    return made


def _pairs(group: Mapping[str, Any]) -> Rows:
    return [
        {
            "group": group["name"],
            "a": pair["a"],
            "b": pair["b"],
            "difference": _number(pair["difference"].estimate),
            "low": _number(pair["difference"].low),
            "high": _number(pair["difference"].high),
            "p": _number(pair["p"]),
            "adjusted_p": _number(pair["adjusted"]),
            "probability_of_improvement": _number(pair["improvement"].estimate),
            "probability_low": _number(pair["improvement"].low),
            "probability_high": _number(pair["improvement"].high),
        }
        for pair in group["pairs"]
    ]


def _runs(report: Mapping[str, Any]) -> Rows:
    at = "" if report["scale"] == "laptop" else f" --scale {report['scale']}"
    reasons = {row["run_id"]: row["reason"] for row in report["absent"]}
    found: dict[str, dict[str, Any]] = {}
    for section in report["sections"]:
        for run in section["runs"]:
            row = found.setdefault(
                run["run_id"],
                {
                    "run_id": run["run_id"],
                    "state": run["state"],
                    "reason": reasons.get(run["run_id"], ""),
                    "diverged_seeds": " ".join(map(str, run["diverged"])),
                    "used_by": [],
                    "command": f"nap-bench run{at} {run['run_id']}",
                    **report["spent"].get(
                        run["run_id"], dict.fromkeys(("wall_seconds", "steps_per_second", "peak_memory_bytes"))
                    ),
                },
            )
            row["used_by"].append(f"{section['name']}: {run['place']}")
    return [{**row, "used_by": "; ".join(dict.fromkeys(row["used_by"]))} for row in found.values()]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def as_csv(rows: Rows) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["nothing"], lineterminator="\n")
    table.writeheader()
    table.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def as_latex(rows: Sequence[Mapping[str, str]], caption: str, label: str) -> str:
    """A table for a paper, with booktabs' rules; every text is escaped."""
    columns = list(rows[0]) if rows else ["nothing"]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        rf"\caption{{{latex(caption)}}}",
        rf"\label{{{label}}}",
        r"\centering\small",
    ]
    lines += [r"\begin{tabular}{" + "l" * len(columns) + "}", r"\toprule"]
    lines.append(" & ".join(latex(name) for name in columns) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join(latex(str(row[name])) for name in columns) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\u2212": "$-$",
        "\u00d7": r"$\times$",
    }
    special |= {"\u2013": "--", "\u2018": "`", "\u2019": "'"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def _span(row: Mapping[str, Any], *names: str) -> str:
    """An estimate and its interval as text."""
    from nap_bench.report.tables import estimate_and_span

    text, span = estimate_and_span(*(row[name] for name in names), signed=names[0] == "estimate")
    return f"{text} {span}" if row[names[1]] is not None else text


def _latex_rows(name: str, rows: Rows) -> Rows:
    """A table's rows as few columns of text."""
    if name == "methods":
        return [
            {
                "tasks": row["group"],
                "method": row["method"],
                "place": str(row["place"])
                + (f" ({row['place_from']} to {row['place_to']})" if row["place_from"] < row["place_to"] else ""),
                "IQM": _span(row, "iqm", "iqm_low", "iqm_high"),
                "mean": _span(row, "mean", "mean_low", "mean_high"),
            }
            for row in rows
        ]
    return [
        {
            "no.": row["number"],
            "source": row["source"],
            "verdict": row["verdict"].lower(),
            "measurement": row["measurement"],
            "effect": _span(row, "estimate", "low", "high"),
            "n": row["n"] or "",
        }
        for row in rows
    ]


def markdown(report: Mapping[str, Any], figures: Iterable[str] = ()) -> str:
    """The verdicts and comparisons as Markdown. figures: exhibits of which files/figures/ holds a PNG beside it."""
    from nap_bench.report.page import VERDICTS

    scale, figures = report["scale"], set(figures)
    made = tables(report)
    lines = [f"# What normalize-and-project does at {scale} scale", ""]
    lines += [f"A verdict holds at {scale} scale only. The page with every number: [index.html](index.html).", ""]
    counted = ", ".join(f"{n} {verdict.lower()}" for verdict, n in report["tally"].items())
    lines += [f"Of the paper's {len(report['paper_rows'])} claims on this ground: {counted}.", ""]
    lines += ["| no. | verdict | the paper's claim | effect, 95 % interval | n |", "|---|---|---|---|---|"]
    for claim in report["paper_rows"]:
        measured = [row for row in made["verdicts"] if row["number"] == claim["number"]]
        shown = [row for row in measured if row["estimate"] is not None]
        effect = "<br>".join(_cell(f"{row['measurement']}: {_span(row, 'estimate', 'low', 'high')}") for row in shown)
        ns = (
            " to ".join(dict.fromkeys(str(n) for n in (min(r["n"] for r in shown), max(r["n"] for r in shown))))
            if shown
            else ""
        )
        sign = VERDICTS[claim["verdict"]]
        lines.append(
            f"| {claim['number']} | {sign} {claim['verdict'].lower()} | {_cell(claim['sentence'])} ({claim['source']}) "
            f"| {effect} | {ns} |"
        )
    lines += ["", "## Our own claims", "", "| verdict | claim | exhibit |", "|---|---|---|"]
    lines += [
        f"| {VERDICTS[c['verdict']]} {c['verdict'].lower()} | {_cell(c['sentence'])} | {_cell(c['title'])} |"
        for c in report["own_rows"]
    ]
    lines += ["", "## Methods compared across tasks", "", "Normalised score: (score - chance) / (best - chance).", ""]
    for group, _ in report["groups"]:
        rows = [row for row in made["methods"] if row["group"] == group["name"]]
        lines += [f"### {group['title']}", "", f"{len(group['tasks'])} tasks, {group['num_seeds']} seeds of each.", ""]
        lines += ["| place | could be | method | IQM | mean | optimality gap |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {row['place']} | {row['place_from']} to {row['place_to']} | {_cell(row['method'])} | "
            + " | ".join(_span(row, p, f"{p}_low", f"{p}_high") for p in ("iqm", "mean", "optimality_gap"))
            + " |"
            for row in rows
        ]
        lines.append("")
    if report["matrix"]:
        matrix = report["matrix"]
        heads = [f"{stream}: {part}" for stream, part in matrix["columns"]]
        lines += [
            "## What NaP makes redundant",
            "",
            "| method | " + " | ".join(heads) + " |",
            "|---" * (len(heads) + 1) + "|",
        ]
        for row in matrix["rows"]:
            cells = ["" if c is None else f"{c['kind']} {c['text']}" for c in row["cells"]]
            lines.append(f"| {_cell(row['label'])} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["## Figures", ""]
    for section in report["sections"]:
        if section["name"] in figures:
            lines += [f"### {section['title']}", "", f"![{section['title']}](files/figures/{section['name']}.png)", ""]
    counts = report["counts"]
    lines += [
        "## Runs",
        "",
        f"{counts['done']} of {counts['planned']} done, {counts['missing']} missing, {counts['failed']} failed.",
    ]
    lines += [f"- {row['state']}: `{row['run_id']}`: {row['reason']}" for row in report["absent"]]
    return "\n".join(lines).rstrip("\n") + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


CRATE = "nap_bench.crate.zip"
"""What `nap-bench store crate` writes beside the page."""


def listed(exhibits: Iterable[str], folder: Path) -> list[dict[str, Any]]:
    """What the page in `folder` links to; the crate only if it is there, for it is made from the page."""

    def files(*names: str) -> list[dict[str, Any]]:
        return [{"name": n.rpartition(".")[2].upper(), "href": f"files/{n}", "save": True} for n in names]

    found = [
        {
            "what": what,
            "files": files(*(f"{name}.{s}" for s in ("csv", "parquet", "json", *(("tex",) if name in LATEX else ())))),
        }
        for name, what in TABLES.items()
    ]
    found.append(
        {
            "what": "Scores of every exhibit, arm, setting and seed (Parquet: curves too)",
            "files": files("scores.parquet", "scores.csv"),
        }
    )
    for name in exhibits:
        found.append({"what": f"Figure: {name}", "files": files(*(f"figures/{name}.{suffix}" for suffix in FIGURES))})
    found.append({"what": "This report as Markdown", "files": [{"name": "MD", "href": "comparison.md", "save": True}]})
    crate = [{"name": "RO-Crate", "href": CRATE, "save": True}] if (folder / CRATE).exists() else []
    what = "Everything as one research object (RO-Crate), with checksums: `nap-bench store crate` makes it beside this page"
    return [*found, {"what": what, "files": crate}]


def write(folder: Path, report: Mapping[str, Any], scores: Mapping[str, Scores], figures: Path) -> None:
    """Every file of `listed` and the Markdown, below the folder of the page. figures: where the exhibits' figures are."""
    files = folder / "files"
    for name, rows in tables(report).items():
        write_whole(files / f"{name}.csv", as_csv(rows))
        write_whole(files / f"{name}.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
        write_whole(files / f"{name}.parquet", as_parquet(rows))
        if name in LATEX:
            text = as_latex(_latex_rows(name, rows), f"{TABLES[name]}, {report['scale']} scale.", f"tab:{name}")
            write_whole(files / f"{name}.tex", text)
    table = score_columns(scores)
    write_whole(files / "scores.parquet", _parquet(table))
    scalars = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True) if row[4] is None]
    write_whole(files / "scores.csv", as_csv([{k: v for k, v in row.items() if k != "x"} for row in scalars]))
    drawn = [section["name"] for section in report["sections"] if (figures / f"{section['name']}.svg").exists()]
    (files / "figures").mkdir(parents=True, exist_ok=True)
    for name in drawn:
        for suffix in FIGURES:
            if (figures / f"{name}.{suffix}").exists():
                shutil.copyfile(figures / f"{name}.{suffix}", files / "figures" / f"{name}.{suffix}")
    write_whole(folder / "comparison.md", markdown(report, drawn))


def score_columns(scores: Mapping[str, Scores]) -> dict[str, list[Any]]:
    """Every score as columns: exhibit, arm, setting, measure, x (none for a scalar), seed, value (none where it diverged)."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("exhibit", "arm", "setting", "measure", "x", "seed", "value")
    }
    for exhibit, table in scores.items():
        for row in table.rows():
            values = (exhibit, row.arm, row.setting, row.measure, row.x, row.seed, _number(row.value))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return columns


def as_parquet(rows: Rows) -> bytes:
    return _parquet({key: [row[key] for row in rows] for key in (rows[0] if rows else ())})


def _parquet(columns: Mapping[str, Sequence[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), buffer, compression="zstd")
    return buffer.getvalue()

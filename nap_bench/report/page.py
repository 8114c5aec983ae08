"""One self-contained page per scale: verdicts first, then what they rest on. Same inputs, same bytes: no clock here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_bench.report import claims as judged
from nap_bench.report import comparison, paper_claims, rates, svg, tables
from nap_bench.report.figures import look
from nap_bench.report.glossary import GLOSSARY, entry_of
from nap_bench.store import write_whole

if TYPE_CHECKING:
    from nap_bench.report.scores import Scores

VERDICTS = {
    judged.SUPPORTED: "\u2713",
    judged.CONTRADICTED: "\u2715",
    judged.INCONCLUSIVE: "?",
    judged.NOT_RUN: "\u2013",
}
"""Verdict and the sign that stands beside its colour."""
CAPTIONS = {
    "curve": "Curves: the thick line is the mean over seeds, the band its 95 % t interval, each thin line a seed; a "
    "cross marks where a seed diverged and left the mean.",
    "interval": "Rows: the large mark is the mean, the bar its 95 % t interval, each dot a seed.",
    "curves": "Small plots: a task each, lines as in curves.",
    "pooled": "Pooled rows: seeds and tasks together, the bar a 95 % interval from the bootstrap stratified by task; tasks x seeds "
    "at the right, only tasks of which every arm has results.",
    "profile": "Profiles: the share of seeds and tasks above x, the band a 95 % interval from the bootstrap stratified by task; "
    "where the share is 0 or 1 it has no width, which is no certainty.",
    "map": "Maps: mean paired difference over the seeds that diverged on neither side; bold with a dot where its 95 % "
    "interval excludes zero.",
}
"""How to read each kind of panel."""
CLASSES = {"additive": "=", "redundant": "\u2205", "sub-additive": "\u2212", "complementary": "+", "undecided": "?"}
"""What NaP does to a method's gain, and the sign that stands beside its colour."""
NO_VALUES = "The paper's figure is a picture, and no value of it could be read as a number: ours stand beside what its text says."


def compile(
    scale: str,
    exhibits: Mapping[str, Any],
    claims: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Scores],
    figures: Mapping[str, str],
    results: Sequence[Mapping[str, Any]],
    planned: Mapping[str, Sequence[tables.Place]],
    failures: Iterable[Mapping[str, str]] = (),
    tuned: Mapping[str, Any] | None = None,
    added: Mapping[str, str] | None = None,
    modules: Mapping[str, Any] | None = None,
    scales: Mapping[str, Sequence[str]] | None = None,
    downloads: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as HTML text. Every argument but the first two may be empty: what is missing is named, never left out.

    exhibits: name -> module with TITLE, PAPER, DEVIATIONS, CLAIMS, PANELS.  claims: name -> claims JSON.
    figures: name -> SVG text.  results: run JSONs.  planned: name -> (arm, setting, run_id) of this scale.
    failures: dicts of run_id, reason, log.  tuned: this scale's section of tuned.json.  added: arms that a user's own plan
    adds -> the arm each is made of.  modules: every exhibit there is, and scales: at which it is planned, so that a claim of the
    paper that this page does not test says where it is tested.  downloads: what, files (name, href, save).
    A module may have `tables(scores)`, tables of its own: dicts of title, columns, rows of text, note; and `matrix(scores)`,
    what NaP makes of each method's gain.
    """
    return render(
        collect(scale, exhibits, claims, scores, results, planned, failures, tuned, added, modules, scales),
        figures,
        downloads,
    )


def collect(
    scale: str,
    exhibits: Mapping[str, Any],
    claims: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Scores],
    results: Sequence[Mapping[str, Any]],
    planned: Mapping[str, Sequence[tables.Place]],
    failures: Iterable[Mapping[str, str]] = (),
    tuned: Mapping[str, Any] | None = None,
    added: Mapping[str, str] | None = None,
    modules: Mapping[str, Any] | None = None,
    scales: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """All that the page, its Markdown and its files say, as data. Arguments as those of `compile`."""
    used = {name: {run_id for *_, run_id in planned.get(name, ())} for name in exhibits}
    run_ids = list(dict.fromkeys(run_id for name in exhibits for *_, run_id in planned.get(name, ())))
    shared = {run_id for run_id in run_ids if sum(run_id in ids for ids in used.values()) > 1}
    found = {result["run_id"]: result for result in results}
    done = {run_id: found[run_id] for run_id in run_ids if run_id in found}
    failed = {failure["run_id"]: failure for failure in failures if failure["run_id"] not in done}
    sections = [
        _section(
            name,
            exhibit,
            claims=claims.get(name),
            scores=scores.get(name),
            places=planned.get(name, ()),
            done=done,
            failed=failed,
            shared=shared,
            added=added or {},
        )
        for name, exhibit in exhibits.items()
    ]
    every = {**(modules or {}), **exhibits}
    paper_rows = paper_claims.rows(scale, sections, every, scales or {})
    own_rows = [
        {**claim, "exhibit": section["name"], "title": section["title"]}
        for section in sections
        for claim in section["claims"]
        if claim.get("paper_claim") is None
    ]
    absent = [
        {
            "run_id": run_id,
            "state": "failed" if run_id in failed else "missing",
            "exhibits": [name for name, ids in used.items() if run_id in ids],
            "reason": failed[run_id]["reason"] if run_id in failed else "not run yet",
            "log": failed[run_id].get("log", "") if run_id in failed else "",
        }
        for run_id in sorted(run_ids, key=lambda run_id: (run_id not in failed, run_id))
        if run_id not in done
    ]
    where: dict[str, list[str]] = {}
    for name in exhibits:
        for place in planned.get(name, ()):
            where.setdefault(place[2], []).append(f"{name}: {_place(place)}")
    lost = [
        {"run_id": run_id, "places": where[run_id], **seed}
        for run_id, result in done.items()
        for seed in tables.diverged(result)
    ]
    groups = comparison.compare(scores, scale)
    curves = rates.explorer(planned, done)
    return {
        "scale": scale,
        "paper_rows": paper_rows,
        "own_rows": own_rows,
        "tally": _tally(paper_rows),
        "own_tally": _tally(own_rows),
        "counts": {
            "planned": len(run_ids),
            "done": len(done),
            "missing": sum(row["state"] == "missing" for row in absent),
            "failed": sum(row["state"] == "failed" for row in absent),
            "diverged": len(lost),
            "seeds": sum(len(result["status"]) for result in done.values()),
            "resumed": sum(result["cost"].get("num_sessions", 1) > 1 for result in done.values()),
        },
        "sections": sections,
        "groups": [(group, comparison.cost(group, planned, done)) for group in groups],
        "matrix": _matrix(exhibits, scores),
        "curves": curves,
        "overview": rates.overview(planned, {name: e.TITLE for name, e in exhibits.items()}, curves, done),
        "absent": absent,
        "lost": lost,
        "spent": {
            run_id: {key: result["cost"][key] for key in ("wall_seconds", "steps_per_second", "peak_memory_bytes")}
            for run_id, result in done.items()
        },
        "total": tables.duration(tables.wall_seconds(run_ids, done)),
        "shared": len(shared),
        "environments": tables.environments(done.values()),
        "sweeps": tables.sweeps({name: found for name, found in (tuned or {}).items() if name in exhibits}),
    }


def render(report: Mapping[str, Any], figures: Mapping[str, str], downloads: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of what was collected. figures: name -> SVG text."""
    import jinja2

    inliner = svg.Inliner()
    scale = report["scale"]
    groups = [comparison.drawn(group, costs, inliner) for group, costs in report["groups"]]
    sections = [{**section, **_drawn(section, figures, inliner)} for section in report["sections"]]
    matrix = report["matrix"]
    for section in sections:
        for row in [row for table in section["numbers"] for row in table["rows"]] + section["cost"]:
            inliner.color(row["color"])
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters["marked"] = marked
    page.globals.update(plural=tables.plural, duration=tables.duration, signs=VERDICTS, glossary=GLOSSARY)
    template = page.get_template("page.html")
    shown = {key: value for key, value in report.items() if key not in ("curves", "spent")}
    if matrix:
        rows = [{**row, "color": inliner.color(row["color"])} for row in matrix["rows"]]
        shown["matrix"] = {**matrix, "rows": rows}
    shown |= {
        "sections": [_themed(section) for section in sections],
        "groups": groups,
        "downloads": downloads,
        "order": {verdict: i for i, verdict in enumerate(VERDICTS)},
        "families": [name for name, _ in rates.FAMILIES],
        "rates": _script(report["curves"]) if report["curves"] else "",
        "at": "" if scale == "laptop" else f" --scale {scale}",
    }
    return template.render(**shown, figure_style=inliner.style(), shapes=inliner.shapes())


def _drawn(section: Mapping[str, Any], figures: Mapping[str, str], inliner: svg.Inliner) -> dict[str, Any]:
    if section["name"] not in figures:
        return {"figure": None, "legend": []}
    found = inliner.put(figures[section["name"]], f"Figure of {section['title']}")
    return {"figure": found.svg, "legend": svg.legend(found.arms, inliner)}


def _themed(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section with colours as variables of the page's style."""

    def themed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "color": svg.variable(row["color"])} for row in rows]

    numbers = [{**table, "rows": themed(table["rows"])} for table in section["numbers"]]
    return {**section, "numbers": numbers, "cost": themed(section["cost"])}


def _script(value: Any) -> Any:
    """JSON that may stand in a script element."""
    import markupsafe

    return markupsafe.Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _tally(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS}


def _matrix(exhibits: Mapping[str, Any], scores: Mapping[str, Scores]) -> dict[str, Any] | None:
    """What NaP makes of each method's gain, as the first exhibit that can tell says it."""
    for name, exhibit in exhibits.items():
        if name in scores and hasattr(exhibit, "matrix"):
            found = exhibit.matrix(scores[name])
            if found["rows"]:
                break
    else:
        return None
    rows = []
    for row in found["rows"]:
        cells = []
        for m in row["cells"]:
            if m is None or m["class"] not in CLASSES:
                cells.append(None)
                continue
            text, span = tables.estimate_and_span(m["estimate"], m["low"], m["high"], signed=True)
            cells.append({"kind": m["class"], "sign": CLASSES[m["class"]], "text": text, "span": span})
        rows.append({"label": look(row["method"]).label, "color": look(row["method"]).color, "cells": cells})
    streams = [(stream, len(list(group))) for stream, group in groupby(stream for stream, _ in found["columns"])]
    return {**found, "rows": rows, "streams": streams, "exhibit": name, "title": exhibits[name].TITLE}


def _place(place: tables.Place) -> str:
    return tables.look(place[0]).label + (f", {place[1]}" if place[1] else "")


def _section(
    name: str,
    exhibit: Any,
    *,
    claims: Mapping[str, Any] | None,
    scores: Scores | None,
    places: Sequence[tables.Place],
    done: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, Any],
    shared: set[str],
    added: Mapping[str, str],
) -> dict[str, Any]:
    """All that the page says about one exhibit."""
    claimed = [measurement.measure for claim in exhibit.CLAIMS for measurement in claim.measurements]
    featured = claimed + [panel.measure for panel in exhibit.PANELS]
    own_tables = exhibit.tables(scores) if scores is not None and hasattr(exhibit, "tables") else []
    run_ids = {run_id for *_, run_id in places}
    return {
        "name": name,
        "title": exhibit.TITLE,
        "paper": exhibit.PAPER,
        "deviations": exhibit.DEVIATIONS,
        "has_claims_file": claims is not None,
        "claims": [_claim(claim) for claim in _claims(exhibit, claims)],
        "no_values": NO_VALUES if name.startswith("fig") else "",
        "captions": [CAPTIONS[kind] for kind in CAPTIONS if any(panel.kind == kind for panel in exhibit.PANELS)],
        "numbers": [
            {**table, "entry": entry_of(table["measure"])}
            for table in ([] if scores is None else tables.numbers(scores, featured))
        ],
        "tables": own_tables + ([] if scores is None else tables.differences(scores, added, claimed)),
        "runs": [
            {
                "run_id": place[2],
                "place": _place(place),
                "state": "done" if place[2] in done else "failed" if place[2] in failed else "missing",
                "diverged": [seed["seed"] for seed in tables.diverged(done[place[2]])] if place[2] in done else [],
            }
            for place in places
        ],
        "num_runs": len(run_ids),
        "done": len(run_ids & done.keys()),
        "shared": len(run_ids & shared),
        "cost": tables.cost(places, done),
        "wall": tables.duration(tables.wall_seconds(run_ids, done)),
        "seconds": tables.wall_seconds(run_ids, done),
    }


def _claims(exhibit: Any, file: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Every claim of the exhibit; one that the claims file does not answer is NOT RUN."""
    fields = ("id", "source", "sentence", "kind", "margin", "unit", "paper_claim")
    unanswered = {"verdict": judged.NOT_RUN, "measurements": [], "partial": False, "note": ""}
    asked = {claim.id: {f: getattr(claim, f) for f in fields} | unanswered for claim in exhibit.CLAIMS}
    return list((asked | {claim["id"]: claim for claim in (file["claims"] if file else [])}).values())


def _claim(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim with its criterion in words and each measurement as text and picture."""
    measurements = []
    drawn = tables.pictures(claim["measurements"], judged.zone(claim["kind"], claim["margin"]))
    for m, picture in zip(claim["measurements"], drawn, strict=True):
        effect, interval = tables.estimate_and_span(m["estimate"], m["low"], m["high"], signed=True)
        measurements.append({**m, "picture": picture, "effect": effect, "interval": interval})
    verdicts, ns = [m["verdict"] for m in measurements], sorted({m["n"] for m in measurements})
    return {
        **claim,
        "criterion": criterion(claim["kind"], claim["margin"]),
        "measurements": measurements,
        "split": {verdict: verdicts.count(verdict) for verdict in VERDICTS if verdict in verdicts},
        "n": " to ".join(str(n) for n in dict.fromkeys((*ns[:1], *ns[-1:]))),
    }


def criterion(kind: str, margin: float) -> str:
    """When a claim holds, in words."""
    return {
        "superiority": f"Superiority: the effect is above {margin:g}",
        "noninferiority": f"Non-inferiority: the effect is above {tables.MINUS if margin else ''}{margin:g}",
        "equivalence": f"Equivalence: the effect is within \u00b1{margin:g}",
    }[kind]


def marked(text: str) -> Any:
    """Plain text as HTML, with `code` in backticks."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(text))))


def write_page(path: Path, html: str) -> None:
    """The page, whole or absent."""
    write_whole(path, html)

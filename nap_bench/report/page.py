"""One self-contained page per scale: verdicts first, then what they rest on. Same inputs, same bytes: no clock, no host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_bench.report import claims as judged
from nap_bench.report import tables
from nap_bench.store import write_whole

if TYPE_CHECKING:
    from nap_bench.report.scores import Scores

VERDICTS = {judged.SUPPORTED: "\u2713", judged.CONTRADICTED: "\u2715", judged.INCONCLUSIVE: "?", judged.NOT_RUN: "\u2013"}
"""Verdict and the sign that stands beside its colour."""
CAPTIONS = {
    "curve": "Curves: the thick line is the mean over seeds, the band its 95 % t interval, each thin line a seed; a cross marks "
    "where a seed diverged and left the mean.",
    "interval": "Rows: the large mark is the mean, the bar its 95 % t interval, each dot a seed.",
    "map": "Maps: mean paired difference over the seeds that diverged on neither side; bold with a dot where its 95 % interval "
    "excludes zero.",
}
"""How to read each kind of panel."""


def compile(
    scale: str,
    exhibits: Mapping[str, Any],
    claims: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Scores],
    figures: Mapping[str, str],
    results: Sequence[Mapping[str, Any]],
    planned: Mapping[str, Sequence[tables.Place]],
    failures: Iterable[Mapping[str, str]] = (),
) -> str:
    """The page as HTML text. Every argument but the first two may be empty: what is missing is named, never left out.

    exhibits: name -> module with TITLE, PAPER, DEVIATIONS, CLAIMS, PANELS.  claims: name -> claims JSON.  figures: name -> SVG text.
    results: run JSONs.  planned: name -> (arm, setting, run_id) of this scale.  failures: dicts of run_id, reason, log.
    """
    import jinja2

    done = {result["run_id"]: result for result in sorted(results, key=lambda r: r["run_id"])}
    failed = {failure["run_id"]: failure for failure in failures if failure["run_id"] not in done}
    all_ids = list(dict.fromkeys(run_id for places in planned.values() for _, _, run_id in places))
    shared = {run_id for run_id in all_ids if sum(any(p[2] == run_id for p in places) for places in planned.values()) > 1}
    done = {run_id: done[run_id] for run_id in all_ids if run_id in done}
    sections = [_section(n, e, claims, scores, figures, done, planned.get(n, ()), failed, shared) for n, e in exhibits.items()]
    verdicts = [row for section in sections for row in section["claims"]]
    absent = [
        {
            "run_id": run_id,
            "state": "failed" if run_id in failed else "missing",
            "exhibits": [name for name, places in planned.items() if any(p[2] == run_id for p in places)],
            "reason": failed[run_id]["reason"] if run_id in failed else "not run yet",
            "log": failed[run_id].get("log", "") if run_id in failed else "",
        }
        for run_id in sorted(all_ids, key=lambda r: (r not in failed, r))
        if run_id not in done
    ]
    lost = [
        {"run_id": run_id, "places": sorted({f"{n}: {_place(p)}" for n, ps in planned.items() for p in ps if p[2] == run_id}), **seed}
        for run_id, result in done.items()
        for seed in tables.diverged(result)
    ]
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    page = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["marked"] = marked
    return page.get_template("page.html").render(
        scale=scale,
        at="" if scale == "laptop" else f" --scale {scale}",
        signs=VERDICTS,
        tally={verdict: sum(row["verdict"] == verdict for row in verdicts) for verdict in VERDICTS},
        counts={
            "planned": len(all_ids),
            "done": len(done),
            "missing": sum(row["state"] == "missing" for row in absent),
            "failed": sum(row["state"] == "failed" for row in absent),
            "diverged": len(lost),
            "seeds": sum(len(result["status"]) for result in done.values()),
        },
        sections=sections,
        absent=absent,
        lost=lost,
        total=tables.duration(tables.wall_seconds(all_ids, done)),
        shared=len(shared),
        environments=tables.environments(done.values()),
        plural=tables.plural,
    )


def _place(place: tables.Place) -> str:
    return tables.look(place[0]).label + (f", {place[1]}" if place[1] else "")


def _section(name, exhibit, claims, scores, figures, done, places, failed, shared) -> dict[str, Any]:
    """All that the page says about one exhibit."""
    featured = [m.measure for claim in exhibit.CLAIMS for m in claim.measurements] + [panel.measure for panel in exhibit.PANELS]
    return {
        "name": name,
        "title": exhibit.TITLE,
        "paper": exhibit.PAPER,
        "deviations": exhibit.DEVIATIONS,
        "has_claims_file": name in claims,
        "claims": [_claim(name, claim) for claim in _claims(exhibit, claims.get(name))],
        "figure": inline_svg(figures[name], name, f"Figure of {exhibit.TITLE}") if name in figures else None,
        "captions": [text for kind, text in CAPTIONS.items() if any(panel.kind == kind for panel in exhibit.PANELS)],
        "numbers": tables.numbers(scores[name], featured) if name in scores else None,
        "runs": [
            {
                "run_id": run_id,
                "place": _place((arm, setting, run_id)),
                "state": "done" if run_id in done else "failed" if run_id in failed else "missing",
                "diverged": [seed["seed"] for seed in tables.diverged(done[run_id])] if run_id in done else [],
            }
            for arm, setting, run_id in places
        ],
        "cost": tables.cost(places, done),
        "num_runs": len({place[2] for place in places}),
        "done": len({place[2] for place in places} & done.keys()),
        "wall": tables.duration(tables.wall_seconds((p[2] for p in places), done)),
        "shared": len({p[2] for p in places} & shared),
    }


def _claims(exhibit: Any, file: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Every claim of the exhibit; one that the claims file does not answer is NOT RUN."""
    fields = ("id", "source", "sentence", "kind", "margin", "unit")
    unanswered = {"verdict": judged.NOT_RUN, "measurements": [], "partial": False, "note": ""}
    asked = {claim.id: {f: getattr(claim, f) for f in fields} | unanswered for claim in exhibit.CLAIMS}
    return list((asked | {claim["id"]: claim for claim in (file["claims"] if file else [])}).values())


def _claim(exhibit: str, claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim with its criterion in words and each measurement as text and picture."""
    drawn = tables.pictures(claim["measurements"], judged.zone(claim["kind"], claim["margin"]))
    effects = [tables.estimate_and_span(m["estimate"], m["low"], m["high"], signed=True) for m in claim["measurements"]]
    return {
        **claim,
        "exhibit": exhibit,
        "criterion": criterion(claim["kind"], claim["margin"]),
        "measurements": [m | {"picture": p, "effect": e, "interval": i} for m, p, (e, i) in zip(claim["measurements"], drawn, effects, strict=True)],
        "n": " to ".join(str(n) for n in sorted({min(ns), max(ns)})) if (ns := [m["n"] for m in claim["measurements"]]) else "0",
        "split": {v: n for v in VERDICTS if (n := sum(m["verdict"] == v for m in claim["measurements"]))},
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


def inline_svg(svg: str, prefix: str, title: str) -> Any:
    """An SVG file as a part of a page: no prolog, no fixed size, a name for screen readers, and ids that no other figure has."""
    import markupsafe

    body = svg[svg.index("<svg") :]
    body = re.sub(r'\bid="', f'id="{prefix}.', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}.", body)
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return markupsafe.Markup(f'{head} role="img" aria-label="{markupsafe.escape(title)}">{rest}')


def write_page(path: Path, html: str) -> None:
    """The page, whole or absent."""
    write_whole(path, html)

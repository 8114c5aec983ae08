"""Which methods add to NaP, which does it make redundant, and is that due to the norm or to the projection?

Per method m, stream and seed, with a(X) the average online accuracy of arm X:

    alone    g0 = a(m) - a(baseline)
    on LN    gL = a(m+layer_norm) - a(layer_norm)
    on NaP   gN = a(m+nap) - a(nap)

What NaP changes about a method is gN - g0 = (gL - g0) + (gN - gL): the norm's part and, given the norm, the projection's. Each of
the three is classed by its 95 % interval and the margin below, fixed before the runs:

    additive        the whole interval lies within +-MARGIN: the gain is the same
    redundant       the whole interval lies below -MARGIN, and what is left of the gain is within +-MARGIN: it is gone
    sub-additive    the whole interval lies below -MARGIN otherwise: the gain shrinks
    complementary   the whole interval lies above +MARGIN: the gain grows
    undecided       otherwise

A norm as a method has no gain on LayerNorm, for a network has one norm, and stands in LayerNorm's place under NaP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from nap_bench.experiments import fig5_continual as fig5
from nap_bench.experiments.base import Entry, Labelled, curve, scalar
from nap_bench.report.claims import CONTRADICTED, SUPPORTED, Claim, Contrast, Measurement, judge
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score, Scores
from nap_bench.report.tables import DASH, estimate_and_span

TITLE = "What is additive to NaP, and what it makes redundant"
PAPER = (
    "Section 5.1: with NaP the gaps between methods shrink, which says that the methods' own effects mostly vanish on top of it; "
    "ReDo is named as one that gains least, because its reset ignores normalisation. The paper does not run the methods "
    "with LayerNorm alone, so it cannot tell what the norm does from what the projection does."
)
DEVIATIONS = (
    "Not in the paper: an exhibit of ours. Runs of the first stream, re-drawn labels, are those of Fig. 5 here.",
    "Second stream, true labels: class-incremental digits at laptop scale (two classes more every 20 updates, a new order of "
    "classes after ten), class-incremental CIFAR-10 at the others.",
    "Hyperparameters are those tuned on re-drawn labels, for a method alone, with LayerNorm and with NaP each for itself; on "
    "the second stream they are not tuned anew.",
    "Besides the paper's methods: continual backprop, CReLU, the resets (which are told of new tasks) and the other norms. The "
    "verdicts on these stand apart. At laptop scale they run on the first stream only, for time.",
    "In training BatchNorm normalises with the statistics of the very batch whose accuracy, before the update, is the measure; "
    "evaluation at a task's end uses running statistics.",
    "One-step plasticity and the angle by which an update turns a layer are recorded on the second stream, of the last update of "
    "a task.",
    "NaP here is projection and the decay of scale and offset; LayerNorm's scale and offset are free. So the projection's part "
    "holds the decay's.",
    "A diverged seed counts as accuracy 0 in every difference.",
)

MARGIN = 0.02
STREAMS = ("random_labels", "class_incremental")
PAPERS = (*fig5.METHODS, *fig5.WITH_LAYER_NORM, *fig5.WITH_NAP)
OTHER = (*fig5.MORE_METHODS, *fig5.MORE_WITH_LAYER_NORM, *fig5.MORE_WITH_NAP)
ARMS = (*PAPERS, *OTHER)
OWN = tuple(method for method in fig5.METHODS if method != "baseline")
MEASURED = ("one_step_plasticity", "rotation_angle")
CLASS_INCREMENTAL = {
    "laptop": dict(
        dataset="digits", num_examples=1500, num_tasks=50, steps_per_task=20, batch_size=16, eval_examples=128
    ),
    "workstation": dict(
        dataset="cifar10", num_examples=20000, num_tasks=25, steps_per_task=2000, batch_size=128, eval_examples=1024
    ),
    "paper": dict(
        dataset="cifar10", num_examples=50000, num_tasks=50, steps_per_task=20000, batch_size=128, eval_examples=2048
    ),
}


def runs(scale: str) -> list[Entry]:
    from nap_bench.benchmarks import ClassIncremental
    from nap_bench.spec import Part

    relabelled = [fig5.entry(scale, arm, setting="random_labels") for arm in ARMS]
    stream = Part.of(ClassIncremental(**CLASS_INCREMENTAL[scale], metrics=MEASURED))
    return relabelled + [
        Entry(arm, "class_incremental", dataclasses.replace(run, benchmark=stream))
        for arm, _, run in relabelled
        if arm in PAPERS or scale in fig5.LARGER
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        steps, online_TS = labelled.series("online/accuracy")
        yield from curve(labelled, "online_accuracy", steps / labelled.params["steps_per_task"], online_TS)
        yield from scalar(labelled, "average_online_accuracy", online_TS.mean(axis=0))
        for measure in MEASURED if labelled.setting == "class_incremental" else ():
            yield from scalar(labelled, f"average_{measure}", labelled.series(f"probe/{measure}")[1].mean(axis=0))


def _words(method: str) -> str:
    return method.replace("_", " ")


def _contrast(label: str, arms: tuple[str, ...], against: tuple[str, ...], stream: str) -> Contrast:
    return Contrast(
        label=label,
        measure="average_online_accuracy",
        better="higher",
        arms=arms,
        against=against,
        setting=stream,
        if_diverged=0.0,
    )


def gains(method: str, stream: str) -> dict[str, Measurement]:
    """What a method adds: alone, on LayerNorm (where the two can be together), on NaP."""
    places = {"alone": "", "on LayerNorm": "layer_norm", "on NaP": "nap"}
    return {
        where: _contrast(f"{_words(method)} {where}", (arm,), (norm or "baseline",), stream)
        for where, norm in places.items()
        if (arm := fig5.combined(method, norm) if norm else method) in fig5.STACKS
    }


def parts(method: str, stream: str) -> dict[str, Measurement]:
    """What NaP changes about a method's gain; and the norm's part of it and the projection's, where there are such."""
    on_norm, on_nap = (fig5.combined(method, norm) for norm in ("layer_norm", "nap"))
    found = {"with NaP": _contrast(f"{_words(method)}: with NaP", (on_nap, "baseline"), ("nap", method), stream)}
    if on_norm in fig5.STACKS:
        found["norm"] = _contrast(
            f"{_words(method)}: the norm's part", (on_norm, "baseline"), ("layer_norm", method), stream
        )
        found["projection"] = _contrast(
            f"{_words(method)}: the projection's part", (on_nap, "layer_norm"), ("nap", on_norm), stream
        )
    return found


def _shrinks(method: str, stream: str) -> Contrast:
    """By how much a method's gain shrinks: the first of `parts` with its sign turned."""
    with_nap = parts(method, stream)["with NaP"]
    label = f"{_words(method)}: gain alone - gain on NaP"
    return dataclasses.replace(with_nap, label=label, arms=with_nap.against, against=with_nap.arms)


def _judged(measurements: dict[str, Measurement], scores: Scores) -> dict[str, dict]:
    """The measurements of one equivalence claim of margin MARGIN, judged, under their own names."""
    claim = Claim(
        id="additive",
        source="",
        sentence="",
        kind="equivalence",
        margin=MARGIN,
        unit="average online accuracy",
        measurements=tuple(measurements.values()),
    )
    judged = judge([claim], scores, exhibit="interactions", scale="any", expected_seeds=fig5.SEEDS)
    return dict(zip(measurements, judged["claims"][0]["measurements"], strict=True))


def classed(measured: dict, left: dict) -> str:
    """The class of a change of a gain, by the rule above; a dash where there is no interval.

    left: the gain after the change. Both are judged for equivalence with 0.
    """
    if measured["low"] is None or left["low"] is None:
        return DASH
    shrunk = "redundant" if left["verdict"] == SUPPORTED else "sub-additive"
    changed = "complementary" if measured["estimate"] > 0 else shrunk
    return {SUPPORTED: "additive", CONTRADICTED: changed}.get(measured["verdict"], "undecided")


def _span(measured: dict) -> str:
    return " ".join(estimate_and_span(*(measured[k] for k in ("estimate", "low", "high")), signed=True))


LEFT = {"with NaP": "on NaP", "norm": "on LayerNorm", "projection": "on NaP"}
"""What changes a method's gain -> the gain that is left after it."""


def _measured(method: str, stream: str, scores: Scores) -> tuple[dict[str, dict], dict[str, dict]]:
    """The judged gains of a method, and the judged changes of them, each with its class."""
    gained = _judged(gains(method, stream), scores)
    changed = _judged(parts(method, stream), scores)
    return gained, {p: {**m, "class": classed(m, gained[LEFT[p]])} for p, m in changed.items()}


def _methods(stream: str, scores: Scores) -> tuple[str, ...]:
    return (*OWN, *(method for method in fig5.MORE_METHODS if scores.has_cell(method, stream)))


def matrix(scores: Scores) -> dict:
    """For the report: every method's class with NaP, on each stream, and which part of NaP does it.

    Rows of a method: (stream, part) -> class, estimate, low and high of the change of its gain, or None.
    """
    columns = [(stream, part) for stream in STREAMS for part in LEFT if any(scores.has_cell(a, stream) for a in OWN)]
    changed = {
        (method, stream): _measured(method, stream, scores)[1]
        for stream in dict.fromkeys(stream for stream, _ in columns)
        for method in _methods(stream, scores)
    }
    names = {"with NaP": "with NaP", "norm": "the norm's part", "projection": "the projection's part"}
    return {
        "margin": MARGIN,
        "columns": [(stream.replace("_", " "), names[part]) for stream, part in columns],
        "rows": [
            {"method": method, "cells": [changed.get((method, stream), {}).get(part) for stream, part in columns]}
            for method in dict.fromkeys(method for method, _ in changed)
        ],
    }


def tables(scores: Scores) -> list[dict]:
    """For the report: per stream and method its three gains, and how NaP, the norm and the projection change them."""
    made = []
    for stream in STREAMS:
        rows = []
        for method in _methods(stream, scores):
            gained, changed = _measured(method, stream, scores)
            row = [_words(method)]
            row += [_span(gained[where]) if where in gained else DASH for where in ("alone", "on LayerNorm", "on NaP")]
            row += [f"{changed[p]['class']} {_span(changed[p])}" if p in changed else DASH for p in LEFT]
            rows.append(row)
        made.append(
            {
                "title": f"Gains in average online accuracy on {stream.replace('_', ' ')}, and how they change",
                "columns": ("method", "alone", "on LN", "on NaP", "with NaP it is", "norm's part", "projection's part"),
                "rows": rows,
                "note": f"Means and 95 % intervals. Additive: the gain changes by less than {MARGIN:g}; redundant: it falls "
                "by more, to less than that; sub-additive: it falls by more and something is left (or it does harm); "
                "complementary: it rises by more; undecided: the interval crosses such a border. Norm's part: gain on "
                "LayerNorm less the gain alone; projection's part: gain on NaP less that on LayerNorm; together: with NaP. A norm "
                "under NaP stands in LayerNorm's place.",
            }
        )
    return made


_UNIT = "average online accuracy"
_STREAMS = tuple(zip(STREAMS, ("re-drawn labels", "true labels of more and more classes"), strict=True))
_NOT_HERE = " (not at laptop scale)"
_METHODS = (("", "method", OWN), ("_others", "method besides the paper's", fig5.MORE_METHODS))
CLAIMS = tuple(
    claim
    for suffix, method_words, methods in _METHODS
    for stream, stream_words in _STREAMS
    for words in (stream_words + _NOT_HERE * (methods is not OWN and stream != STREAMS[0]),)
    for claim in (
        Claim(
            id=f"gains_shrink_on_nap_on_{stream}{suffix}",
            source="Sec. 5.1 (ours)",
            sentence=f"What each {method_words} gains shrinks on top of NaP, on {words}.",
            kind="superiority",
            margin=MARGIN,
            unit=_UNIT,
            measurements=tuple(_shrinks(method, stream) for method in methods),
        ),
        Claim(
            id=f"methods_add_nothing_to_nap_on_{stream}{suffix}",
            source="Sec. 5.1 (ours)",
            sentence=f"On top of NaP no {method_words} changes the accuracy, on {words}.",
            kind="equivalence",
            margin=MARGIN,
            unit=_UNIT,
            measurements=tuple(gains(method, stream)["on NaP"] for method in methods),
        ),
        Claim(
            id=f"the_norm_not_the_projection_interacts_on_{stream}{suffix}",
            source="Sec. 5.1 (ours)",
            sentence=f"Given LayerNorm, the projection changes the gain of no {method_words}, on {words}.",
            kind="equivalence",
            margin=MARGIN,
            unit=_UNIT,
            measurements=tuple(
                parts(method, stream)["projection"] for method in methods if method not in fig5.OTHER_NORMS
            ),
        ),
    )
)
PANELS = (
    *(
        Panel(
            kind="interval",
            measure="average_online_accuracy",
            title=f"{title}, {which}",
            xlabel="average online accuracy",
            arms=arms,
            setting=stream,
            scales=fig5.LARGER if arms is not PAPERS and stream != STREAMS[0] else (),
        )
        for which, arms in (("the paper's methods", PAPERS), ("others", ("baseline", "layer_norm", "nap", *OTHER)))
        for stream, title in zip(STREAMS, ("Re-drawn labels", "Class-incremental"), strict=True)
    ),
    *(
        Panel(
            kind="interval",
            measure=f"average_{measure}",
            title=f"{title}, class-incremental",
            xlabel=xlabel,
            arms=("layer_norm", *fig5.METHODS, *fig5.WITH_NAP),
            setting="class_incremental",
            logx=logx,
        )
        for measure, title, xlabel, logx in (
            ("one_step_plasticity", "One-step plasticity", "share of the batch's loss that its update takes", False),
            ("rotation_angle", "Turn of a layer by an update", "radians, hidden layers", True),
        )
    ),
)

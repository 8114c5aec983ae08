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
    "NaP here is projection and the decay of scale and offset; LayerNorm's scale and offset are free. So the projection's part "
    "holds the decay's.",
    "A diverged seed counts as accuracy 0 in every difference.",
)

MARGIN = 0.02
STREAMS = ("random_labels", "class_incremental")
ARMS = (*fig5.METHODS, *fig5.WITH_LAYER_NORM, *fig5.WITH_NAP)
OWN = tuple(method for method in fig5.METHODS if method != "baseline")
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
    stream = Part.of(ClassIncremental(**CLASS_INCREMENTAL[scale]))
    return relabelled + [
        Entry(arm, "class_incremental", dataclasses.replace(run, benchmark=stream)) for arm, _, run in relabelled
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        steps, online_TS = labelled.series("online/accuracy")
        yield from curve(labelled, "online_accuracy", steps / labelled.params["steps_per_task"], online_TS)
        yield from scalar(labelled, "average_online_accuracy", online_TS.mean(axis=0))


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


def gains(method: str, stream: str) -> tuple[Measurement, ...]:
    """What a method adds: alone, on top of LayerNorm, on top of NaP."""
    return tuple(
        _contrast(
            f"{_words(method)} {where}",
            (fig5.combined(method, norm) if norm else method,),
            (norm or "baseline",),
            stream,
        )
        for where, norm in (("alone", ""), ("on LayerNorm", "layer_norm"), ("on NaP", "nap"))
    )


def parts(method: str, stream: str) -> tuple[Measurement, ...]:
    """What NaP changes about a method's gain, the norm's part of it and the projection's."""
    on_norm, on_nap = (fig5.combined(method, norm) for norm in ("layer_norm", "nap"))
    return (
        _contrast(f"{_words(method)}: with NaP", (on_nap, "baseline"), ("nap", method), stream),
        _contrast(f"{_words(method)}: the norm's part", (on_norm, "baseline"), ("layer_norm", method), stream),
        _contrast(f"{_words(method)}: the projection's part", (on_nap, "layer_norm"), ("nap", on_norm), stream),
    )


def _shrinks(method: str, stream: str) -> Contrast:
    """By how much a method's gain shrinks: the first of `parts` with its sign turned."""
    with_nap = parts(method, stream)[0]
    label = f"{_words(method)}: gain alone - gain on NaP"
    return dataclasses.replace(with_nap, label=label, arms=with_nap.against, against=with_nap.arms)


def _judged(measurements: Iterable[Measurement], scores: Scores) -> list[dict]:
    """The measurements of one equivalence claim of margin MARGIN, judged."""
    claim = Claim(
        id="additive",
        source="",
        sentence="",
        kind="equivalence",
        margin=MARGIN,
        unit="average online accuracy",
        measurements=tuple(measurements),
    )
    judged = judge([claim], scores, exhibit="interactions", scale="any", expected_seeds=fig5.SEEDS)
    return judged["claims"][0]["measurements"]


def classed(measured: dict, left: dict) -> str:
    """The class of a change of a gain, by the rule above; a dash where there is no interval.

    left: the gain after the change. Both are judged for equivalence with 0.
    """
    if measured["low"] is None or left["low"] is None:
        return DASH
    shrunk = "redundant" if left["verdict"] == SUPPORTED else "sub-additive"
    changed = "complementary" if measured["estimate"] > 0 else shrunk
    return {SUPPORTED: "additive", CONTRADICTED: changed}.get(measured["verdict"], "undecided")


def tables(scores: Scores) -> list[dict]:
    """For the report: per stream and method its three gains, and how NaP, the norm and the projection change them."""
    made = []
    for stream in STREAMS:
        rows = []
        for method in OWN:
            row = [_words(method)]
            _, on_norm, on_nap = gained = _judged(gains(method, stream), scores)
            for measured in gained:
                row.append(
                    " ".join(estimate_and_span(*(measured[k] for k in ("estimate", "low", "high")), signed=True))
                )
            for measured, left in zip(_judged(parts(method, stream), scores), (on_nap, on_norm, on_nap), strict=True):
                span = estimate_and_span(*(measured[k] for k in ("estimate", "low", "high")), signed=True)
                row.append(f"{classed(measured, left)} {' '.join(span)}")
            rows.append(row)
        made.append(
            {
                "title": f"Gains in average online accuracy on {stream.replace('_', ' ')}, and how they change",
                "columns": ("method", "alone", "on LN", "on NaP", "with NaP it is", "norm's part", "projection's part"),
                "rows": rows,
                "note": f"Means and 95 % intervals. Additive: the gain changes by less than {MARGIN:g}; redundant: it falls "
                "by more, to less than that; sub-additive: it falls by more and something is left (or it does harm); "
                "complementary: it rises by more; undecided: the interval crosses such a border. Norm's part: gain on "
                "LayerNorm less the gain alone; projection's part: gain on NaP less that on LayerNorm; together: with NaP.",
            }
        )
    return made


_UNIT = "average online accuracy"
CLAIMS = tuple(
    claim
    for stream, words in zip(STREAMS, ("re-drawn labels", "true labels of more and more classes"), strict=True)
    for claim in (
        Claim(
            id=f"gains_shrink_on_nap_on_{stream}",
            source="Sec. 5.1 (ours)",
            sentence=f"What each method gains shrinks on top of NaP, on {words}.",
            kind="superiority",
            margin=MARGIN,
            unit=_UNIT,
            measurements=tuple(_shrinks(method, stream) for method in OWN),
        ),
        Claim(
            id=f"methods_add_nothing_to_nap_on_{stream}",
            source="Sec. 5.1 (ours)",
            sentence=f"On top of NaP no method changes the accuracy, on {words}.",
            kind="equivalence",
            margin=MARGIN,
            unit=_UNIT,
            measurements=tuple(gains(method, stream)[2] for method in OWN),
        ),
        Claim(
            id=f"the_norm_not_the_projection_interacts_on_{stream}",
            source="Sec. 5.1 (ours)",
            sentence=f"Given LayerNorm, the projection changes no method's gain, on {words}.",
            kind="equivalence",
            margin=MARGIN,
            unit=_UNIT,
            measurements=tuple(parts(method, stream)[2] for method in OWN),
        ),
    )
)
PANELS = tuple(
    Panel(
        kind="interval",
        measure="average_online_accuracy",
        title=title,
        xlabel="average online accuracy",
        arms=ARMS,
        setting=stream,
    )
    for stream, title in zip(STREAMS, ("Re-drawn labels", "Class-incremental, true labels"), strict=True)
)

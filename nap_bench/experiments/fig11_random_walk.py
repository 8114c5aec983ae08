"""Figure 11: do negative coordinates of a random walk accumulate? {gradients, sign updates} x {no norm, norm}."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Random walks: does a norm revive ReLU units?"
PAPER = (
    "Appendix C.4, Fig. 11: a vector v takes 1000 steps along random gradients, and its negative coordinates, the dead "
    "units, are counted. Without a norm, v += max(v, 0) z or its sign, they accumulate. Where the gradient passes "
    "through a norm, v += z J with J the Jacobian of max(v / ||v||, 0), they accumulate more slowly under gradient "
    "descent and do not accumulate under sign updates (RMSProp)."
)
DEVIATIONS = (
    "Dimension, initial vector and repeats are ours (not given): 100 coordinates and, as a check, 10; v and z from "
    "N(0, I); at laptop scale 32 seeds of 8 walks each, a seed's value being the mean of its walks. The other scales "
    "have more.",
    "The norm divides by ||v||, without the factor sqrt(d), as in the paper's Prop. 1, and does not centre; Fig. 12 is "
    "about centring.",
    "Two controls are ours. 'none as gradient' is v += z J with J the Jacobian of max(v, 0): the rule as printed "
    "multiplies by max(v, 0), which no gradient does. 'rms norm sqrt d' takes steps sqrt(d) times as long, as if the "
    "norm had its sqrt(d): a norm without it makes steps shorter by ||v||, and that alone slows any walk.",
    "Everything is float64, and z J is computed in closed form.",
)

ARMS = {"none": "none", "none_as_gradient": "identity", "rms_norm": "rms"}
"""Arm -> norm of the benchmark."""
SIZES = {
    "laptop": dict(dims=(100, 10), num_walks=8, seeds=tuple(range(32))),
    "workstation": dict(dims=(100, 10, 1000), num_walks=16, seeds=tuple(range(64))),
    "paper": dict(dims=(100, 10, 1000), num_walks=64, seeds=tuple(range(64))),
}


def entry(scale: str, arm: str, norm: str, rule: str, dim: int, step_size: float = 1.0) -> Entry:
    """One run of random walks; Fig. 12 makes its runs here too."""
    from nap_bench.benchmarks import RandomWalk
    from nap_bench.optimizers import SGD
    from nap_bench.schedules import Constant
    from nap_bench.spec import ModelSpec

    size = SIZES[scale]
    run = make_run(
        benchmark=RandomWalk(norm=norm, rule=rule, dim=dim, num_walks=size["num_walks"]),
        model=ModelSpec(family="none", size=()),
        stack="baseline",
        optimizer=SGD(),
        schedule=Constant(step_size),
        seeds=size["seeds"],
    )
    return Entry(arm, f"{rule} d={dim}", dataclasses.replace(run, precision="fp64"))


def runs(scale: str) -> list[Entry]:
    planned = []
    for dim in SIZES[scale]["dims"]:
        planned += [entry(scale, arm, norm, "gd", dim) for arm, norm in ARMS.items()]
        planned.append(entry(scale, "rms_norm_sqrt_d", "rms", "gd", dim, step_size=math.sqrt(dim)))
        planned += [entry(scale, arm, ARMS[arm], "sign", dim) for arm in ("none", "rms_norm")]
    return planned


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        yield from scored(labelled, drawn=("negative_fraction",), others=("negative_spread",))
        yield from scalar(labelled, "start_negative_fraction", labelled.series("probe/negative_fraction")[1][0])


def scored(labelled: Labelled, *, drawn: Iterable[str], others: Iterable[str]) -> Iterator[Score]:
    """Quantities at the last step; the drawn ones over steps too."""
    for name in (*drawn, *others):
        steps, values_TS = labelled.series(f"probe/{name}")
        yield from scalar(labelled, f"end_{name}", values_TS[-1])
        if name in drawn:
            yield from curve(labelled, name, steps, values_TS)


def _fewer(arm: str, against: str, setting: str, label: str) -> Paired:
    return Paired(
        label=label,
        measure="end_negative_fraction",
        better="lower",
        arm=arm,
        against=against,
        setting=setting,
        if_diverged=1.0,
    )


def _no_more_than_at_the_start(dim: int) -> Paired:
    return Paired(
        label=f"sign updates, d={dim}: start - end",
        measure="end_negative_fraction",
        against_measure="start_negative_fraction",
        better="lower",
        arm="rms_norm",
        against="rms_norm",
        setting=f"sign d={dim}",
        if_diverged=1.0,
    )


UNIT = "fraction of negative coordinates, step 1000"
CLAIMS = (
    Claim(
        id="a_norm_slows_the_accumulation_of_dead_units",
        source="Sec. C.4, Fig. 11",
        sentence="In the random-walk model a norm slows the accumulation of dead units under gradient descent and "
        "stops it under sign updates: fewer coordinates are negative at the end.",
        kind="superiority",
        margin=0.05,
        unit=UNIT,
        measurements=(
            _fewer("rms_norm", "none", "gd d=100", "gradient descent: no norm - norm"),
            _fewer("rms_norm", "none", "sign d=100", "sign updates: no norm - norm"),
        ),
        paper_claim=19,
    ),
    Claim(
        id="with_a_norm_sign_updates_accumulate_none",
        source="Sec. C.4, Fig. 11",
        sentence="With a norm, sign updates accumulate no dead units at all: no more coordinates are negative at the "
        "end than at the start.",
        kind="noninferiority",
        margin=0.05,
        unit=UNIT,
        measurements=(_no_more_than_at_the_start(100),),
        paper_claim=19,
    ),
    Claim(
        id="nor_do_they_in_ten_dimensions",
        source="Sec. C.4 (ours)",
        sentence="The same in ten dimensions, where all coordinates may turn negative together, and then none ever "
        "moves again.",
        kind="noninferiority",
        margin=0.05,
        unit=UNIT,
        measurements=(_no_more_than_at_the_start(10),),
    ),
    Claim(
        id="under_gradient_descent_it_is_more_than_shorter_steps",
        source="Sec. C.4 (ours)",
        sentence="Under gradient descent a norm does more than shorten the steps: it slows accumulation also where "
        "steps with and without it are equally long at first.",
        kind="superiority",
        margin=0.05,
        unit=UNIT,
        measurements=(
            _fewer("rms_norm_sqrt_d", "none_as_gradient", "gd d=100", "none as gradient - norm with sqrt(d)"),
        ),
    ),
)
PANELS = tuple(
    Panel(
        kind="curve",
        measure="negative_fraction",
        setting=setting,
        title=title,
        xlabel="step",
        ylabel="fraction of negative coordinates",
        arms=arms,
    )
    for setting, title, arms in (
        ("gd d=100", "Gradient descent, d = 100", (*ARMS, "rms_norm_sqrt_d")),
        ("sign d=100", "Sign updates, d = 100", ("none", "rms_norm")),
        ("sign d=10", "Sign updates, d = 10", ("none", "rms_norm")),
    )
)

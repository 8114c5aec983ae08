"""The gradient-flow check: norm and effective learning rate that tangential updates predict, and those measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "The gradient-flow check of norms and rates"
PAPER = (
    "Definition 1 and Appendix A.5, no figure: what a layer in front of a norm computes does not depend on the "
    "layer's scale, so its gradient is perpendicular to it. Then updates only ever lengthen it, and its effective "
    "learning rate, lr / ||W||^2 under SGD and lr / ||W|| under Adam, falls; a projection undoes that and nothing "
    "else. The squared norm grows by the squared updates, so under updates of constant length the norm grows as "
    "the square root of their number (A.5 prints linearly)."
)
DEVIATIONS = (
    "The exhibit is ours. Three hidden layers with LayerNorm (eps 1e-8: scale-invariant but for rounding), random "
    "labels re-drawn, constant learning rates; projection every 1, 10 or 100 updates or never.",
    "The prediction starts at the norm after each projection and adds the squared length of every update that was "
    "taken: lengths are measured, directions are predicted. Rates by formula contain neither momentum nor the "
    "length of Adam's steps.",
    "Under Adam an update is not a gradient: momentum remembers directions that were tangential earlier, and the "
    "division by second moments turns what it divides. The prediction has no reason to hold there; by how much it "
    "fails is the finding. Momentum alone, over gradients independent of one another, would make the squared norm "
    "grow (1 + beta1) / (1 - beta1) times as fast.",
    "Errors under SGD are those of the worst layer and probe of each seed; those under Adam are means over layers "
    "and probes.",
)

PERIODS = {
    "every_update": "nap",
    "every_10": "nap(period=10)",
    "every_100": "nap(period=100)",
    "layer_norm": "layer_norm",
}
"""Arm -> stack; layer_norm is never projected."""
PREDICTED = "_predicted"
"""Ends the names of arms that exist in curves only: what theory says of the arm before it."""
LR = {"sgd": 0.1, "adam": 2e-3}
SIZES = {
    "laptop": dict(
        task=dict(
            dataset="digits", num_examples=512, num_tasks=4, steps_per_task=200, batch_size=32, probes_per_task=2
        ),
        widths=(32, 32, 32),
        seeds=tuple(range(8)),
    ),
    "workstation": dict(
        task=dict(
            dataset="mnist", num_examples=4096, num_tasks=20, steps_per_task=1000, batch_size=128, probes_per_task=10
        ),
        widths=(256, 256, 256),
        seeds=tuple(range(10)),
    ),
    "paper": dict(
        task=dict(
            dataset="mnist", num_examples=60000, num_tasks=100, steps_per_task=1000, batch_size=128, probes_per_task=10
        ),
        widths=(512, 512, 512),
        seeds=tuple(range(10)),
    ),
}


def runs(scale: str) -> list[Entry]:
    from nap_bench.benchmarks import RandomLabels
    from nap_bench.optimizers import SGD, Adam
    from nap_bench.schedules import Constant
    from nap_bench.spec import ModelSpec

    size, rules = SIZES[scale], {"sgd": SGD(), "adam": Adam()}
    return [
        Entry(
            arm,
            rule,
            make_run(
                benchmark=RandomLabels(**size["task"], flow=True),
                model=ModelSpec(family="mlp", size=(("widths", size["widths"]),), norm_eps=1e-8),
                stack=stack,
                optimizer=rules[rule],
                schedule=Constant(LR[rule]),
                seeds=size["seeds"],
            ),
        )
        for rule in rules
        for arm, stack in PERIODS.items()
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """Curves are means over layers (geometric ones of norms and rates); scalars are a seed's worst or its mean.

    The learning rate is constant, so the effective one over its initial value is a power of the norm: -2 under SGD, -1
    under Adam. A prediction starts at a layer's initial norm: projections return to it.
    radial_share: signed radial length over tangential length, both summed over the updates between two probes.
    growth: of the squared norm since the last projection, over the squared updates; the prediction is 1.
    """
    for labelled in results:
        steps, norm_TGS = _layers(labelled, "norm_before_projection")
        predicted_TGS, start_TGS = _layers(labelled, "predicted_norm")[1], _layers(labelled, "start_norm")[1]
        radial_TGS, tangential_TGS = _layers(labelled, "radial_update")[1], _layers(labelled, "tangential_update")[1]
        power = 2 if labelled.setting == "sgd" else 1
        updates = np.diff(steps, prepend=0)[:, None, None]

        theory = Labelled(labelled.arm + PREDICTED, labelled.setting, labelled.result)
        for side, side_TGS in ((labelled, norm_TGS), (theory, predicted_TGS)):
            log_TS = np.log(side_TGS).mean(axis=1)
            yield from curve(side, "norm", steps, np.exp(log_TS))
            rate_TS = np.exp(power * (np.log(start_TGS[0]).mean(axis=0) - log_TS))
            yield from curve(side, "effective_learning_rate", steps, rate_TS)
        yield from curve(labelled, "radial_update", steps, (radial_TGS / updates / norm_TGS).mean(axis=1))
        yield from curve(labelled, "tangential_update", steps, (tangential_TGS / updates / norm_TGS).mean(axis=1))

        squares_TGS = predicted_TGS**2 - start_TGS**2
        pairs = {
            "log_norm": (np.log(norm_TGS), np.log(predicted_TGS)),
            "log_effective_learning_rate": (-power * np.log(norm_TGS), -power * np.log(predicted_TGS)),
            "radial_share": (radial_TGS / tangential_TGS, np.zeros_like(radial_TGS)),
            "growth": ((norm_TGS**2 - start_TGS**2) / squares_TGS, np.ones_like(squares_TGS)),
        }
        for measure, (found_TGS, wanted_TGS) in pairs.items():
            for kind, reduced in (("worst", _worst), ("mean", _mean)):
                found_S, wanted_S = reduced(found_TGS, wanted_TGS)
                yield from scalar(labelled, f"{kind}_measured_{measure}", found_S)
                yield from scalar(labelled, f"{kind}_predicted_{measure}", wanted_S)


def _layers(labelled: Labelled, quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] and a quantity of every scale-invariant layer, [T, G, S]."""
    names = [name for name in labelled.result["metrics"] if name.startswith(f"flow/{quantity}/")]
    series = [labelled.series(name) for name in sorted(names)]
    return series[0][0], np.stack([values_TS for _, values_TS in series], axis=1)


def _worst(found_TGS: np.ndarray, wanted_TGS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides [S] where they differ most; NaN for a seed that has a NaN."""
    found_NS, wanted_NS = (values_TGS.reshape(-1, values_TGS.shape[-1]) for values_TGS in (found_TGS, wanted_TGS))
    index_1S = np.abs(found_NS - wanted_NS).argmax(axis=0)[None]  # argmax takes a NaN for the largest
    return np.take_along_axis(found_NS, index_1S, 0)[0], np.take_along_axis(wanted_NS, index_1S, 0)[0]


def _mean(found_TGS: np.ndarray, wanted_TGS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides [S], means over layers and probes."""
    return found_TGS.mean(axis=(0, 1)), wanted_TGS.mean(axis=(0, 1))


def _against_theory(rule: str, kind: str, measure: str) -> tuple[Paired, ...]:
    return tuple(
        Paired(
            label=f"{rule}, {arm.replace('_', ' ').replace('layer norm', 'never')}: measured - predicted",
            measure=f"{kind}_measured_{measure}",
            against_measure=f"{kind}_predicted_{measure}",
            better="higher",
            arm=arm,
            against=arm,
            setting=rule,
        )
        for arm in PERIODS
    )


CLAIMS = (
    Claim(
        id="under_sgd_the_norm_is_the_predicted_one",
        source="Sec. A.5",
        sentence="Under SGD the norm before each projection is what tangential updates predict, at every period.",
        kind="equivalence",
        margin=0.01,
        unit="log norm, worst layer and probe",
        measurements=_against_theory("sgd", "worst", "log_norm"),
    ),
    Claim(
        id="under_sgd_the_effective_learning_rate_is_the_predicted_one",
        source="Definition 1, Sec. A.5",
        sentence="Under SGD the effective learning rate before each projection is the predicted one, too.",
        kind="equivalence",
        margin=0.02,
        unit="log rate, worst layer and probe",
        measurements=_against_theory("sgd", "worst", "log_effective_learning_rate"),
    ),
    Claim(
        id="under_sgd_the_squared_norm_grows_by_the_squared_updates",
        source="Sec. A.5",
        sentence="Under SGD the squared norm grows between projections by the squared updates.",
        kind="equivalence",
        margin=0.05,
        unit="growth over squared updates, worst layer and probe",
        measurements=_against_theory("sgd", "worst", "growth"),
    ),
    Claim(
        id="under_sgd_updates_are_tangential",
        source="Sec. A.5",
        sentence="Under SGD updates have no radial part that matters, so a projection undoes nothing that was learned.",
        kind="equivalence",
        margin=0.01,
        unit="radial over tangential length, worst layer and probe",
        measurements=_against_theory("sgd", "worst", "radial_share"),
    ),
    Claim(
        id="under_adam_the_squared_norm_grows_by_more_than_the_squared_updates",
        source="Sec. A.5 (ours)",
        sentence="Under Adam updates also point outwards: the squared norm grows by more than the squared updates.",
        kind="superiority",
        margin=0.05,
        unit="growth over squared updates, mean over layers and probes",
        measurements=_against_theory("adam", "mean", "growth"),
    ),
    Claim(
        id="under_adam_the_norm_is_not_the_predicted_one",
        source="Sec. A.5 (ours)",
        sentence="Under Adam, without projection, the norm exceeds the one that tangential updates predict.",
        kind="superiority",
        margin=0.01,
        unit="log norm, mean over layers and probes",
        measurements=_against_theory("adam", "mean", "log_norm")[-1:],
    ),
)
PANELS = tuple(
    Panel(
        kind="curve",
        measure=measure,
        setting=rule,
        title=f"{name}: {what}",
        xlabel="updates",
        ylabel=label,
        arms=tuple(arm + end for arm in PERIODS for end in ends),
    )
    for measure, what, label, ends in (
        ("norm", "norm before projection", "2-norm, mean over layers", ("", PREDICTED)),
        ("effective_learning_rate", "effective learning rate", "over the initial one", ("", PREDICTED)),
        ("radial_update", "radial part of an update", "over the norm, signed", ("",)),
        ("tangential_update", "tangential part of an update", "over the norm", ("",)),
    )
    for rule, name in (("sgd", "SGD"), ("adam", "Adam"))
)

"""Figure 8: what happens inside the networks of Fig. 5: linearised units, feature rank, parameter and gradient norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nap_bench.experiments import fig5_continual as fig5
from nap_bench.experiments.base import NUM_LAST, Entry, Labelled, curve, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "What happens inside the networks"
PAPER = (
    "Section C.2, Fig. 8, the runs of Fig. 5: the fraction of penultimate units that are zero on all or non-zero on all of a "
    "large batch (linearised), the rank of the penultimate features (singular values above a hundredth of the largest), and "
    "the norms of parameters and gradients. The paper shows the curves and states no result about them."
)
DEVIATIONS = (
    "Runs, networks and hyperparameters are those of Fig. 5 here, at the laptop's scale too.",
    "The batch is all memorised images (at workstation scale the first 1024, at paper scale the first 2048), at a task's end; the "
    "gradient is that of the task's last update.",
    "Every unit of a leaky network is non-zero on every image, so all its units count as linearised: that curve says nothing.",
    "Feature rank is shown as a share of the number of penultimate units. Claims are ours.",
)

ARMS = (*fig5.METHODS, "layer_norm", *fig5.WITH_NAP)
CURVES = {
    "linearised_fraction": "probe/linearised_fraction",
    "feature_rank": "probe/feature_rank",
    "parameter_norm": "probe/parameter_norm",
    "gradient_norm": "probe/gradient_norm",
}


def runs(scale: str) -> list[Entry]:
    """Runs of fig5_continual, under its labels: nothing is trained for this exhibit alone."""
    return [
        fig5.entry(scale, arm, net=net, setting="" if net == "mlp" else net)
        for net in fig5.SIZES[scale]["nets"]
        for arm in ARMS
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        width = labelled.result["environment"]["resolved_model"]["size"]["widths"][-1]
        for measure, metric in CURVES.items():
            steps, values_TS = labelled.series(metric)
            if measure == "feature_rank":
                values_TS = values_TS / width
            yield from curve(labelled, measure, steps / labelled.params["steps_per_task"], values_TS)
            yield from scalar(labelled, f"first_task_{measure}", values_TS[0])
            yield from scalar(labelled, f"last_ten_{measure}", values_TS[-NUM_LAST:].mean(axis=0))


def _late(measure: str, better: str, worst: float, methods: tuple[str, ...]) -> tuple[Paired, ...]:
    return tuple(
        Paired(
            label=f"{method.replace('_', ' ')} with NaP - without",
            measure=f"last_ten_{measure}",
            better=better,
            arm=fig5.combined(method, "nap"),
            against=method,
            if_diverged=worst,
        )
        for method in methods
    )


CLAIMS = (
    Claim(
        id="nap_keeps_the_feature_rank",
        source="C.2, Fig. 8 (ours)",
        sentence="On late tasks NaP's features have a higher rank than a plain network's.",
        kind="superiority",
        margin=0.05,
        unit="share of the penultimate units, last ten tasks",
        measurements=_late("feature_rank", "higher", 0.0, ("baseline",)),
    ),
    Claim(
        id="nap_keeps_units_nonlinear",
        source="C.2, Fig. 8 (ours)",
        sentence="On late tasks fewer units are linearised with NaP than in a plain network.",
        kind="superiority",
        margin=0.05,
        unit="fraction of the penultimate units, last ten tasks",
        measurements=_late("linearised_fraction", "lower", 1.0, ("baseline",)),
    ),
    Claim(
        id="nap_raises_the_feature_rank_of_every_method",
        source="C.2, Fig. 8 (ours)",
        sentence="Adding NaP raises the feature rank on late tasks for every method.",
        kind="superiority",
        margin=0.0,
        unit="share of the penultimate units, last ten tasks",
        measurements=_late("feature_rank", "higher", 0.0, fig5.METHODS),
    ),
)
PANELS = tuple(
    Panel(
        kind="curve",
        measure=measure,
        title=f"{title}{net}, {how} NaP",
        xlabel="task",
        ylabel=label,
        arms=arms,
        setting=where,
        logy=logy,
        scales=scales,
    )
    for where, net, scales in (("", "", ()), ("cnn", " (CNN)", fig5.LARGER))
    for measure, title, label, logy in (
        ("linearised_fraction", "Linearised units", "fraction, penultimate layer", False),
        ("feature_rank", "Feature rank", "share of penultimate units", False),
        ("parameter_norm", "Parameter norm", "2-norm", True),
        ("gradient_norm", "Gradient norm", "2-norm", True),
    )
    for how, arms in (("without", (*fig5.METHODS, "layer_norm")), ("with", fig5.WITH_NAP))
)

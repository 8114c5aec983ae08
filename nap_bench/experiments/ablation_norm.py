"""Which norm: BatchNorm, GroupNorm, RMSNorm and LayerNorm, each with and without weight projection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nap_bench.experiments import fig5_continual as fig5
from nap_bench.experiments.base import Entry, Labelled, curve, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Which norm to project under"
PAPER = (
    "Sections 3.3 and A.4: dividing by the root mean square is what matters, so LayerNorm or RMSNorm is the designer's choice; "
    "where a network has BatchNorm, the paper puts LayerNorm in front of it. Other norms are not compared."
)
DEVIATIONS = (
    "Not in the paper: an exhibit of ours, on the stream and networks of Fig. 5 here (perceptron).",
    "Learning rate: each arm its own, the best of twelve, at laptop scale; scales that are not tuned use one for all.",
    "BatchNorm and GroupNorm (4 groups) take LayerNorm's place; no LayerNorm stands in front of them.",
    "In training BatchNorm normalises with the statistics of the very batch whose accuracy, before the update, is the measure; "
    "evaluation at a task's end uses running statistics.",
    "Projected arms let scale and offset decay to their initial values; arms without projection leave them free.",
)

NORMS = {"layer": "layer_norm", "rms": "rms_norm", "group": "group_norm", "batch": "batch_norm"}
PROJECTED = {norm: "nap" if norm == "layer" else f"{method}+projection" for norm, method in NORMS.items()}


def runs(scale: str) -> list[Entry]:
    """Runs of fig5_continual: nothing is trained for this exhibit alone."""
    planned = [fig5.entry(scale, "baseline")]
    for norm, method in NORMS.items():
        with_nap = "nap" if norm == "layer" else fig5.combined(method, "nap")
        planned += [fig5.entry(scale, method), fig5.entry(scale, with_nap)._replace(arm=PROJECTED[norm])]
    return planned


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        steps, online_TS = labelled.series("online/accuracy")
        yield from curve(labelled, "online_accuracy", steps / labelled.params["steps_per_task"], online_TS)
        yield from scalar(labelled, "average_online_accuracy", online_TS.mean(axis=0))


def _paired(label: str, arm: str, against: str) -> Paired:
    return Paired(
        label=label, measure="average_online_accuracy", better="higher", arm=arm, against=against, if_diverged=0.0
    )


_UNIT = "average online accuracy"
CLAIMS = (
    Claim(
        id="projection_helps_under_every_norm",
        source="Sec. 3.3 (ours)",
        sentence="Projection improves a network under each of the four norms.",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=tuple(
            _paired(f"{norm} norm, projected - free", PROJECTED[norm], method) for norm, method in NORMS.items()
        ),
    ),
    Claim(
        id="rms_norm_is_as_good_as_layer_norm_under_projection",
        source="A.4 (ours)",
        sentence="Under projection RMSNorm is as good as LayerNorm: centring does not matter.",
        kind="equivalence",
        margin=0.02,
        unit=_UNIT,
        measurements=(_paired("RMSNorm - LayerNorm, both projected", PROJECTED["rms"], PROJECTED["layer"]),),
    ),
    Claim(
        id="layer_norm_is_best_under_projection",
        source="Sec. 3.3 (ours)",
        sentence="Under projection LayerNorm is as good as GroupNorm and BatchNorm, or better.",
        kind="noninferiority",
        margin=0.02,
        unit=_UNIT,
        measurements=tuple(
            _paired(f"LayerNorm - {norm.capitalize()}Norm, both projected", PROJECTED["layer"], PROJECTED[norm])
            for norm in ("group", "batch")
        ),
    ),
)
PANELS = (
    Panel(
        kind="curve",
        measure="online_accuracy",
        title="Online accuracy, norm alone",
        xlabel="task",
        ylabel="accuracy before the update",
        arms=("baseline", *NORMS.values()),
    ),
    Panel(
        kind="curve",
        measure="online_accuracy",
        title="Online accuracy, norm and projection",
        xlabel="task",
        ylabel="accuracy before the update",
        arms=tuple(PROJECTED.values()),
    ),
    Panel(
        kind="interval",
        measure="average_online_accuracy",
        title="Average online accuracy",
        xlabel="accuracy before the update",
    ),
)

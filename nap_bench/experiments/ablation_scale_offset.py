"""What to do with the norms' scale and offset: leave them free, let them decay, project them jointly, or leave them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nap_bench.experiments import fig5_continual as fig5
from nap_bench.experiments import fig10_memorisation as fig10
from nap_bench.experiments.base import Entry, Labelled, curve, scalar, tuned
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Scale and offset of the norms under NaP"
PAPER = (
    "Section 3.3 and App. D: scale and offset can be projected jointly (positively homogeneous activations only), decay to their "
    "initial values, or be left free, which is fine on a single task; in sequential Atari the decay was critical. Leaving them "
    "out is sometimes best."
)
DEVIATIONS = (
    "The paper states this about Atari and single tasks; here it is asked on the stream and with the perceptron of Fig. 5 here, "
    "and at larger scales with the convolutional network and with the transformer on replaced strings of Fig. 10 here. All "
    "its norms are meant, those at the "
    "entrances too; there a joint projection changes what values read. "
    "It also pins the norm of the scales of queries and keys, which is softmax's temperature: softmax is not homogeneous.",
    "Learning rate: the one tuned for NaP with decay and ReLU, for all; with the transformer, that of Fig. 10 here.",
    "Joint projection goes to the initial joint norm, the square root of the number of units; the paper prints 1, which would "
    "change the output of the last hidden layer. With tanh it cannot exist: tanh is not homogeneous.",
    "Decay: 0.999 per update (not given).",
)

POLICIES = ("free", "decay", "joint", "none")
ACTIVATIONS = ("relu", "tanh")
LARGER = ("workstation", "paper")
"""Scales that have the transformer too."""


def runs(scale: str) -> list[Entry]:
    hyper = dict(tuned("fig10_memorisation", scale).get("nap", {}))
    strings = [
        fig10.entry(scale, "nap", hyper, stack=f"nap(scale_offset='{policy}')", setting="transformer")._replace(
            arm=policy
        )
        for policy in POLICIES
    ]
    images = [
        fig5.entry(scale, "nap", net="cnn", setting="cnn", stack=f"nap(scale_offset='{policy}')")._replace(arm=policy)
        for policy in (POLICIES if scale in LARGER else ())
    ]
    return (strings + images if scale in LARGER else []) + [
        fig5.entry(
            scale, "nap", setting=activation, stack=f"nap(scale_offset='{policy}')", activation=activation
        )._replace(arm=policy)
        for activation in ACTIVATIONS
        for policy in POLICIES
        if (policy, activation) != ("joint", "tanh")
    ]


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        steps, online_TS = labelled.series("online/accuracy")
        yield from curve(labelled, "online_accuracy", steps / labelled.params["steps_per_task"], online_TS)
        yield from scalar(labelled, "average_online_accuracy", online_TS.mean(axis=0))
        yield from scalar(labelled, "last_third_online_accuracy", online_TS[-(len(online_TS) // 3) :].mean(axis=0))


def _paired(arm: str, against: str, activation: str) -> Paired:
    return Paired(
        label=f"{arm} - {against}, {activation}",
        measure="last_third_online_accuracy",
        better="higher",
        arm=arm,
        against=against,
        setting=activation,
        if_diverged=0.0,
    )


_UNIT = "online accuracy, last third of the tasks"
CLAIMS = (
    Claim(
        id="decay_is_critical_when_tasks_change",
        source="Sec. 3.3, 5.3",
        sentence="When tasks change, scale and offset that decay to their initial values beat free ones, with ReLU and tanh.",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=tuple(_paired("decay", "free", activation) for activation in ACTIVATIONS),
    ),
    Claim(
        id="joint_projection_is_as_good_as_decay",
        source="App. D (ours)",
        sentence="Projecting scale and offset jointly is as good as letting them decay, with ReLU.",
        kind="equivalence",
        margin=0.02,
        unit=_UNIT,
        measurements=(_paired("joint", "decay", "relu"),),
    ),
    Claim(
        id="leaving_scale_and_offset_out_costs_nothing",
        source="Sec. 3.3 (ours)",
        sentence="Leaving scale and offset out costs nothing against letting them decay, with ReLU and tanh.",
        kind="noninferiority",
        margin=0.02,
        unit=_UNIT,
        measurements=tuple(_paired("none", "decay", activation) for activation in ACTIVATIONS),
    ),
    Claim(
        id="in_a_convolutional_network_decay_beats_free_scales",
        source="Sec. 3.3 (ours)",
        sentence="In a convolutional network, too, scale and offset that decay beat free ones when tasks change (not at "
        "laptop scale).",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=(_paired("decay", "free", "cnn"),),
    ),
    Claim(
        id="in_a_transformer_leaving_scale_and_offset_free_or_out_changes_little",
        source="Sec. 3.3, App. C.3 (ours)",
        sentence="In a projected transformer on replaced strings, free scales and none do as well as decaying ones "
        "(not at laptop scale).",
        kind="equivalence",
        margin=0.02,
        unit=_UNIT,
        measurements=tuple(_paired(arm, "decay", "transformer") for arm in ("free", "none")),
    ),
)
PANELS = tuple(
    panel
    for activation, name, scales in (
        ("relu", "ReLU", ()),
        ("tanh", "tanh", ()),
        ("cnn", "convolutional network", LARGER),
        ("transformer", "transformer", LARGER),
    )
    for panel in (
        Panel(
            kind="curve",
            measure="online_accuracy",
            title=f"Online accuracy, {name}",
            xlabel="task",
            ylabel="accuracy before the update",
            arms=POLICIES,
            setting=activation,
            scales=scales,
        ),
        Panel(
            kind="interval",
            measure="last_third_online_accuracy",
            title=f"Last third of the tasks, {name}",
            xlabel="online accuracy",
            arms=POLICIES,
            setting=activation,
            scales=scales,
        ),
    )
)

"""Which schedule of the learning rate does a projected network need where supervised tasks change?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from nap_bench.experiments import ablation_projection
from nap_bench.experiments import fig5_continual as fig5
from nap_bench.experiments.base import Entry, Labelled, curve, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Schedules for a projected network on changing tasks"
PAPER = (
    "Section 4.2, about Rainbow: with weights projected the learning rate no longer falls implicitly as they grow, so it needs an "
    "explicit schedule; a linear decay beats a constant rate and the implicit one. In the supervised streams of Sec. 5.1 the paper "
    "keeps NaP's rate constant."
)
DEVIATIONS = (
    "Not in the paper: an exhibit of ours, beside ablation_schedule_rl. Every arm is NaP with decaying scale and offset.",
    "'Implicit' matches the schedule that growing weights impose: it divides the rate by what the norms of an unprojected "
    "twin would "
    "have grown to (paper 4.1), layer by layer.",
    "Linear and cosine decay over the whole run to a 60th of the peak (the paper's ratio in Rainbow), the linear one halfway; "
    "'warm-up' rises to the constant rate over the first 5 % of the run. 'Each task' arms begin anew with every task, which "
    "tells them of the switch, as nothing tells the others.",
    "Streams: labels re-drawn (as in Fig. 5 here) and pixels permuted, true labels (as in ablation_projection here); perceptron of "
    "Fig. 5 here. The peak is the rate tuned for NaP at a constant rate on re-drawn labels, for all: a decaying arm might want a "
    "higher one.",
    "Laptop scale: re-drawn labels only, without the 'each task' arms.",
)

STACK = "nap(scale_offset='decay')"
NEVER_TOLD = ("constant", "linear", "cosine", "warm_up", "implicit")
ARMS = (*NEVER_TOLD, "linear_each_task", "cosine_each_task")
STREAMS = ("random_labels", "permuted_inputs")
FINAL_SHARE, WARM_UP_SHARE = 1 / 60, 0.05
LARGER = fig5.LARGER


def schedule(arm: str, peak: float, num_steps: int) -> Any:
    from nap_bench.schedules import Constant, Cosine, Linear

    restart = "task" if arm.endswith("each_task") else "never"
    if arm.startswith("linear"):
        return Linear(peak, peak * FINAL_SHARE, until=0.5, restart=restart)
    if arm.startswith("cosine"):
        return Cosine(peak, peak * FINAL_SHARE, restart=restart)
    return Constant(peak, warmup_steps=round(WARM_UP_SHARE * num_steps)) if arm == "warm_up" else Constant(peak)


def runs(scale: str) -> list[Entry]:
    from nap_bench.benchmarks import PermutedInputs, RandomLabels
    from nap_bench.spec import Part

    streams = {
        "random_labels": RandomLabels(**fig5.SIZES[scale]["task"]),
        "permuted_inputs": PermutedInputs(**ablation_projection.SIZES[scale]["permuted_inputs"]),
    }
    planned = []
    for stream in STREAMS if scale in LARGER else STREAMS[:1]:
        for arm in ARMS if scale in LARGER else NEVER_TOLD:
            stack = f"{STACK}+implicit_schedule" if arm == "implicit" else STACK
            run = fig5.entry(scale, "nap", stack=stack).run
            peak = dict(run.schedule.params)["lr"]
            run = dataclasses.replace(
                run,
                benchmark=Part.of(streams[stream]),
                schedule=Part.of(schedule(arm, peak, streams[stream].num_steps)),
            )
            planned.append(Entry(arm, stream, run))
    return planned


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        steps, online_TS = labelled.series("online/accuracy")
        tasks = steps / labelled.params["steps_per_task"]
        yield from curve(labelled, "online_accuracy", tasks, online_TS)
        yield from curve(labelled, "learning_rate", tasks, labelled.series("probe/explicit_learning_rate")[1])
        yield from curve(
            labelled, "effective_learning_rate", tasks, labelled.series("probe/effective_learning_rate")[1]
        )
        yield from scalar(labelled, "average_online_accuracy", online_TS.mean(axis=0))
        yield from scalar(labelled, "last_third_online_accuracy", online_TS[-(len(online_TS) // 3) :].mean(axis=0))


def _paired(arm: str, against: str, stream: str, measure: str = "average_online_accuracy") -> Paired:
    return Paired(
        label=f"{arm} - {against}, {stream.replace('_', ' ')}".replace("_", " "),
        measure=measure,
        better="higher",
        arm=arm,
        against=against,
        setting=stream,
        if_diverged=0.0,
    )


_UNIT = "average online accuracy"
CLAIMS = (
    Claim(
        id="a_constant_rate_is_not_worse_than_a_decay_where_tasks_change",
        source="Sec. 5.1 (ours)",
        sentence="Where labels are re-drawn for ever, a projected network loses nothing by keeping its rate constant, against "
        "linear and cosine decays over the whole run.",
        kind="noninferiority",
        margin=0.02,
        unit=_UNIT,
        measurements=tuple(_paired("constant", arm, "random_labels") for arm in ("linear", "cosine")),
    ),
    Claim(
        id="the_implicit_schedule_costs_late_tasks",
        source="Sec. 3.2, 4.2 (ours)",
        sentence="The rate that would fall with an unprojected network's growing norm makes late tasks worse than a constant one.",
        kind="superiority",
        margin=0.02,
        unit="online accuracy, last third of the tasks",
        measurements=(_paired("constant", "implicit", "random_labels", "last_third_online_accuracy"),),
    ),
    Claim(
        id="a_warm_up_leaves_late_tasks_as_they_were",
        source="Sec. 4.2 (ours)",
        sentence="Warming up to the constant rate leaves late tasks as they were.",
        kind="equivalence",
        margin=0.02,
        unit="online accuracy, last third of the tasks",
        measurements=(_paired("warm_up", "constant", "random_labels", "last_third_online_accuracy"),),
    ),
    Claim(
        id="on_permuted_pixels_too",
        source="Sec. 5.1 (ours)",
        sentence="On permuted pixels, too, a constant rate loses nothing against decays over the whole run (not at laptop scale).",
        kind="noninferiority",
        margin=0.02,
        unit=_UNIT,
        measurements=tuple(_paired("constant", arm, "permuted_inputs") for arm in ("linear", "cosine")),
    ),
)
PANELS = tuple(
    Panel(
        kind=kind,
        measure=measure,
        title=f"{title}, {name}",
        xlabel=xlabel,
        ylabel=ylabel,
        arms=ARMS,
        setting=stream,
        logy=logy,
        scales=() if stream == STREAMS[0] else LARGER,
    )
    for stream, name in zip(STREAMS, ("re-drawn labels", "permuted pixels"), strict=True)
    for kind, measure, title, xlabel, ylabel, logy in (
        ("curve", "online_accuracy", "Online accuracy", "task", "accuracy before the update", False),
        ("curve", "effective_learning_rate", "Effective learning rate", "task", "geometric mean", True),
        ("interval", "average_online_accuracy", "Average online accuracy", "online accuracy", "", False),
        ("interval", "last_third_online_accuracy", "Last third of the tasks", "online accuracy", "", False),
    )
)

"""Figure 1: do networks recover from spikes of dead units? {SGD, momentum, Adam} x {no norm, RMSNorm, LayerNorm}."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar, tuned
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Dead units under re-drawn labels"
PAPER = (
    "Section 3.1, Fig. 1: a network memorises random MNIST labels that are re-drawn every 1000 updates. Networks with LayerNorm "
    "or RMSNorm recover from spikes in the number of dead ReLU units; networks without normalisation accumulate them, "
    "under SGD, SGD with momentum and Adam."
)
DEVIATIONS = (
    "Network: a perceptron; the paper's Fig. 1 used a DQN-style convolutional network (B.1), whose kernel sizes it does not give.",
    "Laptop scale: 96 of scikit-learn's 8x8 digits, 3 x 64 units, labels re-drawn every 250 updates, 8 tasks. Workstation "
    "and paper scale: MNIST; the number of tasks, batch size, learning rates and number of seeds are ours (not given).",
    "Learning rates: one per optimiser for all networks, the one whose worst network has the best first-task accuracy on tuning "
    "seeds (`nap-bench tune`); untuned scales use the "
    "declared defaults in this file.",
    "At laptop scale Adam's rate, 0.008, is the largest that was tried, and the worst network, without norm, was still gaining: it "
    "may do better at a larger one. Those with a norm learn the first task soonest at 0.004.",
    "A dead unit is zero on every memorised image (the paper's definition is not given); the fraction is over all hidden layers.",
    "Batches are drawn without replacement, pass after pass; norm layers have scale and offset and no bias before them.",
)

ARMS = {"none": "baseline", "rms_norm": "rms_norm", "layer_norm": "layer_norm"}
OPTIMIZERS = ("sgd", "momentum", "adam")
DEFAULT_LR = {"sgd": 0.1, "momentum": 0.03, "adam": 1e-3}
GRID = {"sgd": (0.1, 0.2, 0.3, 0.4), "momentum": (0.02, 0.05, 0.1, 0.2), "adam": (1e-3, 2e-3, 4e-3, 8e-3)}
SIZES = {
    "laptop": dict(
        task=dict(dataset="digits", num_examples=96, num_tasks=8, steps_per_task=250, batch_size=64, probes_per_task=5),
        widths=(64, 64, 64),
        seeds=tuple(range(8)),
    ),
    "workstation": dict(
        task=dict(
            dataset="mnist", num_examples=4096, num_tasks=50, steps_per_task=1000, batch_size=128, probes_per_task=5
        ),
        widths=(512, 512, 512),
        seeds=tuple(range(10)),
    ),
    "paper": dict(
        task=dict(
            dataset="mnist", num_examples=60000, num_tasks=100, steps_per_task=1000, batch_size=128, probes_per_task=5
        ),
        widths=(512, 512, 512),
        seeds=tuple(range(10)),
    ),
}
LATE = 1 / 3
"""Share of the tasks, counted from the end, that a late score averages over."""


def entry(scale: str, arm: str, optimizer: str, lr: float, *, seeds: tuple[int, ...], num_tasks: int) -> Entry:
    """One run of the exhibit; the sweep that tunes the learning rates makes its runs here too."""
    from nap_bench.benchmarks import RandomLabels
    from nap_bench.optimizers import SGD, Adam
    from nap_bench.schedules import Constant
    from nap_bench.spec import ModelSpec

    size = SIZES[scale]
    rules = {"sgd": SGD(), "momentum": SGD(momentum=0.9), "adam": Adam()}
    run = make_run(
        benchmark=RandomLabels(**{**size["task"], "num_tasks": num_tasks}),
        model=ModelSpec(family="mlp", size=(("widths", size["widths"]),)),
        stack=ARMS[arm],
        optimizer=rules[optimizer],
        schedule=Constant(lr),
        seeds=seeds,
    )
    return Entry(arm, optimizer, run)


def runs(scale: str) -> list[Entry]:
    chosen, size = tuned("fig1_dead_units", scale), SIZES[scale]
    return [
        entry(
            scale,
            arm,
            optimizer,
            chosen.get(f"{optimizer}/{arm}", {}).get("lr", DEFAULT_LR[optimizer]),
            seeds=size["seeds"],
            num_tasks=size["task"]["num_tasks"],
        )
        for optimizer in OPTIMIZERS
        for arm in ARMS
    ]


def sweep(scale: str, seeds: tuple[int, ...]) -> dict[str, list[tuple[dict[str, float], Entry]]]:
    """What `nap-bench tune` tries: arm -> (hyperparameters, run of the first task)."""
    return {
        f"{optimizer}/{arm}": [
            ({"lr": lr}, entry(scale, arm, optimizer, lr, seeds=seeds, num_tasks=1)) for lr in GRID[optimizer]
        ]
        for optimizer in OPTIMIZERS
        for arm in ARMS
    }


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        steps, dead_TS = labelled.series("probe/dead_fraction")
        yield from curve(labelled, "dead_fraction", steps, dead_TS)
        ends = steps % labelled.params["steps_per_task"] == 0
        num_late = max(1, round(LATE * ends.sum()))
        yield from scalar(labelled, "late_dead_fraction", dead_TS[ends][-num_late:].mean(axis=0))
        accuracy_TS = labelled.series("task_end/accuracy")[1]
        yield from scalar(labelled, "first_task_accuracy", accuracy_TS[0])
        yield from scalar(labelled, "late_accuracy", accuracy_TS[-num_late:].mean(axis=0))


def _paired(optimizer: str, arm: str, against: str) -> Paired:
    return Paired(
        label=f"{optimizer}: {against.replace('_', ' ')} - {arm.replace('_', ' ')}",
        measure="late_dead_fraction",
        better="lower",
        arm=arm,
        against=against,
        setting=optimizer,
        if_diverged=1.0,
    )


CLAIMS = (
    Claim(
        id="normalisation_stops_accumulation_of_dead_units",
        source="Sec. 3.1, Fig. 1",
        sentence="Networks with LayerNorm or RMSNorm recover from spikes of dead units; networks without accumulate them, "
        "under each optimiser.",
        kind="superiority",
        margin=0.05,
        unit="fraction of dead units",
        measurements=tuple(_paired(o, arm, "none") for o in OPTIMIZERS for arm in ("layer_norm", "rms_norm")),
        paper_claim=1,
    ),
    Claim(
        id="centring_does_not_matter_for_dead_units",
        source="Sec. A.4, C.4",
        sentence="Centring does not matter for the revival of dead units: RMSNorm is as good as LayerNorm.",
        kind="equivalence",
        margin=0.05,
        unit="fraction of dead units",
        measurements=tuple(_paired(o, "rms_norm", "layer_norm") for o in OPTIMIZERS),
        paper_claim=2,
    ),
)
PANELS = tuple(
    Panel(
        kind="curve",
        measure="dead_fraction",
        setting=optimizer,
        title={"sgd": "SGD", "momentum": "SGD + momentum", "adam": "Adam"}[optimizer],
        xlabel="updates",
        ylabel="fraction of dead units",
        arms=tuple(ARMS),
    )
    for optimizer in OPTIMIZERS
)

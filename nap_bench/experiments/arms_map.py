"""Where the ordering NaP > LayerNorm > plain holds and where it fails: learning rate x initial scale x task length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from nap_bench.experiments import arms
from nap_bench.experiments.base import Entry, Labelled, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Where the ordering holds"
PAPER = (
    "The paper shows one setting. The ordering must depend on how far weights grow relative to where they start: this map "
    "varies the learning rate, the initial weight scale (1 is PyTorch's default, 2.45 has the spread of He initialisation) and "
    "the number of updates per task, at a fixed total number of updates."
)
DEVIATIONS = (
    "Not in the paper. Sizes as in the exhibit of the matched arms; learning rates here are the map's axis and not tuned.",
    "Each cell has the same number of updates, so longer tasks mean fewer of them; scores average the last third of the tasks.",
)

ARMS = ("baseline", "norm_only", "nap")
GRIDS = {
    "laptop": dict(lr=(1e-3, 4e-3), init=(1.0, 2.45), k=(100, 300)),
    "workstation": dict(lr=(3e-4, 1e-3, 4e-3), init=(0.5, 1.0, 2.45), k=(100, 300, 1000)),
    "paper": dict(lr=(1e-4, 3e-4, 1e-3, 4e-3), init=(0.5, 1.0, 2.45, 4.0), k=(100, 300, 1000)),
}
NUM_STEPS = {"laptop": 1800, "workstation": 60000, "paper": 300000}


def _settings(scale: str) -> list[tuple[str, float, float, int]]:
    grid = GRIDS[scale]
    return [
        (f"lr={lr:g} init={init:g} k={k}", lr, init, k) for lr, init, k in product(grid["lr"], grid["init"], grid["k"])
    ]


def runs(scale: str) -> list[Entry]:
    planned = []
    for setting, lr, init, k in _settings(scale):
        for arm in ARMS:
            made = arms.entry(
                scale,
                arm,
                {"lr": lr},
                seeds=arms.SIZES[scale]["seeds"],
                task={"steps_per_task": k, "num_tasks": NUM_STEPS[scale] // k},
                init_scale=init,
            )
            planned.append(Entry(arm, setting, made.run))
    return planned


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        accuracy_TS = labelled.series("task_end/accuracy")[1]
        yield from scalar(labelled, "late_accuracy", accuracy_TS[-max(1, len(accuracy_TS) // 3) :].mean(axis=0))
        yield from scalar(labelled, "first_task_accuracy", accuracy_TS[0])


def _everywhere(arm: str, against: str) -> tuple[Paired, ...]:
    """Over the cells that the maps of all scales share, so that the claim means the same at every scale."""
    return tuple(
        Paired(
            label=setting,
            measure="late_accuracy",
            better="higher",
            arm=arm,
            against=against,
            setting=setting,
            if_diverged=0.0,
        )
        for setting, *_ in _settings("laptop")
    )


CLAIMS = (
    Claim(
        id="nap_beats_norm_only_everywhere",
        source="Sec. 3.2 (ours)",
        sentence="NaP beats LayerNorm alone at every learning rate, initial scale and task length that all maps share.",
        kind="superiority",
        margin=0.0,
        unit="accuracy, last third of the tasks",
        measurements=_everywhere("nap", "norm_only"),
    ),
    Claim(
        id="norm_only_beats_baseline_everywhere",
        source="Sec. 3.2 (ours)",
        sentence="LayerNorm beats a plain network at every learning rate, initial scale and task length that all maps share.",
        kind="superiority",
        margin=0.0,
        unit="accuracy, last third of the tasks",
        measurements=_everywhere("norm_only", "baseline"),
    ),
)
PANELS = (
    Panel(
        kind="map",
        measure="late_accuracy",
        title="NaP - norm only, accuracy on late tasks",
        xlabel="learning rate",
        ylabel="initial scale",
        contrast=("nap", "norm_only"),
    ),
    Panel(
        kind="map",
        measure="late_accuracy",
        title="norm only - baseline, accuracy on late tasks",
        xlabel="learning rate",
        ylabel="initial scale",
        contrast=("norm_only", "baseline"),
    ),
)

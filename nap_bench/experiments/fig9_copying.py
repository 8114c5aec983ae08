"""Figure 9: how soon does a transformer learn to copy in context, with and without norm and projection?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nap_bench.experiments import fig10_memorisation as fig10
from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar, tuned
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "In-context copying"
PAPER = (
    "App. B.3 and C.3, Fig. 9: a transformer reads strings whose end repeats a stretch of their beginning; four arms, with and "
    "without norm and projection. The norm speeds up copying, projection speeds it up further; leaving out the learnable scale "
    "does not stop it."
)
DEVIATIONS = (
    *fig10.NETWORK,
    "Sizes: B.3 says 4096 strings whose last 100 tokens are copied from the first 412; C.3 a prefix of 100 tokens, a suffix of "
    "50 and accuracy on its last 48. Workstation scale takes C.3's, paper scale B.3's, both replaced every 1000 updates (as in "
    "Fig. 10; not given here), 10 times. Laptop scale: 2048 strings of 14 tokens over 20 symbols, the last 5 copied; they are "
    "not replaced; two blocks of 32 features and 64 hidden units, batch 24, 600 updates: chosen on tuning seeds, so that "
    "every arm learns it within the time there is.",
    "The suffix is a contiguous stretch of the prefix from a uniformly drawn place; its first two tokens tell which and are not "
    "scored. The loss is over all tokens. Final accuracy is on strings that were never trained on.",
    "The measure is the accuracy on the batch before its update, averaged over the run: how soon copying is learnt. It is on "
    "strings of the stream, each seen about 7 times at laptop scale and 31 times at the others, the first time before any "
    "training on it: it mixes copying with memorisation, while final accuracy is copying alone.",
    "Learning rate: one for all arms, the one whose worst arm copies best at the end of the run on four tuning seeds, then "
    "soonest (not given). It matters: arms that are slow at a small rate stop halfway at a large one.",
)

ARMS = {
    "baseline": "baseline",
    "projection_only": "nap(norm='none')",
    "norm_only": "layer_norm",
    "nap": "nap",
    "nap_no_scale": "nap(scale_offset='none')",
}
DEFAULT_LR = 1e-3
GRID_LR = (2.5e-3, 5e-3, 1e-2)
NUM_TUNING_SEEDS = 4
SEEDS = tuple(range(8))
SIZES: dict[str, dict[str, Any]] = {
    "laptop": dict(
        task=dict(
            num_strings=2048,
            length=14,
            copied=5,
            vocabulary=20,
            num_tasks=1,
            steps_per_task=600,
            batch_size=24,
            eval_strings=64,
            probes_per_task=15,
        ),
        net=dict(d_model=32, heads=2, widths=(64, 64)),
    ),
    "workstation": dict(
        task=dict(
            num_strings=4096,
            length=150,
            copied=50,
            vocabulary=256,
            num_tasks=10,
            steps_per_task=1000,
            batch_size=128,
            eval_strings=64,
            probes_per_task=4,
        ),
        net=fig10.PAPERS_NET,
    ),
    "paper": dict(
        task=dict(
            num_strings=4096,
            length=512,
            copied=100,
            vocabulary=256,
            num_tasks=10,
            steps_per_task=1000,
            batch_size=128,
            eval_strings=32,
            probes_per_task=4,
        ),
        net=fig10.PAPERS_NET,
    ),
}


def entry(scale: str, arm: str, lr: float, *, seeds: tuple[int, ...] = SEEDS) -> Entry:
    """One run of an arm."""
    from nap_bench.benchmarks import Copying
    from nap_bench.optimizers import Adam
    from nap_bench.schedules import Constant

    run = make_run(
        benchmark=Copying(**SIZES[scale]["task"]),
        model=fig10.model(SIZES[scale]["net"]),
        stack=ARMS[arm],
        optimizer=Adam(),
        schedule=Constant(lr),
        seeds=seeds,
    )
    return Entry(arm, "", run)


def runs(scale: str) -> list[Entry]:
    chosen = tuned("fig9_copying", scale)
    return [entry(scale, arm, chosen.get(arm, {}).get("lr", DEFAULT_LR)) for arm in ARMS]


def sweep(scale: str, seeds: tuple[int, ...]) -> dict[str, list[tuple[dict[str, float], Entry]]]:
    """What `nap-bench tune` tries: arm -> (hyperparameters, run)."""
    some = seeds[:NUM_TUNING_SEEDS]
    return {arm: [({"lr": lr}, entry(scale, arm, lr, seeds=some)) for lr in GRID_LR] for arm in ARMS}


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        for measure, metric in (("accuracy", "online/accuracy"), ("parameter_norm", "probe/parameter_norm")):
            yield from curve(labelled, measure, *labelled.series(metric))
        yield from scalar(labelled, "average_accuracy", labelled.series("online/accuracy")[1].mean(axis=0))
        yield from scalar(labelled, "final_accuracy", labelled.series("task_end/accuracy")[1][-1])


def _paired(label: str, arm: str, against: str, measure: str = "average_accuracy") -> Paired:
    return Paired(label=label, measure=measure, better="higher", arm=arm, against=against, if_diverged=0.0)


CLAIMS = (
    Claim(
        id="norm_speeds_up_copying_and_projection_further",
        source="App. C.3, Fig. 9",
        sentence="Normalisation speeds up in-context copying, and projection speeds it up further.",
        kind="superiority",
        margin=0.03,
        unit="copied tokens predicted, mean over the run",
        measurements=(
            _paired("norm only - baseline", "norm_only", "baseline"),
            _paired("NaP - norm only", "nap", "norm_only"),
        ),
        paper_claim=18,
    ),
    Claim(
        id="copying_needs_no_learnable_scale",
        source="App. C.3, Fig. 9",
        sentence="Leaving out the learnable scale does not stop copying.",
        kind="noninferiority",
        margin=0.05,
        unit="copied tokens predicted in new strings at the end",
        measurements=(_paired("NaP, no scale - NaP", "nap_no_scale", "nap", "final_accuracy"),),
    ),
)
PANELS = (
    Panel(
        kind="curve",
        measure="accuracy",
        title="Copied tokens predicted, before the update",
        xlabel="updates",
        ylabel="accuracy after the cue",
        arms=tuple(ARMS),
    ),
    Panel(
        kind="interval",
        measure="average_accuracy",
        title="Mean over the run: how soon",
        xlabel="accuracy after the cue",
        arms=tuple(ARMS),
    ),
    Panel(
        kind="interval",
        measure="final_accuracy",
        title="New strings, at the end",
        xlabel="accuracy after the cue",
        arms=tuple(ARMS),
    ),
    Panel(
        kind="curve",
        measure="parameter_norm",
        title="Parameter norm",
        xlabel="updates",
        ylabel="2-norm",
        arms=tuple(ARMS),
        logy=True,
    ),
)

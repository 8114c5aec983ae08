"""Figure 2: over many re-draws of the labels, what happens to the loss, the Jacobian norm and the parameter norm?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nap_bench.experiments.base import NUM_LAST, Entry, Labelled, curve, make_run, scalar, tuned
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Norm growth under re-drawn labels"
PAPER = (
    "Section 3.2, Fig. 2: a small convolutional network memorises random CIFAR-10 labels, re-drawn 500 times. Without norm the "
    "parameter and Jacobian norms explode; with LayerNorm the parameter norm grows, the Jacobian norm falls sharply and "
    "later tasks degrade; with LayerNorm and weight projection all stay at the level of a fresh network."
)
DEVIATIONS = (
    "Laptop scale: 64 patches of 8 x 8 pixels of scikit-learn's sample photographs, convolutions of 8 and 8 channels and 32 hidden "
    "units, labels re-drawn every 150 updates, 20 times. Workstation scale: the first 2048 images of CIFAR-10, 100 re-draws; paper "
    "scale: its whole training set, 500 re-draws; at both the paper's network of B.4 (4 x 32 channels, 256 hidden units). Kernel, "
    "pooling, batch size, updates per task and how many images are memorised are ours (not given).",
    "LayerNorm's statistics are over channels, height and width, its scale and offset per channel (axes not given).",
    "The Jacobian norm is that of the outputs with respect to the inputs, root mean square over images (definition not given).",
    "Learning rate: one for all arms, the one whose worst arm has the best first-task accuracy on tuning seeds; untuned scales "
    "use the paper's 1e-4 (B.4).",
    "At laptop scale that rate, 0.008, is the largest that was tried, and the worst arm, without norm, was still gaining: it may "
    "do better at a larger one. Those with a norm learn the first task as soon at 0.004.",
    "Scale and offset of the norms are free in both normalised arms, so that they differ in the projection alone.",
)

ARMS = {"none": "baseline", "layer_norm": "layer_norm", "nap": "nap"}
DEFAULT_LR = 1e-4
GRID_LR = (1e-3, 2e-3, 4e-3, 8e-3)
_SMALL = (("channels", (8, 8)), ("kernel", 3), ("pool_after", (0,)), ("widths", (32,)))
_PAPER = (("channels", (32, 32, 32, 32)), ("kernel", 3), ("pool_after", (1, 3)), ("widths", (256,)))
SIZES = {
    "laptop": dict(
        task=dict(
            dataset="patches", num_examples=64, num_tasks=20, steps_per_task=150, batch_size=32, jacobian_examples=32
        ),
        size=_SMALL,
        seeds=tuple(range(8)),
    ),
    "workstation": dict(
        task=dict(
            dataset="cifar10",
            num_examples=2048,
            num_tasks=100,
            steps_per_task=1000,
            batch_size=128,
            jacobian_examples=128,
        ),
        size=_PAPER,
        seeds=tuple(range(8)),
    ),
    "paper": dict(
        task=dict(
            dataset="cifar10",
            num_examples=50000,
            num_tasks=500,
            steps_per_task=10000,
            batch_size=128,
            jacobian_examples=512,
        ),
        size=_PAPER,
        seeds=tuple(range(8)),
    ),
}


def entry(scale: str, arm: str, lr: float, *, seeds: tuple[int, ...], num_tasks: int) -> Entry:
    """One run of an arm; the sweep that tunes the learning rates makes its runs here too."""
    from nap_bench.benchmarks import RandomLabels
    from nap_bench.optimizers import Adam
    from nap_bench.schedules import Constant
    from nap_bench.spec import ModelSpec

    run = make_run(
        benchmark=RandomLabels(**{**SIZES[scale]["task"], "num_tasks": num_tasks}),
        model=ModelSpec(family="cnn", size=SIZES[scale]["size"]),
        stack=ARMS[arm],
        optimizer=Adam(),
        schedule=Constant(lr),
        seeds=seeds,
    )
    return Entry(arm, "", run)


def runs(scale: str) -> list[Entry]:
    chosen, size = tuned("fig2_norm_growth", scale), SIZES[scale]
    return [
        entry(
            scale,
            arm,
            chosen.get(arm, {}).get("lr", DEFAULT_LR),
            seeds=size["seeds"],
            num_tasks=size["task"]["num_tasks"],
        )
        for arm in ARMS
    ]


def sweep(scale: str, seeds: tuple[int, ...]) -> dict[str, list[tuple[dict[str, float], Entry]]]:
    """What `nap-bench tune` tries: arm -> (hyperparameters, run of the first task)."""
    return {arm: [({"lr": lr}, entry(scale, arm, lr, seeds=seeds, num_tasks=1)) for lr in GRID_LR] for arm in ARMS}


CURVES = {"loss": "task_end/loss", "jacobian_norm": "task_end/jacobian_norm", "parameter_norm": "probe/parameter_norm"}


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        for measure, metric in CURVES.items():
            steps, values_TS = labelled.series(metric)
            yield from curve(labelled, measure, steps / labelled.params["steps_per_task"], values_TS)
            first_S, late_S = values_TS[0], values_TS[-NUM_LAST:].mean(axis=0)
            yield from scalar(labelled, f"first_share_{measure}", first_S / (first_S + late_S))
            yield from scalar(labelled, f"late_share_{measure}", late_S / (first_S + late_S))
        accuracy_TS = labelled.series("task_end/accuracy")[1]
        yield from scalar(labelled, "first_task_accuracy", accuracy_TS[0])
        yield from scalar(labelled, "late_accuracy", accuracy_TS[-NUM_LAST:].mean(axis=0))


def _change(label: str, arm: str, measure: str, better: str) -> Paired:
    """The last ten tasks against the first one, of the same arm: (late - first) / (late + first), finite also where one is 0."""
    return Paired(
        label=label,
        measure=f"late_share_{measure}",
        against_measure=f"first_share_{measure}",
        better=better,
        arm=arm,
        against=arm,
    )


CLAIMS = (
    Claim(
        id="plain_norms_grow_and_late_tasks_degrade",
        source="Sec. 3.2, Fig. 2",
        sentence="Without normalisation the parameter and Jacobian norms grow over re-draws of the labels, and late tasks degrade.",
        kind="superiority",
        margin=0.05,
        unit="(late - first) / (late + first)",
        measurements=(
            _change("parameter norm grows", "none", "parameter_norm", "higher"),
            _change("Jacobian norm grows", "none", "jacobian_norm", "higher"),
            _change("loss grows", "none", "loss", "higher"),
        ),
        paper_claim=3,
    ),
    Claim(
        id="layer_norm_grows_its_jacobian_falls_and_late_tasks_degrade",
        source="Sec. 3.2, Fig. 2",
        sentence="With LayerNorm the parameter norm grows, the Jacobian norm falls and late tasks degrade.",
        kind="superiority",
        margin=0.05,
        unit="(late - first) / (late + first)",
        measurements=(
            _change("parameter norm grows", "layer_norm", "parameter_norm", "higher"),
            _change("Jacobian norm falls", "layer_norm", "jacobian_norm", "lower"),
            _change("loss grows", "layer_norm", "loss", "higher"),
        ),
        paper_claim=4,
    ),
    Claim(
        id="nap_stays_as_good_as_a_fresh_network",
        source="Sec. 3.2, Fig. 2",
        sentence="With LayerNorm and projection, late tasks stay at the level of a fresh network.",
        kind="noninferiority",
        margin=0.05,
        unit="accuracy, late tasks against the first",
        measurements=(
            Paired(
                label="late - first task",
                measure="late_accuracy",
                against_measure="first_task_accuracy",
                better="higher",
                arm="nap",
                against="nap",
                if_diverged=0.0,
            ),
        ),
        paper_claim=5,
    ),
)
PANELS = tuple(
    Panel(kind="curve", measure=measure, title=title, xlabel="re-draws", ylabel=label, arms=tuple(ARMS), logy=True)
    for measure, title, label in (
        ("loss", "Loss at the end of each task", "loss"),
        ("jacobian_norm", "Jacobian norm", "root mean square over images"),
        ("parameter_norm", "Parameter norm", "2-norm"),
    )
)

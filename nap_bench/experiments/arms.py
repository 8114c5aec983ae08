"""The matched arms: what of NaP does the work, when labels are re-drawn again and again?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from nap_bench.experiments.base import NUM_LAST, Entry, Labelled, curve, make_run, scalar, sweep_of_decay, tuned
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Matched arms on re-drawn labels"
PAPER = (
    "Section 3.2, Fig. 2: over many re-draws of random labels a plain network loses its ability to learn, a network with "
    "LayerNorm loses it more slowly as its weights grow, and LayerNorm with weight projection keeps it."
)
DEVIATIONS = (
    "Network and data: a perceptron on images of digits; the paper's Fig. 2 used a small convolutional network on CIFAR-10.",
    "Laptop scale: 224 of scikit-learn's 8x8 digits, 3 x 64 units, batch 64, labels re-drawn every 250 updates, 25 tasks. "
    "Workstation and paper scale: MNIST; batch size, number of images and seeds are ours (not given).",
    "Learning rate: one for all arms, the one whose worst arm has the best first-task accuracy on tuning seeds (at its end, then "
    "online), so that every network solves a single task (the paper's rule, B.4). Weight decay, NaP's rival, is tuned on the late "
    "accuracy itself (also on tuning seeds): the rival is given more tuning than NaP.",
    "At laptop scale that rate, 0.008, is the largest that was tried, and the worst arm, projection only, was still gaining: arms "
    "without norm may do better at a larger one. Those with a norm learn the first task soonest at 0.002 to 0.004.",
    "Scale and offset of the norms are free in every arm, so that NaP and 'norm only' differ in the projection alone.",
    "'Projection only' keeps its biases, unprojected; 'NaP, head too' projects the final layer, which the paper does not.",
    "Weight decay acts on hidden and output weights, after the step, times the learning rate.",
    "Initial weights are PyTorch's default, U(+-1/sqrt(fan_in)); the paper gives none.",
)

ARMS = {
    "baseline": "baseline",
    "off": "nap(norm='none', project=False)",
    "norm_only": "layer_norm",
    "projection_only": "nap(norm='none')",
    "nap": "nap",
    "nap_head": "nap(head=True)",
    "ln_weight_decay": "layer_norm+weight_decay(coef={weight_decay})",
}
TUNED_LIKE = {"off": "baseline"}
"""Arms that take another arm's hyperparameters: 'off' must equal the baseline bit for bit."""
DEFAULTS = {"lr": 1e-3, "weight_decay": 0.1}
GRID_LR = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
GRID_WEIGHT_DECAY = (0.03, 0.1, 0.3, 1.0)
SIZES = {
    "laptop": dict(
        task=dict(dataset="digits", num_examples=224, num_tasks=25, steps_per_task=250, batch_size=64),
        widths=(64, 64, 64),
        seeds=tuple(range(8)),
    ),
    "workstation": dict(
        task=dict(dataset="mnist", num_examples=4096, num_tasks=100, steps_per_task=1000, batch_size=128),
        widths=(512, 512, 512),
        seeds=tuple(range(10)),
    ),
    "paper": dict(
        task=dict(dataset="mnist", num_examples=60000, num_tasks=500, steps_per_task=1000, batch_size=128),
        widths=(512, 512, 512, 512),
        seeds=tuple(range(10)),
    ),
}


def entry(
    scale: str,
    arm: str,
    hyper: dict[str, float],
    *,
    seeds: tuple[int, ...],
    task: dict | None = None,
    init_scale: float = 1.0,
) -> Entry:
    """One run of an arm. hyper: lr, and weight_decay where the arm decays. task: what differs from the scale's task."""
    from nap_bench.benchmarks import RandomLabels
    from nap_bench.optimizers import Adam
    from nap_bench.schedules import Constant
    from nap_bench.spec import ModelSpec

    size, hyper = SIZES[scale], {**DEFAULTS, **hyper}
    run = make_run(
        benchmark=RandomLabels(**{**size["task"], **(task or {})}),
        model=ModelSpec(family="mlp", size=(("widths", size["widths"]),), init_scale=init_scale),
        stack=ARMS[arm].format(**hyper),
        optimizer=Adam(),
        schedule=Constant(hyper["lr"]),
        seeds=seeds,
    )
    return Entry(arm, "", run)


def runs(scale: str) -> list[Entry]:
    chosen = tuned("arms", scale)
    return [
        entry(scale, arm, dict(chosen.get(TUNED_LIKE.get(arm, arm), {})), seeds=SIZES[scale]["seeds"]) for arm in ARMS
    ]


def sweep(scale: str, seeds: tuple[int, ...]) -> dict[str, list[tuple[dict[str, float], Entry]]]:
    """What `nap-bench tune` tries for learning rates: arm -> (hyperparameters, run of the first task)."""
    return {
        arm: [
            ({"lr": lr}, entry(scale, arm, {"lr": lr, "weight_decay": 0.0}, seeds=seeds, task={"num_tasks": 1}))
            for lr in GRID_LR
        ]
        for arm in ARMS
        if arm not in TUNED_LIKE
    }


def sweep_late(scale: str, seeds: tuple[int, ...], chosen: dict) -> dict[str, list[tuple[dict[str, float], Entry]]]:
    """What is tuned on late accuracy, once learning rates are chosen: the rival's weight decay."""
    return sweep_of_decay(entry, scale, seeds, chosen["ln_weight_decay"]["lr"], GRID_WEIGHT_DECAY)


CURVES = {
    "accuracy": "task_end/accuracy",
    "loss": "task_end/loss",
    "dead_fraction": "probe/dead_fraction",
    "feature_rank": "probe/feature_rank",
    "parameter_norm": "probe/parameter_norm",
    "effective_learning_rate": "probe/effective_learning_rate",
    "relative_update": "probe/relative_update",
}


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        for measure, metric in CURVES.items():
            steps, values_TS = labelled.series(metric)
            yield from curve(labelled, measure, steps / labelled.params["steps_per_task"], values_TS)
            yield from scalar(labelled, f"last_ten_{measure}", values_TS[-NUM_LAST:].mean(axis=0))
        yield from scalar(labelled, "first_task_accuracy", labelled.series("task_end/accuracy")[1][0])
        online_TS = labelled.series("online/accuracy")[1]
        yield from scalar(labelled, "online_accuracy", np.mean(online_TS, axis=0))


def _late(label: str, arm: str, against: str) -> tuple[Paired, ...]:
    return (
        Paired(
            label=label,
            measure="last_ten_accuracy",
            better="higher",
            arm=arm,
            against=against,
            if_diverged=0.0,
        ),
    )


CLAIMS = (
    Claim(
        id="nap_beats_norm_only",
        source="Sec. 3.2, Fig. 2",
        sentence="Projection keeps what LayerNorm alone loses: NaP is more accurate on late tasks.",
        kind="superiority",
        margin=0.15,
        unit="accuracy, last ten tasks",
        measurements=_late("NaP - norm only", "nap", "norm_only"),
    ),
    Claim(
        id="norm_only_beats_baseline",
        source="Sec. 3.2, Fig. 2",
        sentence="LayerNorm alone loses its ability to learn more slowly than a plain network.",
        kind="superiority",
        margin=0.15,
        unit="accuracy, last ten tasks",
        measurements=_late("norm only - baseline", "norm_only", "baseline"),
    ),
    Claim(
        id="nap_not_worse_than_tuned_weight_decay",
        source="Sec. 3.3 (ours)",
        sentence="NaP is as good as its natural rival, LayerNorm with tuned weight decay, or better.",
        kind="noninferiority",
        margin=0.05,
        unit="accuracy, last ten tasks",
        measurements=_late("NaP - LN + weight decay", "nap", "ln_weight_decay"),
    ),
    Claim(
        id="head_projection_does_not_matter",
        source="Sec. 3.3, B.2 (ours)",
        sentence="Leaving the final layer unprojected, as the paper does, costs nothing: projecting it too changes little.",
        kind="equivalence",
        margin=0.05,
        unit="accuracy, last ten tasks",
        measurements=_late("NaP, head too - NaP", "nap_head", "nap"),
    ),
    Claim(
        id="projection_needs_the_norm",
        source="Sec. 3.2-3.3 (ours)",
        sentence="Projection without normalisation is not what helps: NaP is more accurate than projection only.",
        kind="superiority",
        margin=0.05,
        unit="accuracy, last ten tasks",
        measurements=_late("NaP - projection only", "nap", "projection_only"),
    ),
    Claim(
        id="off_is_the_baseline",
        source="control (ours)",
        sentence="With both of its parts switched off, NaP is the baseline, bit for bit.",
        kind="equivalence",
        margin=1e-12,
        unit="accuracy, last ten tasks",
        measurements=_late("off - baseline", "off", "baseline"),
    ),
)
PANELS = (
    Panel(
        kind="curve",
        measure="accuracy",
        title="Accuracy at the end of each task",
        xlabel="task",
        ylabel="accuracy",
        arms=tuple(ARMS),
        reference=(0.1, "chance"),
    ),
    Panel(
        kind="interval",
        measure="last_ten_accuracy",
        title="Mean of the last ten tasks",
        xlabel="accuracy",
        arms=tuple(ARMS),
        reference=(0.1, "chance"),
    ),
    Panel(
        kind="curve", measure="parameter_norm", title="Parameter norm", xlabel="task", ylabel="2-norm", arms=tuple(ARMS)
    ),
    Panel(
        kind="curve",
        measure="effective_learning_rate",
        title="Effective learning rate (lr / norm, hidden layers)",
        xlabel="task",
        ylabel="geometric mean",
        arms=("nap", "nap_head", "norm_only", "ln_weight_decay"),
        logy=True,
    ),
    Panel(
        kind="curve",
        measure="dead_fraction",
        title="Dead units",
        xlabel="task",
        ylabel="fraction",
        arms=tuple(ARMS),
    ),
    Panel(
        kind="curve",
        measure="loss",
        title="Loss at the end of each task",
        xlabel="task",
        ylabel="loss",
        arms=tuple(ARMS),
    ),
)

"""Figure 5: methods against the loss of plasticity, each with and without NaP, on labels that are re-drawn again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np

from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar, tuned
from nap_bench.report.claims import Claim, Paired, Spread
from nap_bench.report.figures import Panel
from nap_bench.report.scores import Score

TITLE = "Methods against plasticity loss, with and without NaP"
PAPER = (
    "Section 5.1, Fig. 5: labels of CIFAR-10 are drawn at random 200 times over 20 million updates. Without NaP the methods "
    "differ widely, regenerative regularisation and ReDo are best; with NaP the differences shrink, and every method but ReDo, "
    "whose reset ignores normalisation, gets better."
)
DEVIATIONS = (
    "Laptop scale: 128 of scikit-learn's 8x8 digits, 2 x 64 units, batch 32, labels re-drawn every 100 updates, 20 times, no "
    "convolutional network. Workstation: the first 2048 images of CIFAR-10, the paper's networks, 50 re-draws of 2000 updates. "
    "Batch size, kernel, pooling and how many images are memorised are ours (not given).",
    "Laptop scale: every arm, baseline and NaP too, has its own learning rate and hyperparameters, the best of 12 by average "
    "online accuracy over the first 15 tasks on three tuning seeds (Kumar et al. 2023 select so); the paper gives one rate, "
    "1e-4, and no other hyperparameter. Arms without a hyperparameter of their own try twelve rates, the others fewer; where three "
    "values are chosen, each moves alone around the others' middle. Where an arm's configurations lie was moved on tuning seeds "
    "until its choice lay inside, or where a range ends (no fewer layers to reset). Scales that are not tuned use the paper's "
    "rate, and for each method a value its own authors or Kumar et al. use, for the convolutional network too; LayerNorm with "
    "weight decay is left out there, because its point is to be tuned.",
    "Penalties leave the norms' scale and offset alone (Kumar et al. 2023). Shrink & Perturb acts at every update, with fresh "
    "draws; noise is added to updates in proportion to the learning rate (the paper names no variant of either). Noise that is "
    "drawn at every update is cut, at random places and with random signs, out of a table of a million normal draws.",
    "NaP lets scale and offset decay to their initial values, with 0.999 per update; the paper used such a decay in its "
    "continual evaluations and gives no value.",
    "Continual backprop, CReLU, the resets and the other norms are not in the paper's figure. The resets (of layers, of "
    "everything, of the optimizer) are told of every new task, as no other method here is. A norm with NaP is NaP with it in "
    "LayerNorm's place. CReLU keeps the share of units that gives it the ReLU network's number of parameters.",
    "In training BatchNorm normalises with the statistics of the very batch whose accuracy, before the update, is online accuracy; "
    "evaluation at a task's end uses running statistics.",
    "Curves over learning rates are of shorter streams: 5 tasks at laptop scale, 20 at the others. Rates "
    "are an arm's own, a quarter of it and four times it (at larger scales 0.3, 3 and 10 times); its own point is the first "
    "tasks of its main run.",
    "The gap to a fresh network is ours: a new network, of the same seed and hyperparameters, on the last task's very batches.",
)

BASES = {
    "baseline": "baseline",
    "l2": "l2(coef={coef})",
    "regenerative": "regenerative(coef={coef})",
    "shrink_perturb": "shrink_perturb(shrink={shrink}, noise={noise})",
    "redo": "redo(period={period}, tau={tau})",
    "leaky_relu": "leaky_relu(negative_slope={negative_slope})",
    "noisy_updates": "noisy_updates(sigma={sigma})",
}
"""The paper's methods."""
NORMS = {"layer_norm": "layer_norm", "nap": "nap(scale_offset='decay')"}
"""What a method is combined with: arm `l2+nap`; with no method arm `nap`."""
MORE = {
    "ln_weight_decay": "layer_norm+weight_decay(coef={weight_decay})",
}
"""Arms that stand alone, where they were tuned."""
MORE_BASES = {
    "continual_backprop": "continual_backprop(rate={rate}, maturity={maturity})",
    "crelu": "crelu(keep={keep})",
    "layer_reset": "layer_reset(layers={layers})",
    "full_reset": "full_reset",
    "optimizer_reset": "optimizer_reset",
}
"""Methods that readers look for besides the paper's. The resets are told of a new task, as no other method here is."""
OTHER_NORMS = {"batch_norm": "batch", "group_norm": "group", "rms_norm": "rms"}
"""Norms as methods of their own: arm `rms_norm`; `rms_norm+nap` is NaP with it in LayerNorm's place."""


def combined(method: str, norm: str) -> str:
    """The arm of a method with a norm: `l2+nap`; the baseline with it is the norm alone."""
    return norm if method == "baseline" else f"{method}+{norm}"


STACKS = {
    **BASES,
    **{
        combined(name, norm): NORMS[norm] if name == "baseline" else f"{stack}+{NORMS[norm]}"
        for (name, stack), norm in product({**BASES, **MORE_BASES}.items(), NORMS)
    },
    **MORE_BASES,
    **{name: name for name in OTHER_NORMS},
    **{combined(name, "nap"): f"nap(norm='{norm}', scale_offset='decay')" for name, norm in OTHER_NORMS.items()},
    **MORE,
}
METHODS = tuple(BASES)
WITH_NAP = tuple(combined(method, "nap") for method in METHODS)
WITH_LAYER_NORM = tuple(combined(method, "layer_norm") for method in METHODS)
MORE_METHODS = (*MORE_BASES, *OTHER_NORMS)
MORE_WITH_NAP = tuple(combined(method, "nap") for method in MORE_METHODS)
MORE_WITH_LAYER_NORM = tuple(combined(method, "layer_norm") for method in MORE_BASES)
"""A network has one norm, so the other norms have no arm with LayerNorm."""

SEEDS = tuple(range(300, 308))
"""Not those with which sizes were chosen and everything was tried (0 to 7, 100 to 107), nor those of a report that was published
before configurations were tuned anew (200 to 207)."""
DEFAULTS = {
    "l2": {"coef": 1e-2},  # Kumar et al. 2023, best of their grid
    "regenerative": {"coef": 1e-2},  # the same
    "shrink_perturb": {"shrink": 0.9999, "noise": 1e-2},  # the same, per update
    "redo": {"period": 1000, "tau": 0.1},  # Sokar et al. 2023, aggressive setting
    "leaky_relu": {"negative_slope": 0.01},  # Maas et al. 2013
    "noisy_updates": {"sigma": 0.01},  # UPGD's suite (Elsayed & Mahmood 2024)
    "ln_weight_decay": {"weight_decay": 0.1},
    "continual_backprop": {"rate": 1e-4, "maturity": 100},  # Dohare et al. 2024, permuted MNIST
    "layer_reset": {"layers": 1},  # the output layer, as Dohare et al. 2024 on Continual ImageNet
}
_KEEP = {"mlp": 0.82, "cnn": 0.71}
_CIFAR = {
    "mlp": dict(family="mlp", size=(("widths", (512, 512, 512, 512)),)),
    "cnn": dict(
        family="cnn",
        size=(("channels", (32, 32, 32, 32)), ("kernel", 3), ("pool_after", (1, 3)), ("widths", (256,))),
    ),
}
SIZES = {
    "laptop": dict(
        task=dict(dataset="digits", num_examples=128, num_tasks=20, steps_per_task=100, batch_size=32),
        nets={"mlp": dict(family="mlp", size=(("widths", (64, 64)),))},
        keep={"mlp": 0.77},
        lr=2e-3,
        sensitivity=dict(factors=(0.25, 4.0), num_tasks=5),
    ),
    "workstation": dict(
        task=dict(
            dataset="cifar10", num_examples=2048, num_tasks=50, steps_per_task=2000, batch_size=128, eval_examples=1024
        ),
        nets=_CIFAR,
        keep=_KEEP,
        lr=1e-4,
        sensitivity=dict(factors=(0.3, 3.0, 10.0), num_tasks=20),
    ),
    "paper": dict(
        task=dict(
            dataset="cifar10",
            num_examples=50000,
            num_tasks=200,
            steps_per_task=100000,
            batch_size=128,
            eval_examples=2048,
        ),
        nets=_CIFAR,
        keep=_KEEP,
        lr=1e-4,
        sensitivity=dict(factors=(0.3, 3.0, 10.0), num_tasks=20),
    ),
}
"""keep: the share of the units with which CReLU has most nearly as many parameters as the ReLU network, by 0.6 % at laptop
scale and 0.3 % (perceptron) and 2.4 % (convolutional) at the others (Kumar et al. 2023 match them so). factors: an arm's
learning rate times these is tried on a shorter stream; of its own rate the first tasks of its run say the same."""
LARGER = ("workstation", "paper")


def grid(**axes: tuple) -> tuple[dict[str, float], ...]:
    """Every combination of the axes' values."""
    return tuple(dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


def cross(**axes: tuple) -> tuple[dict[str, float], ...]:
    """Each axis alone through its values, the others at their middle ones: more room than a grid has for three axes."""
    middle = {name: values[len(values) // 2] for name, values in axes.items()}
    moved = [{**middle, name: value} for name, values in axes.items() for value in values if value != middle[name]]
    return (middle, *moved)


_LRS = (7.5e-4, 1.5e-3, 3e-3, 6e-3)
_HIGH = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
_CBP_ON_NORM = cross(
    lr=(7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2), rate=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), maturity=(10, 20, 50, 100)
)
GRIDS = {
    "baseline": grid(lr=(5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3, 8e-3, 1.1e-2, 1.6e-2, 2.3e-2)),
    "l2": grid(lr=_HIGH, coef=(1e-3, 1e-2, 1e-1)),
    "l2+layer_norm": grid(lr=_LRS, coef=(1e-3, 1e-2, 1e-1)),
    "l2+nap": grid(lr=_LRS, coef=(1e-4, 1e-3, 1e-2)),
    "regenerative": grid(lr=_HIGH, coef=(1e-3, 1e-2, 1e-1)),
    "regenerative+layer_norm": grid(lr=_LRS, coef=(1e-2, 1e-1, 1.0)),
    "regenerative+nap": grid(lr=_LRS, coef=(1e-2, 1e-1, 1.0)),
    "shrink_perturb": cross(
        lr=(1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2), shrink=(0.99, 0.997, 0.999, 0.9997), noise=(0.01, 0.03, 0.1, 0.3, 1.0)
    ),
    "shrink_perturb+nap": cross(
        lr=(3.75e-4, 7.5e-4, 1.5e-3, 3e-3, 6e-3),
        shrink=(0.9997, 0.9999, 0.99997, 1.0),
        noise=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    ),
    "redo": grid(lr=(1.5e-3, 3e-3, 6e-3), period=(1, 3, 10, 30), tau=(0.025,)),
    "redo+layer_norm": grid(lr=_LRS, period=(3, 10, 30), tau=(0.025,)),
    "redo+nap": grid(lr=_LRS, period=(3, 10, 30), tau=(0.025,)),
    "leaky_relu": grid(lr=(1.2e-2, 2.4e-2, 4.8e-2), negative_slope=(0.2, 0.4, 0.6, 0.8)),
    "leaky_relu+layer_norm": grid(lr=_LRS, negative_slope=(0.001, 0.01, 0.1)),
    "leaky_relu+nap": grid(lr=_LRS, negative_slope=(0.001, 0.01, 0.1)),
    "noisy_updates": grid(lr=(1.5e-3, 3e-3, 6e-3), sigma=(0.1, 1.0, 3.0, 10.0)),
    "noisy_updates+layer_norm": grid(lr=(3e-3, 6e-3, 1.2e-2), sigma=(0.1, 1.0, 3.0, 10.0)),
    "ln_weight_decay": grid(lr=(1e-3, 2e-3, 4e-3, 8e-3), weight_decay=(0.1, 0.3, 1.0)),
    "continual_backprop": cross(
        lr=(7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2), rate=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2), maturity=(20, 50, 100, 200)
    ),
    "continual_backprop+layer_norm": _CBP_ON_NORM,
    "continual_backprop+nap": _CBP_ON_NORM,
    "layer_reset": grid(lr=(6e-3, 1.2e-2, 2.4e-2, 4.8e-2), layers=(1, 2, 3)),
    "layer_reset+layer_norm": grid(lr=(1.5e-3, 3e-3, 6e-3, 1.2e-2), layers=(1, 2, 3)),
    "layer_reset+nap": grid(lr=_LRS, layers=(1, 2, 3)),
}
"""What `nap-bench tune` tries: as many configurations for every arm. An arm that is not named tries what its method tries, a method
that is not, the baseline's rates. Sizes of the laptop scale."""
TUNING_TASKS = 15
BY_RATE = "by learning rate"
"""Setting of a curve over learning rates: each point is a run of its own."""


def hyperparameters(scale: str, arm: str) -> dict[str, float]:
    """Those of an arm at a scale: tuned where the scale is, else from the sources."""
    method = arm.partition("+")[0]
    return {"lr": SIZES[scale]["lr"], **DEFAULTS.get(method, {}), **tuned("fig5_continual", scale).get(arm, {})}


def entry(
    scale: str,
    arm: str,
    *,
    setting: str = "",
    net: str = "mlp",
    hyper: dict[str, float] | None = None,
    task: dict | None = None,
    seeds: tuple[int, ...] = SEEDS,
    stack: str | None = None,
    **model: object,
) -> Entry:
    """One run. hyper, task: what differs from the arm's and the scale's.  stack: another one than the arm's."""
    from nap_bench.benchmarks import RandomLabels
    from nap_bench.optimizers import Adam
    from nap_bench.schedules import Constant
    from nap_bench.spec import ModelSpec

    size = SIZES[scale]
    hyper = {"keep": size["keep"][net], **hyperparameters(scale, arm), **(hyper or {})}
    run = make_run(
        benchmark=RandomLabels(**{**size["task"], **(task or {})}),
        model=ModelSpec(**size["nets"][net], **model),
        stack=(stack or STACKS[arm]).format(**hyper),
        optimizer=Adam(),
        schedule=Constant(hyper["lr"]),
        seeds=seeds,
    )
    return Entry(arm, setting, run)


def arms(scale: str) -> tuple[str, ...]:
    """The arms of the main comparison."""
    more = [arm for arm in MORE if arm in tuned("fig5_continual", scale)]
    return (*METHODS, *WITH_NAP, "layer_norm", *more, *MORE_METHODS, *MORE_WITH_NAP)


def runs(scale: str) -> list[Entry]:
    size = SIZES[scale]
    last = size["task"]["num_tasks"] - 1
    short = {"num_tasks": size["sensitivity"]["num_tasks"]}
    planned = []
    for net in size["nets"]:
        where = "" if net == "mlp" else net
        planned += [entry(scale, arm, net=net, setting=where) for arm in arms(scale)]
        planned += [
            entry(scale, arm, net=net, setting=f"{where} fresh".strip(), task={"first_task": last, "num_tasks": 1})
            for arm in arms(scale)
        ]
        for arm, factor in product(arms(scale), size["sensitivity"]["factors"]):
            lr = float(f"{factor * hyperparameters(scale, arm)['lr']:.3g}")
            planned.append(
                entry(scale, arm, net=net, setting=f"{where} lr={lr:g}".strip(), hyper={"lr": lr}, task=short)
            )
    return planned


def sweep_online(scale: str, seeds: tuple[int, ...]) -> dict[str, list[tuple[dict[str, float], Entry]]]:
    """What `nap-bench tune` tries: arm -> (hyperparameters, run), chosen by average online accuracy."""
    return {
        arm: [
            (hyper, entry(scale, arm, hyper=hyper, seeds=seeds, task={"num_tasks": TUNING_TASKS}))
            for hyper in GRIDS.get(arm, GRIDS.get(arm.partition("+")[0], GRIDS["baseline"]))
        ]
        for arm in STACKS
    }


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    last: dict[tuple[str, str], tuple[Labelled, object]] = {}
    short: dict[tuple[str, str], int] = {}
    whole = []
    for labelled in results:
        steps, online_TS = labelled.series("online/accuracy")
        where, rate, _ = labelled.setting.partition("lr=")
        if rate:
            short[labelled.arm, where.strip()] = len(online_TS)
            yield from _at_rate(labelled, where, online_TS)
            continue
        last[labelled.arm, labelled.setting] = labelled, online_TS[-1]
        yield from scalar(labelled, "last_task_online_accuracy", online_TS[-1])
        if "fresh" not in labelled.setting:
            whole.append((labelled, online_TS))
            tasks = steps / labelled.params["steps_per_task"]
            yield from curve(labelled, "online_accuracy", tasks, online_TS)
            yield from scalar(labelled, "average_online_accuracy", online_TS.mean(axis=0))
    for labelled, online_TS in whole:
        if num_tasks := short.get((labelled.arm, labelled.setting)):
            yield from _at_rate(labelled, labelled.setting, online_TS[:num_tasks])
    for (arm, setting), (labelled, aged_S) in last.items():
        fresh = last.get((arm, f"{setting} fresh".strip()))
        if "fresh" not in setting and fresh is not None:
            yield from scalar(labelled, "gap_to_fresh", fresh[1] - aged_S)


def _at_rate(labelled: Labelled, where: str, online_TS: np.ndarray) -> Iterator[Score]:
    """A point of the curve over learning rates."""
    lr = labelled.result["spec"]["schedule"]["params"]["lr"]
    for row in scalar(labelled, "sensitivity", online_TS.mean(axis=0)):
        yield row._replace(setting=f"{where.strip()} {BY_RATE}".strip(), x=lr)


def _better(label: str, arm: str, against: str, setting: str = "") -> Paired:
    return Paired(
        label=label,
        measure="average_online_accuracy",
        better="higher",
        arm=arm,
        against=against,
        setting=setting,
        if_diverged=0.0,
    )


def _name(method: str) -> str:
    return method.replace("_", " ")


def _shrinks(setting: str) -> tuple[Spread, ...]:
    return (
        Spread(
            label="standard deviation over methods, without NaP - with NaP",
            measure="average_online_accuracy",
            better="higher",
            arms=WITH_NAP,
            against=METHODS,
            setting=setting,
            if_diverged=0.0,
        ),
    )


def _improves(setting: str, methods: Iterable[str] = METHODS) -> tuple[Paired, ...]:
    return tuple(
        _better(f"{_name(method)} with NaP - without", combined(method, "nap"), method, setting)
        for method in methods
        if method != "redo"
    )


def _best(setting: str) -> tuple[Paired, ...]:
    best = ("regenerative", "redo")
    return tuple(
        _better(f"{_name(method)} - {_name(other)}", method, other, setting)
        for method in best
        for other in METHODS
        if other not in best
    )


_UNIT = "average online accuracy"
_SOURCE = "Sec. 5.1, Fig. 5"
CLAIMS = (
    Claim(
        id="nap_shrinks_the_spread",
        source=_SOURCE,
        sentence="Without NaP the methods differ widely; with NaP the spread between them shrinks (perceptron).",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=_shrinks(""),
        paper_claim=10,
    ),
    Claim(
        id="nap_improves_every_method_but_redo",
        source=_SOURCE,
        sentence="Every method but ReDo improves with NaP (perceptron).",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=_improves(""),
        paper_claim=11,
    ),
    Claim(
        id="nap_does_not_improve_redo",
        source=_SOURCE,
        sentence="ReDo is the exception: it is as good without NaP (perceptron).",
        kind="noninferiority",
        margin=0.02,
        unit=_UNIT,
        measurements=(_better("redo without NaP - with", "redo", "redo+nap"),),
        paper_claim=11,
    ),
    Claim(
        id="regenerative_and_redo_are_best_without_nap",
        source=_SOURCE,
        sentence="Without NaP, regenerative regularisation and ReDo are best (perceptron).",
        kind="superiority",
        margin=0.0,
        unit=_UNIT,
        measurements=_best(""),
        paper_claim=12,
    ),
    Claim(
        id="nap_keeps_up_with_a_fresh_network",
        source="Sec. 5.1 (ours)",
        sentence="On the last task an aged network with NaP learns as well as a fresh one.",
        kind="noninferiority",
        margin=0.05,
        unit="online accuracy on the last task",
        measurements=(
            Paired(
                label="aged - fresh",
                measure="last_task_online_accuracy",
                better="higher",
                arm="nap",
                against="nap",
                against_setting="fresh",
                if_diverged=0.0,
            ),
        ),
    ),
    Claim(
        id="nap_not_worse_than_tuned_weight_decay",
        source="Sec. 3.3 (ours)",
        sentence="NaP alone is as good as LayerNorm with tuned weight decay, or better (where it was tuned).",
        kind="noninferiority",
        margin=0.02,
        unit=_UNIT,
        measurements=(_better("NaP - LN + weight decay", "nap", "ln_weight_decay"),),
    ),
    Claim(
        id="nap_improves_the_other_methods",
        source="Sec. 5.1 (ours)",
        sentence="Continual backprop, CReLU, the resets and the other norms improve with NaP too (perceptron).",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=_improves("", MORE_METHODS),
    ),
    Claim(
        id="nap_shrinks_the_spread_of_convolutional_networks",
        source=_SOURCE,
        sentence="With NaP the spread between the methods shrinks (convolutional network; not at laptop scale).",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=_shrinks("cnn"),
    ),
    Claim(
        id="nap_improves_every_method_but_redo_of_convolutional_networks",
        source=_SOURCE,
        sentence="Every method but ReDo improves with NaP (convolutional network; not at laptop scale).",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=_improves("cnn"),
    ),
)
_CHANCE = (0.1, "chance")


def _panels(where: str, net: str, scales: tuple[str, ...]) -> tuple[Panel, ...]:
    """The panels of one network. net: how their titles call it."""
    groups = (
        ("without NaP", (*METHODS, "layer_norm", "ln_weight_decay")),
        ("with NaP", WITH_NAP),
        ("other methods", MORE_METHODS),
        ("other methods with NaP", MORE_WITH_NAP),
    )
    online = tuple(
        Panel(
            kind="curve",
            measure="online_accuracy",
            title=f"Online accuracy{net}, {which}",
            xlabel="task",
            ylabel="accuracy before the update",
            arms=shown,
            setting=where,
            reference=_CHANCE,
            scales=scales,
        )
        for which, shown in groups
    )
    rates = tuple(
        Panel(
            kind="curve",
            measure="sensitivity",
            title=f"Learning rate{net}, {which}",
            xlabel="learning rate",
            ylabel="average online accuracy",
            arms=shown,
            setting=f"{where} {BY_RATE}".strip(),
            logx=True,
            scales=scales,
        )
        for which, shown in groups
    )
    average = Panel(
        kind="interval",
        measure="average_online_accuracy",
        title=f"Average online accuracy{net}",
        xlabel="accuracy before the update",
        arms=(
            *(arm for method in (*METHODS, *MORE_METHODS) for arm in (method, combined(method, "nap"))),
            "layer_norm",
            *MORE,
        ),
        setting=where,
        reference=_CHANCE,
        scales=scales,
    )
    gap = Panel(
        kind="interval",
        measure="gap_to_fresh",
        title=f"Gap to a fresh network{net}, last task",
        xlabel="fresh - aged, online accuracy",
        setting=where,
        reference=(0.0, "no gap"),
        scales=scales,
    )
    return (*online, *rates, average, gap)


PANELS = (*_panels("", "", ()), *_panels("cnn", " (CNN)", LARGER))

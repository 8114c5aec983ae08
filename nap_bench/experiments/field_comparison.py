"""The field: every method on nine streams that people compare methods on, by rank, with what each costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from nap_bench import stats
from nap_bench.experiments import fig5_continual as fig5
from nap_bench.experiments import rl_sequence
from nap_bench.experiments.base import Entry, Labelled, curve, scalar, tuned
from nap_bench.experiments.fig5_continual import combined, cross
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel, look
from nap_bench.report.scores import Score, Scores
from nap_bench.report.tables import DASH, amounts, estimate_and_span

TITLE = "The field"
PAPER = (
    "Not in the paper, which compares six methods on one stream (Sec. 5.1). Others compare theirs on streams of their own: single "
    "examples of permuted MNIST and a regression that changes slowly (Dohare et al. 2024), permuted labels and inputs (Elsayed & "
    "Mahmood 2024), hard and easy tasks in turn (Kumar et al. 2023), warm starts (Ash & Adams 2020)."
)
DEVIATIONS = (
    "Hyperparameters: at laptop scale each method's own, alone and with NaP, tuned on re-drawn labels with the same effort (twelve "
    "configurations), on every stream; on the regression one rate, 0.01, for all. At larger scales nothing is tuned: on each "
    "stream one rate for all arms, its source's, and the methods' own defaults. Those are their authors' where a method's page "
    "says so, and ours for the strengths of spectral regularisation and weight clipping, for SNR's windows and for weight decay; "
    "InFeR's are recalled. InFeR's heads regress to 100 times their initial outputs in Rainbow, as there, and to these outputs on "
    "the other streams, which is ours: for supervised networks we know of no value.",
    "Plasticity injection injects once, at the task in the middle of a stream. SNR looks at its counts once a task at laptop "
    "scale. Where it is not tuned its threshold does not fall below 100 examples, as in its authors' code.",
    "Laptop scale: re-drawn labels, as Fig. 5 here, and 5 tasks of 200 updates of the slowly changing regression; Rainbow's arms "
    "are those of rl_sequence. At larger scales Rainbow has every method that can act on it, weights on a sphere with RMSNorm in "
    "place of learned factors, which its layers do not have.",
    "Cells that cannot be: BatchNorm on single examples, GroupNorm in the regression's five units, weight normalisation in "
    "Rainbow, which is therefore not among the streams of the average. All of Rainbow's arms reset the optimizer at a switch, so "
    "that is no arm of its own there. GroupNorm has two groups where four do not divide a layer. The implicit schedule is not "
    "here: it needs NaP.",
    "Workstation scale: 200,000 updates of each stream of single examples but the regression, which has its million; permuted "
    "MNIST with layers of 100 units and tasks of 10,000 images. Paper scale: the sources' lengths and sizes.",
    "Adam on re-drawn labels, hard and easy tasks and warm starts; plain SGD, as in the sources, on the others at larger scales "
    "(Elsayed & Mahmood search the rate for every method: here it is 0.01 for all). At laptop scale Adam everywhere.",
    "CIFAR-10 with permuted labels: their network has no nonlinearity after its convolutions; ours has one. Their third image "
    "stream, of mini-ImageNet's features, is not here. Hard and easy tasks: Kumar et al. standardise channel by channel, by "
    "CIFAR-10's mean and deviation; here over all pixels.",
    "Warm starts: the perceptron of Ash & Adams (2 x 100; ReLU as in their code, tanh in their paper), not their ResNet-18: its "
    "BatchNorm would exclude every other norm. "
    "2600 updates, ten passes over all data, for each half. Theirs begin the second with a new optimizer; here the arm optimizer "
    "reset does, and the others keep it.",
    "Performance: average accuracy before the update; on hard and easy tasks that of the hard ones, on warm starts the accuracy on "
    "held-out images at the end, on the regression minus the squared error, in Rainbow the normalised return over the last cycle.",
    "Share of better methods: of the other methods that ran on a stream, alone, how many did better, ties counting half, seed by "
    "seed; 0 is the best of all. It is averaged, with equal weight, over the streams that a plain network, LayerNorm, NaP and "
    "every method that Fig. 5 here does not have ran on; a method that misses one has no average. A diverged seed is the worst. "
    "Which methods ran is part of it: shares of different scales do not compare.",
    "DASH, plasticity injection, layer, full and optimizer resets are told of task switches; the others are not. Hare & "
    "Tortoise is tuned and ranked by the hare's accuracy before the update, but on warm starts and in Rainbow by the "
    "tortoise's, as everything that is evaluated.",
)

OLD = (*fig5.METHODS, "layer_norm", *fig5.MORE_METHODS)
FIELD = {
    "plasticity_injection": "plasticity_injection(tasks=({middle},))",
    "spectral": "spectral(coef={coef})",
    "parseval": "parseval(coef={coef})",
    "weight_clipping": "weight_clipping(kappa={kappa})",
    "weight_norm": "weight_norm",
    "hyperspherical": "hyperspherical",
    "snr": "snr(percentile={percentile}, start={start}, refresh={refresh}, shortest={shortest})",
    "hare_tortoise": "hare_tortoise(momentum={momentum}, period={period})",
    "upgd": "upgd(sigma={sigma}, decay={decay})",
    "dash": "dash(floor={floor}, newest={newest})",
    "infer": "infer(coef={coef}, scale={scale})",
    "regrama": "regrama(period={period}, tau={tau})",
    "weight_decay": "weight_decay(coef={coef})",
}
"""The methods that Fig. 5 here does not have."""
DEFAULTS: dict[str, dict[str, float]] = {
    "spectral": {"coef": 1e-3},
    "parseval": {"coef": 1e-3},
    "weight_clipping": {"kappa": 2.0},
    "snr": {"percentile": 0.99, "start": 100, "refresh": 1000},
    "hare_tortoise": {"momentum": 0.999, "period": 2000},
    "upgd": {"sigma": 0.001, "decay": 0.999},
    "dash": {"floor": 0.3, "newest": 0.3},
    "infer": {"coef": 0.1, "scale": 1.0},
    "regrama": {"period": 1000, "tau": 0.01},
    "weight_decay": {"coef": 0.1},
}
"""Where nothing is tuned: the methods' own defaults, whose sources their pages name, but for InFeR's scale outside Rainbow."""
OF_RAINBOW: dict[str, dict[str, Any]] = {"infer": {"scale": 100.0}}
SHORTEST_EXAMPLES = 100
"""SNR's smallest threshold in its authors' code, in examples."""
WITH_NAP = tuple(combined(method, "nap") for method in FIELD)
SWEPT = (*FIELD, *WITH_NAP)
"""What `nap-bench tune` tries."""
ALONE = (*OLD, *FIELD, "nap")
"""Whom a method is compared with."""
STACKS = {
    **{arm: fig5.STACKS[arm] for arm in (*OLD, "nap")},
    **FIELD,
    **{combined(method, "nap"): f"{stack}+{fig5.NORMS['nap']}" for method, stack in FIELD.items()},
}
_LRS = (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2)
_MORE_LRS = (*_LRS, 2.4e-2, 4.8e-2)
_NAP_LRS = (3.75e-4, 7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
_RATES = fig5.GRIDS["baseline"]
GRIDS: dict[str, tuple[dict[str, float], ...]] = {
    "plasticity_injection": _RATES,
    "spectral": cross(lr=(*_MORE_LRS[1:], 9.6e-2), coef=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "parseval": cross(lr=_MORE_LRS, coef=(1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1)),
    "weight_clipping": cross(lr=_MORE_LRS, kappa=(0.5, 1.0, 1.5, 2.0, 3.0, 5.0)),
    "weight_norm": _RATES,
    "hyperspherical": _RATES,
    "snr": cross(lr=_LRS, percentile=(0.9, 0.95, 0.98, 0.99), start=(3, 10, 30, 100, 300)),
    "hare_tortoise": cross(lr=_LRS, momentum=(0.9, 0.97, 0.99, 0.997), period=(10, 30, 100, 300, 1000)),
    "upgd": cross(lr=_MORE_LRS[2:], sigma=(0.01, 0.1, 1.0, 3.0, 10.0), decay=(0.9, 0.99, 0.999, 0.9999)),
    "dash": cross(lr=_LRS, floor=(0.1, 0.3, 0.5, 0.7, 0.9), newest=(0.1, 0.3, 0.6, 1.0)),
    "infer": cross(lr=_LRS, coef=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1), scale=(1.0, 3.0, 10.0, 100.0)),
    "regrama": cross(lr=_LRS, period=(3, 10, 30, 100), tau=(0.003, 0.01, 0.03, 0.1, 0.3)),
    "dash+nap": cross(lr=_LRS, floor=(0.5, 0.7, 0.9, 0.95, 0.98), newest=(0.1, 0.3, 0.6, 1.0)),
    "hare_tortoise+nap": cross(lr=_LRS, momentum=(0.97, 0.99, 0.997, 0.999), period=(10, 30, 100, 300, 1000)),
    "infer+nap": cross(lr=_LRS, coef=(1e-3, 1e-2, 1e-1, 1.0, 10.0), scale=(1.0, 3.0, 10.0, 100.0)),
    "spectral+nap": cross(lr=_NAP_LRS, coef=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)),
    "parseval+nap": cross(lr=_NAP_LRS, coef=(1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1)),
    "weight_clipping+nap": cross(lr=_NAP_LRS, kappa=(0.5, 1.0, 1.5, 2.0, 3.0, 5.0)),
    "upgd+nap": cross(lr=_NAP_LRS[1:-1], sigma=(0.01, 0.1, 1.0, 3.0, 10.0), decay=(0.5, 0.7, 0.9, 0.99)),
    "weight_decay": cross(lr=_MORE_LRS, coef=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "weight_decay+nap": cross(lr=_NAP_LRS, coef=(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)),
    "regrama+nap": cross(lr=_LRS, period=(30, 100, 300, 1000), tau=(0.003, 0.01, 0.03, 0.1, 0.3)),
}
"""What `nap-bench tune` tries, twelve configurations for every arm. An arm that is not named tries what its method tries."""

MAIN = ""
RL = "rainbow"
ALL = "all streams"
LARGER = ("workstation", "paper")
SEEDS = fig5.SEEDS
NAMES = {
    MAIN: "re-drawn labels",
    "regression": "slowly changing regression",
    "permuted_mnist": "online permuted MNIST",
    "permuted_inputs": "input-permuted MNIST",
    "permuted_emnist": "label-permuted EMNIST",
    "permuted_cifar10": "label-permuted CIFAR-10",
    "hard_and_easy": "5+1 CIFAR-100",
    "warm_start": "warm start",
    RL: "Rainbow",
}
ONLY_LARGER = tuple(stream for stream in NAMES if stream not in (MAIN, "regression", RL))
_LENET = (("channels", (6, 16)), ("kernel", 5), ("padding", 0), ("pool_after", (0, 1)), ("widths", (120, 84)))
_KUMAR = (("channels", (16, 16)), ("kernel", 5), ("padding", 0), ("pool_after", (0, 1)), ("widths", (100, 100)))
LENGTHS = {
    "laptop": dict(regression=dict(num_tasks=5, steps_per_task=200, eval_examples=100)),
    "workstation": dict(
        regression=dict(num_tasks=100),
        permuted_mnist=dict(num_examples=10000, num_tasks=20, steps_per_task=10000),
        permuted_inputs=dict(num_tasks=40),
        permuted_labels=dict(num_tasks=80),
        width=100,
    ),
    "paper": dict(
        regression=dict(num_tasks=100),
        permuted_mnist=dict(num_examples=60000, num_tasks=800, steps_per_task=60000),
        permuted_inputs=dict(num_tasks=200),
        permuted_labels=dict(num_tasks=400),
        width=2000,
    ),
}


def streams(scale: str) -> dict[str, tuple[Any, Any, Any, float]]:
    """Stream -> (benchmark, model, optimizer, rate) of the supervised ones but re-drawn labels."""
    from nap_bench.benchmarks import HardAndEasy, PermutedInputs, RandomLabels, SlowlyChangingRegression, WarmStart
    from nap_bench.optimizers import SGD, Adam
    from nap_bench.spec import ModelSpec

    size = LENGTHS[scale]

    def mlp(*widths: int, **model: Any) -> ModelSpec:
        return ModelSpec(family="mlp", size=(("widths", widths),), **model)

    regression = (SlowlyChangingRegression(**size["regression"]), mlp(5, init="he_uniform"))
    if scale == "laptop":
        return {"regression": (*regression, Adam(), 0.01)}
    single = dict(batch_size=1, whole_passes=True, eval_examples=1000)
    labels = dict(single, labels="permuted", pixels="symmetric", steps_per_task=2500, **size["permuted_labels"])
    return {
        "regression": (*regression, SGD(), 0.01),
        "permuted_mnist": (
            PermutedInputs(
                dataset="mnist", pixels="unit", permutations="compounding", **single, **size["permuted_mnist"]
            ),
            mlp(*[size["width"]] * 3, init="he_uniform"),
            SGD(),
            0.003,
        ),
        "permuted_inputs": (
            PermutedInputs(
                dataset="mnist",
                num_examples=5000,
                steps_per_task=5000,
                permutations="fresh",
                pixels="symmetric",
                **single,
                **size["permuted_inputs"],
            ),
            mlp(300, 150),
            SGD(),
            0.01,
        ),
        "permuted_emnist": (
            RandomLabels(dataset="emnist", num_examples=112800, **labels),
            mlp(300, 150),
            SGD(),
            0.01,
        ),
        "permuted_cifar10": (
            RandomLabels(dataset="cifar10", num_examples=50000, **labels),
            ModelSpec(family="cnn", size=_LENET),
            SGD(),
            0.01,
        ),
        "hard_and_easy": (
            HardAndEasy(dataset="cifar100", num_examples=50000, num_tasks=30, steps_per_task=780, batch_size=32),
            ModelSpec(family="cnn", size=_KUMAR),
            Adam(),
            1e-3,
        ),
        "warm_start": (
            WarmStart(
                dataset="cifar10",
                num_examples=33333,
                held_out=16667,
                num_tasks=2,
                steps_per_task=2600,
                batch_size=128,
                pixels="symmetric",
            ),
            mlp(100, 100),
            Adam(),
            1e-3,
        ),
    }


REFRESH = 100
"""Updates between two looks of `snr` at its counts, at laptop scale: a task of re-drawn labels."""


def hyperparameters(scale: str, arm: str, stream: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Those of an arm on re-drawn labels: tuned where the scale is, else from the sources.

    stream: num_tasks and batch_size of another one.
    """
    method, chosen = arm.partition("+")[0], tuned("field_comparison", scale)
    size = stream or fig5.SIZES[scale]["task"]
    own = {**DEFAULTS.get(method, {}), **chosen.get(arm, {}), "middle": size["num_tasks"] // 2}
    if scale == "laptop":
        own["refresh"] = REFRESH
    if method == "snr":
        is_tuned = scale == "laptop" and stream is None
        own["shortest"] = 1 if is_tuned else max(1, round(SHORTEST_EXAMPLES / size["batch_size"]))
        own["start"] = max(own["start"], own["shortest"])
    return {**fig5.hyperparameters(scale, arm), **own}


def entry(
    scale: str, arm: str, *, hyper: dict[str, float] | None = None, stack: str | None = None, **more: Any
) -> Entry:
    """A run on re-drawn labels. stack: another than the arm's."""
    hyper = {**hyperparameters(scale, arm), **(hyper or {})}
    return fig5.entry(scale, arm, hyper=hyper, stack=stack or STACKS[arm], **more)


def exists(run: Any) -> bool:
    """Whether a network can have a method: a layer of five units has no four groups to normalise."""
    from nap_bench.methods import stack_of

    return stack_of(run.methods).why_not(run) is None


OTHERWISE = {"group_norm": "group_norm(groups=2)", "hyperspherical": "hyperspherical(scale=False)+rms_norm"}
"""In place of an arm's stack, on streams where that cannot be."""


def stacks(arm: str) -> list[str]:
    """The arm's own stack, then what stands in for it."""
    return [stack for stack in (STACKS[arm], OTHERWISE.get(arm)) if stack]


def possible(entries: Iterable[Entry]) -> list[Entry]:
    """The first that can be, if one can."""
    return [made for made in entries if exists(made.run)][:1]


def runs(scale: str) -> list[Entry]:
    from nap_bench.schedules import Constant
    from nap_bench.spec import Part

    planned = [entry(scale, arm) for arm in (*ALONE, *WITH_NAP)]
    for stream, (benchmark, model, optimizer, lr) in streams(scale).items():
        size = {"num_tasks": benchmark.num_tasks, "batch_size": benchmark.batch_size}
        parts = {"benchmark": benchmark, "optimizer": optimizer, "schedule": Constant(lr)}
        changes = {"model": model, **{name: Part.of(part) for name, part in parts.items()}}
        for arm in ALONE:
            hyper = hyperparameters(scale, arm, size)
            made = [entry(scale, arm, hyper=hyper, stack=stack).run for stack in stacks(arm)]
            planned += possible(Entry(arm, stream, dataclasses.replace(run, **changes)) for run in made)
    return planned + [made._replace(setting=RL) for made in _of_rainbow(scale)]


def _of_rainbow(scale: str) -> list[Entry]:
    """On rl_sequence: its own arms, and at larger scales every method."""
    from nap_bench.benchmarks import CatchSequence

    made = [rl_sequence.entry(scale, arm) for arm in rl_sequence.STACKS]
    benchmark = CatchSequence(**rl_sequence.SIZES[scale]["task"])
    size = {"num_tasks": benchmark.num_visits, "batch_size": benchmark.batch_size}
    for arm in ALONE if scale in LARGER else ():
        if arm in rl_sequence.STACKS or arm == "optimizer_reset":
            continue
        hyper = {"keep": 0.77, **hyperparameters(scale, arm, size), **OF_RAINBOW.get(arm, {})}
        tried = [f"optimizer_reset+{stack.format(**hyper)}" for stack in stacks(arm)]
        made += possible(rl_sequence.entry(scale, arm, stack=stack) for stack in tried)
    return made


def cells(arm: str, setting: str, scale: str) -> list[tuple[str, str]]:
    """Where the scores of a run stand: on its stream, and among those of all streams (Rainbow has more seeds than these)."""
    return [(arm, setting), (arm, ALL)] if arm in ALONE and setting != RL else [(arm, setting)]


def sweep_online(scale: str, seeds: tuple[int, ...]) -> dict[str, list[tuple[dict[str, float], Entry]]]:
    """What `nap-bench tune` tries for the methods that Fig. 5 here does not have, as there."""
    return {
        arm: [
            (hyper, entry(scale, arm, hyper=hyper, seeds=seeds, task={"num_tasks": fig5.TUNING_TASKS}))
            for hyper in GRIDS.get(arm, GRIDS[arm.partition("+")[0]])
        ]
        for arm in SWEPT
    }


def performance(labelled: Labelled) -> np.ndarray:
    """[S], larger is better; NaN where a seed diverged."""
    if labelled.setting == RL:
        visits = rl_sequence.last_visits(labelled.params)
        return rl_sequence.normalised(labelled)[visits.start :].mean(axis=(0, 1))
    if labelled.setting == "warm_start":
        return labelled.series("task_end/test_accuracy")[1][-1]
    if labelled.setting == "regression":
        return -labelled.series("online/loss")[1].mean(axis=0)
    online_TS = labelled.series("online/accuracy")[1]
    return online_TS[::2].mean(axis=0) if labelled.setting == "hard_and_easy" else online_TS.mean(axis=0)


def share_better(values_AS: np.ndarray) -> np.ndarray:
    """[A, S]: of the other arms, the share that did better, ties counting half; a diverged one (NaN) is worse than any number."""
    values_AS = np.where(np.isnan(values_AS), -np.inf, values_AS)
    better_AAS = values_AS[None] > values_AS[:, None]
    tied_AAS = values_AS[None] == values_AS[:, None]
    num_others = len(values_AS) - 1
    return (better_AAS.sum(axis=1) + 0.5 * (tied_AAS.sum(axis=1) - 1)) / num_others


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """performance and curves of every run; share_better among methods alone, per stream and over common ones; relative_cost."""
    by_stream: dict[str, dict[str, Labelled]] = {}
    for labelled in results:
        by_stream.setdefault(labelled.setting, {})[labelled.arm] = labelled
        yield from scalar(labelled, "performance", performance(labelled))
        if labelled.setting != RL:
            metric = "online/loss" if labelled.setting == "regression" else "online/accuracy"
            steps, online_TS = labelled.series(metric)
            measure = metric.replace("/", "_")
            yield from curve(labelled, measure, steps / labelled.params["steps_per_task"], online_TS)
    over_streams: dict[str, list[dict[int, float]]] = {}
    asked = {"baseline", "layer_norm", "nap", *FIELD} & {arm for found in by_stream.values() for arm in found}
    common = [stream for stream, found in by_stream.items() if asked <= found.keys()]
    for stream, found in by_stream.items():
        alone = {arm: labelled for arm, labelled in found.items() if arm in ALONE}
        if len(alone) > 1:
            seeds = sorted(set.intersection(*(set(labelled.seeds) for labelled in alone.values())))
            rows = [dict(zip(one.seeds, performance(one), strict=True)) for one in alone.values()]
            shares_AS = share_better(np.array([[row[seed] for seed in seeds] for row in rows]))
            for arm, shares_S in zip(alone, shares_AS, strict=True):
                if stream in common:
                    over_streams.setdefault(arm, []).append(dict(zip(seeds, shares_S.tolist(), strict=True)))
                for seed, share in zip(seeds, shares_S, strict=True):
                    yield Score(arm, stream, "share_better", None, seed, float(share))
        if baseline := found.get("baseline"):
            seconds = _seconds(baseline)
            for labelled in found.values():
                ratio_S = np.full(len(labelled.seeds), _seconds(labelled) / seconds)
                yield from scalar(labelled, "relative_cost", ratio_S)
    for arm, shares in over_streams.items():
        if len(shares) < len(common):
            continue
        for seed in sorted(set.intersection(*(set(share) for share in shares))):
            yield Score(arm, ALL, "share_better", None, seed, float(np.mean([share[seed] for share in shares])))


def _seconds(labelled: Labelled) -> float:
    """Of an update, on whatever the run had."""
    return 1.0 / labelled.result["cost"]["steps_per_second"]


def tables(scores: Scores) -> list[dict[str, Any]]:
    """Methods in the order of their average share, with their performance on every stream and what an update costs."""
    there = [stream for stream in NAMES if any(scores.has("share_better", arm, stream) for arm in ALONE)]
    means = {
        arm: stats.mean_interval(list(scores.values("share_better", arm, ALL).values()))
        for arm in ALONE
        if scores.has("share_better", arm, ALL)
    }
    ran = [arm for arm in ALONE if any(scores.has("share_better", arm, stream) for stream in there)]
    rows = []
    for arm in sorted(ran, key=lambda arm: means[arm].estimate if arm in means else np.inf):
        mean = means.get(arm)
        row = [look(arm).label, *(estimate_and_span(mean.estimate, mean.low, mean.high) if mean else (DASH, DASH))]
        num = sum(scores.has("share_better", arm, stream) for stream in there)
        row.append(str(num))
        for stream in there:
            if not scores.has("performance", arm, stream):
                row.append(DASH)
                continue
            values = [value for value in scores.values("performance", arm, stream).values() if np.isfinite(value)]
            row += amounts([float(np.mean(values)) if values else None])
        costs = [
            next(iter(scores.values("relative_cost", arm, stream).values()))
            for stream in there
            if scores.has("relative_cost", arm, stream)
        ]
        rows.append([*row, *amounts([float(np.exp(np.mean(np.log(costs)))) if costs else None])])
    columns = ("method", "better share", "95 % interval", "streams", *(NAMES[stream] for stream in there), "cost")
    note = (
        "Better share: of the other methods, how many did better, seed by seed, averaged over the streams that a plain network, "
        "LayerNorm, NaP and all new methods ran on; 0 is best, a dash stands where one is missing. Streams: mean "
        "performance over seeds that did not diverge. Cost: seconds of an update over the baseline's, geometric mean over "
        "streams, of single runs beside others on the same machine: docs/methods quotes measured ones."
    )
    return [{"title": "Methods by rank", "columns": columns, "rows": rows, "note": note}] if rows else []


def _rank(arm: str, against: str, setting: str = ALL) -> Paired:
    return Paired(
        label=f"{look(arm).label} - {look(against).label}",
        measure="share_better",
        better="lower",
        arm=arm,
        against=against,
        setting=setting,
        if_diverged=1.0,
    )


def _gain(arm: str, against: str) -> Paired:
    return Paired(
        label=f"{look(arm).label} - {look(against).label}",
        measure="performance",
        better="higher",
        arm=arm,
        against=against,
        setting=MAIN,
        if_diverged=0.0,
    )


_SHARE = "share of the other methods that are better, over streams"
CLAIMS = (
    Claim(
        id="nap_ranks_above_a_plain_network",
        source="Sec. 5.1 (ours)",
        sentence="Over the streams that all were run on NaP ranks above a plain network.",
        kind="superiority",
        margin=0.1,
        unit=_SHARE,
        measurements=(_rank("nap", "baseline"),),
    ),
    Claim(
        id="nap_ranks_above_layer_norm",
        source="Sec. 5.1 (ours)",
        sentence="Over the streams that all were run on NaP ranks above LayerNorm alone.",
        kind="superiority",
        margin=0.0,
        unit=_SHARE,
        measurements=(_rank("nap", "layer_norm"),),
    ),
    Claim(
        id="no_method_of_the_field_ranks_above_nap",
        source="Sec. 5.1 (ours)",
        sentence="Over the streams that all were run on none of the methods that Fig. 5 here does not have ranks above NaP.",
        kind="noninferiority",
        margin=0.1,
        unit=_SHARE,
        measurements=tuple(_rank("nap", method) for method in FIELD),
    ),
    Claim(
        id="every_method_of_the_field_beats_a_plain_network",
        source="their authors (stream: Sec. 5.1)",
        sentence="Each of the methods that Fig. 5 here does not have beats a plain network on re-drawn labels.",
        kind="superiority",
        margin=0.02,
        unit="average online accuracy",
        measurements=tuple(_gain(method, "baseline") for method in FIELD),
    ),
    Claim(
        id="nap_improves_the_methods_of_the_field",
        source="Sec. 5.1 (ours)",
        sentence="Each of the methods that Fig. 5 here does not have improves with NaP on re-drawn labels.",
        kind="superiority",
        margin=0.02,
        unit="average online accuracy",
        measurements=tuple(_gain(combined(method, "nap"), method) for method in FIELD),
    ),
)
PANELS = (
    Panel(
        kind="interval",
        measure="share_better",
        title="Share of better methods, over streams",
        xlabel="0 is best",
        arms=ALONE,
        setting=ALL,
        reference=(0.5, "middle"),
    ),
    *(
        Panel(
            kind="interval",
            measure="performance",
            title=f"{name[0].upper()}{name[1:]}",
            xlabel="performance",
            setting=stream,
            scales=LARGER if stream in ONLY_LARGER else (),
        )
        for stream, name in NAMES.items()
    ),
)

"""Table 1, left, on images: where nothing changes, does NaP cost accuracy?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel, look, middle
from nap_bench.report.scores import Score, Scores
from nap_bench.report.tables import DASH, estimate_and_span

TITLE = "Stationary images"
PAPER = (
    "Section 5.2, Table 1 (left), B.4: a VGG16-like network on CIFAR-10 (SGD with Nesterov momentum 0.9, batch 32, 400,000 "
    "updates, learning rate 0.025 with step decays) and ResNet-50 v2 on ImageNet-1k (cosine, batch 256, weight decay 1e-4, label "
    "smoothing 0.1), as baseline, with LayerNorm only, and with NaP: all three are comparable."
)
DEVIATIONS = (
    "Laptop scale: 1200 of scikit-learn's 8x8 digits and 597 to test on, 90 updates, no augmentation, a VGG-like network of four "
    "convolutions (16, 16, 32, 32) and 64 units; sizes were tried on tuning seeds. Workstation: CIFAR-10 with 40,000 updates. "
    "ImageNet is read at paper scale alone, and there without the methods other than NaP.",
    "The digits are standardised with the mean and deviation of all 1797 images, those to test on included: two numbers. Which are "
    "to test on is drawn once, for whatever seed: tuning seeds and reported seeds have the same test images.",
    "VGG16-like: the 13 convolutions of VGG16 with BatchNorm before every ReLU, one hidden linear layer of 512, no dropout "
    "('VGG16-like' is all that is said). ResNet-50 v2: projections in each stage's first block, from its normalised input; strides "
    "in 3 x 3 convolutions; no zero-initialised scale. Initial weights are He's in both (not given).",
    "LayerNorm's statistics are over channels, height and width. It stands before every BatchNorm, also on the residual stream, "
    "with a scale and without an offset (A.4, B.4); eps 1e-5.",
    "NaP projects every kernel by itself. In the residual network those that write into a sum are scale-invariant only together "
    "(the paper counts every layer); scale and offset are free, as in its single-task evaluations.",
    "Learning rate: the paper's 0.025 for VGG at every scale, 0.1 for ResNet (not given; He et al. 2016), for all arms; nothing is "
    "tuned. Steps by 0.1 after a half and three quarters (not given). ImageNet: 90 passes (not given).",
    "Weight decay 1e-4 on ImageNet is the method `l2` over hidden and output weights, in all arms: a penalty in SGD's gradient, as "
    "it is usually written, not a decoupled decay. Under NaP the projection puts back what it takes from hidden weights.",
    "Augmentation: CIFAR-10 padded by 4 pixels of the mean grey, cut out at random, mirrored; ImageNet by random crops of 8 to 100 "
    "per cent of the area, mirrored, tested on the middle of images ('standard' is all that is said). The former on the "
    "device, the latter where files are read, on the CPU.",
    "Other methods and norms are ours, with values of their sources and untuned: L2 5e-4 (Zagoruyko & Komodakis 2016), Shrink & "
    "Perturb and ReDo as in `fig5_continual`; at laptop scale ReDo looks every 20 updates. Tried on tuning seeds it found nothing "
    "to recycle there, behind BatchNorm: its arms are then the baseline and NaP, bit for bit.",
    "Accuracy is that at the end of training, not the best of the run. Seeds: 8, on ImageNet 3 (not given).",
)

METHODS = {
    "l2": "l2(coef=0.0005, over='weights')",
    "shrink_perturb": "shrink_perturb(shrink=0.9999, noise=0.01)",
    "redo": "redo(period={redo_period}, tau=0.1)",
}
CORE = {"baseline": "baseline", "norm_only": "layer_norm", "nap": "nap"}
ARMS = {**CORE, **METHODS, **{f"{name}+nap": f"{stack}+nap" for name, stack in METHODS.items()}}
NORMS = {
    "rms_norm": "rms_norm",
    "group_norm": "group_norm",
    "rms_norm+nap": "nap(norm='rms')",
    "group_norm+nap": "nap(norm='group')",
    "batch_norm+nap": "nap(norm='none')",
}
"""Other norms in LayerNorm's place; with the network's own BatchNorm there, nothing is added but the projection."""
LARGE = {
    "continual_backprop": "continual_backprop",
    "continual_backprop+nap": "continual_backprop+nap",
    **NORMS,
}
"""At workstation and paper scale."""
IMAGENET = "imagenet"
"""Setting of the second network and dataset; the first is the scale's own, setting ""."""
SEEDS = tuple(range(8))
_CIFAR = dict(dataset="cifar10", batch_size=32, augment="crop_flip")
SIZES = {
    "laptop": dict(
        task=dict(
            dataset="digits",
            num_evaluations=3,
            steps_per_evaluation=30,
            batch_size=32,
            held_out=597,
            eval_examples=64,
        ),
        size=(("channels", (16, 16, 32, 32)), ("own_norm", "batch"), ("stages", (2, 2)), ("widths", (64,))),
        redo_period=20,
    ),
    "workstation": dict(task=dict(**_CIFAR, num_evaluations=20, steps_per_evaluation=2000), redo_period=1000),
    "paper": dict(task=dict(**_CIFAR, num_evaluations=40, steps_per_evaluation=10000), redo_period=1000),
}
"""Where no size is given the network is `models.vgg.VGG16`."""
LR, STEPS_AT = 0.025, (0.5, 0.75)
LR_IMAGENET, WEIGHT_DECAY = 0.1, "l2(coef=0.0001, over='weights')"
IMAGENET_SEEDS = (0, 1, 2)
"""Each in a run of its own: a block would not fit on a device."""
IMAGENET_TASK = dict(
    dataset="imagenet",
    num_evaluations=90,
    steps_per_evaluation=5004,
    batch_size=256,
    augment="resized_crop_flip",
    label_smoothing=0.1,
    eval_examples=64,
)
"""An evaluation after every pass over the 1,281,167 images."""
RECALLED = {"baseline": (94.65, 77.08), "norm_only": (94.47, 77.45), "nap": (94.64, 77.26)}
"""Table 1's accuracies in per cent, CIFAR-10 and ImageNet, as recalled: they could not be verified, and gate nothing."""


def entry(scale: str, arm: str, *, seeds: tuple[int, ...] = SEEDS, task: dict | None = None) -> Entry:
    """A run of the scale's own dataset. task: what differs from the scale's."""
    from nap_bench.benchmarks import StationaryImages
    from nap_bench.models.vgg import VGG16
    from nap_bench.optimizers import SGD
    from nap_bench.schedules import Steps
    from nap_bench.spec import ModelSpec

    size = SIZES[scale]
    run = make_run(
        benchmark=StationaryImages(**{**size["task"], **(task or {})}),
        model=ModelSpec(family="vgg", size=size.get("size", VGG16), init="he"),
        stack={**ARMS, **LARGE}[arm].format(redo_period=size["redo_period"]),
        optimizer=SGD(momentum=0.9, nesterov=True),
        schedule=Steps(LR, STEPS_AT),
        seeds=seeds,
    )
    return Entry(arm, "", run)


def imagenet_entry(arm: str, seed: int) -> Entry:
    from nap_bench.benchmarks import StationaryImages
    from nap_bench.models.resnet import RESNET50
    from nap_bench.optimizers import SGD
    from nap_bench.schedules import Cosine
    from nap_bench.spec import ModelSpec

    stack = {**CORE, **NORMS}[arm]
    run = make_run(
        benchmark=StationaryImages(**IMAGENET_TASK),
        model=ModelSpec(family="resnet", size=RESNET50, init="he"),
        stack=WEIGHT_DECAY if stack == "baseline" else f"{stack}+{WEIGHT_DECAY}",
        optimizer=SGD(momentum=0.9, nesterov=True),
        schedule=Cosine(LR_IMAGENET, 0.0),
        seeds=(seed,),
    )
    return Entry(arm, IMAGENET, run)


def runs(scale: str) -> list[Entry]:
    planned = [entry(scale, arm) for arm in (ARMS if scale == "laptop" else {**ARMS, **LARGE})]
    if scale == "paper":
        planned += [imagenet_entry(arm, seed) for arm in (*CORE, *NORMS) for seed in IMAGENET_SEEDS]
    return planned


CURVES = {
    "test_accuracy_curve": "task_end/test_accuracy",
    "training_loss": "online/loss",
    "parameter_norm": "probe/parameter_norm",
    "effective_learning_rate": "probe/effective_learning_rate",
}


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    for labelled in results:
        for measure, metric in CURVES.items():
            steps, values_TS = labelled.series(metric)
            yield from curve(labelled, measure, steps / 1000, values_TS)
        test_TS = labelled.series("task_end/test_accuracy")[1]
        yield from scalar(labelled, "test_accuracy", test_TS[-1])
        yield from scalar(labelled, "first_test_accuracy", test_TS[0])
        yield from scalar(labelled, "gap", labelled.series("task_end/accuracy")[1][-1] - test_TS[-1])


def tables(scores: Scores) -> list[dict]:
    """For the report: the paper's three rows, as recalled, beside ours of the same dataset, if there are any."""
    rows = []
    for arm, (cifar10, imagenet) in RECALLED.items():
        row = [look(arm).label]
        for setting, recalled in (("", cifar10), (IMAGENET, imagenet)):
            found = None
            if scores.has("test_accuracy", arm, setting):
                found = middle(100 * value for value in scores.values("test_accuracy", arm, setting).values())
            ours = " ".join(estimate_and_span(found.estimate, found.low, found.high)) if found else DASH
            row += [f"{recalled:.2f}", ours]
        rows.append(row)
    note = (
        "Test accuracy in per cent. The paper's numbers are recalled and unverified; no verdict rests on them. Ours are of this "
        "scale's own dataset (digits at laptop scale, CIFAR-10 at the others) and, at paper scale, of ImageNet."
    )
    columns = ("arm", "CIFAR-10, paper (recalled)", "ours, this scale", "ImageNet, paper (recalled)", "ours")
    return [{"title": "Beside Table 1", "columns": columns, "rows": rows, "note": note}]


def _final(label: str, arm: str, against: str, setting: str = "", before: str | None = None) -> Paired:
    return Paired(
        label=label,
        measure="test_accuracy",
        against_measure=before,
        better="higher",
        arm=arm,
        against=against,
        setting=setting,
        if_diverged=0.0,
    )


def _costs_nothing(setting: str) -> tuple[Paired, ...]:
    return (
        _final("NaP - baseline", "nap", "baseline", setting),
        _final("NaP - norm only", "nap", "norm_only", setting),
    )


_SOURCE, _UNIT, MARGIN = "Sec. 5.2, Table 1", "test accuracy at the end", 0.01
CLAIMS = (
    Claim(
        id="nap_costs_no_accuracy_on_stationary_images",
        source=_SOURCE,
        sentence="On stationary images NaP does not hurt: it is as accurate as the baseline and as the norm alone, or better.",
        kind="noninferiority",
        margin=MARGIN,
        unit=_UNIT,
        measurements=_costs_nothing(""),
        paper_claim=16,
    ),
    Claim(
        id="nap_costs_no_accuracy_on_imagenet",
        source=_SOURCE,
        sentence="The same for ResNet-50 on ImageNet (at paper scale only; not at laptop scale).",
        kind="noninferiority",
        margin=MARGIN,
        unit=_UNIT,
        measurements=_costs_nothing(IMAGENET),
        paper_claim=16,
    ),
    Claim(
        id="layer_norm_before_batch_norm_costs_no_accuracy",
        source=_SOURCE,
        sentence="LayerNorm before BatchNorm does not hurt either: norm only is as accurate as the baseline, or better.",
        kind="noninferiority",
        margin=MARGIN,
        unit=_UNIT,
        measurements=(_final("norm only - baseline", "norm_only", "baseline"),),
    ),
    Claim(
        id="nap_costs_no_method_accuracy",
        source="Sec. 5.2 (ours)",
        sentence="Nor does NaP hurt beside other methods: each is as accurate with it as without, or better.",
        kind="noninferiority",
        margin=MARGIN,
        unit=_UNIT,
        measurements=tuple(
            _final(f"{name.replace('_', ' ')} with NaP - without", f"{name}+nap", name) for name in METHODS
        ),
    ),
    Claim(
        id="training_changes_the_accuracy_by_more_than_a_point",
        source="control (ours)",
        sentence="A network that is not as well trained is worse by more than a point, so that a cost could have been seen.",
        kind="superiority",
        margin=MARGIN,
        unit="test accuracy, last evaluation against the first",
        measurements=(_final("baseline, last - first", "baseline", "baseline", before="first_test_accuracy"),),
    ),
)
PANELS = (
    Panel(
        kind="interval",
        measure="test_accuracy",
        title="Test accuracy at the end",
        xlabel="test accuracy",
        arms=tuple(ARMS),
    ),
    Panel(
        kind="curve",
        measure="test_accuracy_curve",
        title="Test accuracy",
        xlabel="thousand updates",
        ylabel="test accuracy",
        arms=tuple(CORE),
    ),
    Panel(
        kind="curve",
        measure="training_loss",
        title="Training loss",
        xlabel="thousand updates",
        ylabel="loss before the update",
        arms=tuple(CORE),
        logy=True,
    ),
    Panel(
        kind="curve",
        measure="effective_learning_rate",
        title="Effective learning rate (lr / norm squared)",
        xlabel="thousand updates",
        ylabel="geometric mean",
        arms=tuple(CORE),
        logy=True,
    ),
)

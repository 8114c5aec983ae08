"""Law 9: the losses of every benchmark under every method, twenty steps, in repr.

Exact where torch and the CPU capability are the recorded ones; relative 1e-3 elsewhere. A loss is recorded under the versions of
what made it, and a recorded one is never overwritten: a change of numbers needs a version bump (or a new PROTOCOL), then
`pytest tests/golden --record-golden`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nap_bench import update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.experiments.base import make_run
from nap_bench.methods import METHODS, parse_stack, stack_of
from nap_bench.optimizers import SGD, Adam
from nap_bench.schedules import Constant
from nap_bench.spec import PROTOCOL, ModelSpec, Part
from nap_bench.state import build

FILE = Path(__file__).parent / "losses.json"
IMAGES = BENCHMARKS["stationary_images"](
    dataset="digits", num_evaluations=2, steps_per_evaluation=10, batch_size=16, held_out=597, augment="crop", padding=1
)
VGG = (("channels", (4, 6)), ("own_norm", "batch"), ("stages", (1, 1)), ("widths", (12,)))
RESNET = (("blocks", (1, 1)), ("channels", (8, 16)), ("own_norm", "batch"), ("stem", "small"))
STRINGS = dict(num_strings=12, length=9, vocabulary=16, num_tasks=2, steps_per_task=10, batch_size=8)
TRANSFORMER = ModelSpec(
    family="transformer", size=(("d_model", 16), ("entrance", "layer"), ("heads", 2), ("widths", (24, 16)))
)
TASKS = {
    "class_incremental": (
        BENCHMARKS["class_incremental"](
            dataset="digits", num_examples=200, num_tasks=2, steps_per_task=10, batch_size=16, eval_examples=16
        ),
        ModelSpec(family="mlp", size=(("widths", (24, 16)),)),
    ),
    "copying": (BENCHMARKS["copying"](**STRINGS, copied=4), TRANSFORMER),
    "hard_and_easy": (
        BENCHMARKS["hard_and_easy"](
            dataset="digits",
            num_examples=400,
            num_tasks=2,
            steps_per_task=10,
            batch_size=16,
            eval_examples=16,
            hard_classes=3,
        ),
        ModelSpec(family="mlp", size=(("widths", (24, 16)),)),
    ),
    "language": (
        BENCHMARKS["language"](
            dataset="topics",
            length=8,
            vocabulary=300,
            num_evaluations=2,
            steps_per_evaluation=10,
            batch_size=8,
            eval_tokens=100,
        ),
        TRANSFORMER,
    ),
    "permuted_inputs": (
        BENCHMARKS["permuted_inputs"](dataset="digits", num_examples=64, num_tasks=2, steps_per_task=10, batch_size=16),
        ModelSpec(family="mlp", size=(("widths", (24, 16)),)),
    ),
    "random_labels": (
        BENCHMARKS["random_labels"](dataset="digits", num_examples=64, num_tasks=2, steps_per_task=10, batch_size=16),
        ModelSpec(family="mlp", size=(("widths", (24, 16)),)),
    ),
    "random_labels/cnn": (
        BENCHMARKS["random_labels"](dataset="patches", num_examples=64, num_tasks=2, steps_per_task=10, batch_size=16),
        ModelSpec(family="cnn", size=(("channels", (4, 6)), ("kernel", 3), ("pool_after", (0,)), ("widths", (12,)))),
    ),
    "random_strings": (BENCHMARKS["random_strings"](**STRINGS), TRANSFORMER),
    "slowly_changing_regression": (
        BENCHMARKS["slowly_changing_regression"](num_tasks=2, steps_per_task=10, eval_examples=20),
        ModelSpec(family="mlp", size=(("widths", (8,)),), init="he_uniform"),
    ),
    "stationary_images": (IMAGES, ModelSpec(family="vgg", size=VGG, init="he")),
    "stationary_images/resnet": (IMAGES, ModelSpec(family="resnet", size=RESNET, init="he")),
    "true_labels": (
        BENCHMARKS["true_labels"](dataset="digits", num_examples=64, num_tasks=2, steps_per_task=10, batch_size=16),
        ModelSpec(family="mlp", size=(("widths", (24, 16)),)),
    ),
    "warm_start": (
        BENCHMARKS["warm_start"](
            dataset="digits",
            num_examples=64,
            held_out=32,
            num_tasks=2,
            steps_per_task=10,
            batch_size=16,
            eval_examples=16,
        ),
        ModelSpec(family="mlp", size=(("widths", (24, 16)),)),
    ),
}
OPTIMIZERS = {"adam": (Adam(), 0.01), "momentum": (SGD(momentum=0.9), 0.05)}
ALONE = {
    "implicit_schedule": "nap+implicit_schedule",
    "group_norm": "group_norm(groups=2)",
    "hare_tortoise": "hare_tortoise(momentum=0.5, period=3)",
    "infer": "infer(coef=0.01, scale=2.0)",
    "regrama": "regrama(period=3, tau=0.1)",
    "snr": "snr(percentile=0.5, start=1, refresh=5)",
}
"""Methods that exist only in a stack, or not at their defaults in these networks, or that do nothing for a while at them."""
SEEDS = (0, 1)


def exists(task: str, stack: str) -> bool:
    """Whether the network of a task can have a method: a transformer has no batch norm."""
    benchmark, spec = TASKS[task]
    run = make_run(
        benchmark=benchmark,
        model=spec,
        stack=ALONE.get(stack, stack),
        optimizer=Adam(),
        schedule=Constant(0.01),
        seeds=SEEDS,
    )
    return stack_of(run.methods).why_not(run) is None


CASES = [
    (task, stack, rule)
    for task in TASKS
    for stack in ("baseline", *METHODS)
    for rule in OPTIMIZERS
    if exists(task, stack)
]


def key(task: str, stack: str, rule: str) -> str:
    """Names with versions: what a golden loss depends on."""
    benchmark = TASKS[task][0]
    method = f"{stack}@{METHODS[stack].version}" if stack in METHODS else stack
    optimizer = OPTIMIZERS[rule][0]
    network = task.partition("/")[2]
    made_by = f"{benchmark.name}@{benchmark.version}{network and ' ' + network}, {method}"
    return f"protocol {PROTOCOL}, {made_by}, {rule} ({optimizer.name}@{optimizer.version})"


def losses(task: str, stack: str, rule: str) -> list[list[float]]:
    torch.set_num_threads(1)
    benchmark, spec = TASKS[task]
    methods = stack_of(parse_stack(ALONE.get(stack, stack)))
    optimizer, lr = OPTIMIZERS[rule]
    state = build(methods.transform_model(spec), Part.of(optimizer), SEEDS, benchmark.shapes, "cpu")
    state.lr.fill_(lr)
    methods.setup(state)
    data, found = benchmark.load(None, "cpu"), []
    for step in range(benchmark.num_steps):
        if step and benchmark.task_at(step) != benchmark.task_at(step - 1):
            update.task_boundary(state, methods, benchmark.task_at(step))
        inputs, y_SB = benchmark.batch(data, SEEDS, step)
        losses_S = benchmark.loss(update.forward(state, methods, inputs), y_SB)
        found.append(losses_S.tolist())
        update.grad_step(state, [losses_S], methods)
        update.tail(state, methods)
    return found


def data_of(task: str) -> dict[str, dict[str, str]]:
    """Hashes of data that another machine may have otherwise: each Python words its help topics in its own way."""
    identity = TASKS[task][0].identity(TASKS[task][0].load(None, "cpu"))
    return {"data": identity} if identity else {}


def here() -> dict[str, str]:
    return {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}


@pytest.mark.parametrize(("task", "stack", "rule"), CASES, ids=lambda value: value)
def test_law_9_losses_are_the_recorded_ones(task, stack, rule, request):
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    name = key(task, stack, rule)
    if request.config.getoption("--record-golden") and name not in recorded:
        recorded[name] = {
            **here(),
            **data_of(task),
            "losses": [[repr(v) for v in row] for row in losses(task, stack, rule)],
        }
        FILE.write_text(json.dumps(recorded, indent=0, sort_keys=True) + "\n")
    assert name in recorded, f"no golden loss for {name}: pytest tests/golden --record-golden"
    expected = recorded[name]
    if "data" in expected and data_of(task)["data"] != expected["data"]:
        pytest.skip("this Python's help topics are not those that the losses were recorded with")
    found = losses(task, stack, rule)
    if {k: expected[k] for k in here()} == here():
        assert [[repr(v) for v in row] for row in found] == expected["losses"]
    else:
        wanted = torch.tensor([[float(v) for v in row] for row in expected["losses"]])
        assert torch.allclose(torch.tensor(found), wanted, rtol=1e-3)


def test_every_supervised_benchmark_has_a_golden_task():
    assert {t[0].name for t in TASKS.values()} == {n for n, kind in BENCHMARKS.items() if kind.loop == "supervised"}


def test_every_recorded_loss_belongs_to_a_case():
    assert set(json.loads(FILE.read_text())) == {key(*case) for case in CASES}

"""Streams of strings: what is drawn, when it is replaced, what is scored, and a run cut anywhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nap_bench.benchmarks import Copying, RandomStrings
from nap_bench.experiments.base import make_run
from nap_bench.optimizers import Adam
from nap_bench.schedules import Constant
from nap_bench.session import Control, Interrupted
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build
from nap_bench.store import RunFolder
from nap_bench.train import train

SIZES = dict(num_strings=10, length=8, vocabulary=16, num_tasks=3, steps_per_task=6, batch_size=4)
STREAMS = {"random_strings": RandomStrings(**SIZES), "copying": Copying(**SIZES, copied=3, cue=1)}
NET = ModelSpec(
    family="transformer", size=(("d_model", 16), ("entrance", "layer"), ("heads", 2), ("widths", (16,))), norm="layer"
)
SEEDS = (0, 3)


def data_of(stream):
    return stream.load(None, "cpu")


def state_of(stream, step=1, seeds=SEEDS):
    state = build(NET, Part.of(Adam()), seeds, stream.shapes, "cpu")
    state.step = step
    return state


def strings_of(inputs, targets):
    """[S, B, L]: what was shown."""
    return torch.cat([inputs, targets[..., -1:]], dim=2)


def rows(strings_BL) -> set[tuple[int, ...]]:
    return {tuple(row) for row in strings_BL.tolist()}


@pytest.mark.parametrize("name", STREAMS)
def test_a_batch_depends_on_the_seed_and_the_step_alone(name):
    stream, data = STREAMS[name], data_of(STREAMS[name])
    for step in range(stream.num_steps):
        inputs, y_SBT = stream.batch(data, SEEDS, step)
        stream.batch(data, (9,), stream.num_steps - 1)
        for index, seed in enumerate(SEEDS):
            alone = dataclasses.replace(stream, num_tasks=5).batch(data, (seed,), step)
            assert torch.equal(alone[0][0], inputs[index]) and torch.equal(alone[1][0], y_SBT[index])
        assert not torch.equal(inputs[0], inputs[1])


@pytest.mark.parametrize("name", STREAMS)
def test_every_token_but_the_last_is_answered_by_the_one_after_it(name):
    stream = STREAMS[name]
    inputs, y_SBT = stream.batch(data_of(stream), SEEDS, 2)
    assert inputs.shape == y_SBT.shape == (2, 4, 7) and inputs.dtype == torch.int64
    assert torch.equal(inputs[..., 1:], y_SBT[..., :-1])
    for index, seed in enumerate(SEEDS):
        assert rows(strings_of(inputs, y_SBT)[index]) <= rows(stream.strings(seed, 0))
    assert stream.shapes == ((7,), 16)


@pytest.mark.parametrize("name", STREAMS)
def test_all_strings_are_replaced_at_the_boundary_and_at_no_other_step(name):
    stream, data = STREAMS[name], data_of(STREAMS[name])
    for index, seed in enumerate(SEEDS):
        sets = [rows(stream.strings(seed, task)) for task in range(3)]
        assert not sets[0] & sets[1] and not sets[1] & sets[2] and not sets[0] & sets[2]
        for step in range(stream.num_steps):
            shown = rows(strings_of(*stream.batch(data, SEEDS, step))[index])
            assert [bool(shown & known) for known in sets] == [task == step // 6 for task in range(3)]


@pytest.mark.parametrize("name", STREAMS)
def test_a_pass_shows_every_string_of_the_task_once(name):
    stream = dataclasses.replace(STREAMS[name], batch_size=5)
    data = data_of(stream)
    for first in (0, 2, 6):
        halves = [strings_of(*stream.batch(data, SEEDS, step)) for step in (first, first + 1)]
        for index, seed in enumerate(SEEDS):
            shown = torch.cat([half[index] for half in halves])
            assert sorted(shown.tolist()) == sorted(stream.strings(seed, first // 6).tolist())


@pytest.mark.parametrize("name", STREAMS)
def test_passes_go_on_over_chunks_of_drawn_orders(name, monkeypatch):
    stream = dataclasses.replace(STREAMS[name], steps_per_task=600, batch_size=5)
    data = data_of(stream)
    seen = [strings_of(*stream.batch(data, (0,), step))[0] for step in (255, 256, 257, 599)]
    assert all(rows(strings) <= rows(stream.strings(0, 0)) for strings in seen)
    assert sorted(torch.cat(seen[1:3]).tolist()) == sorted(stream.strings(0, 0).tolist())


@pytest.mark.parametrize("name", STREAMS)
def test_a_fresh_network_meets_the_very_batches_of_the_task_it_starts_at(name):
    stream, data = STREAMS[name], data_of(STREAMS[name])
    for task in range(3):
        fresh = dataclasses.replace(stream, first_task=task, num_tasks=1)
        assert fresh.num_steps == 6 and fresh.task_at(0) == task
        for step in range(6):
            aged = stream.batch(data, SEEDS, 6 * task + step)
            assert all(map(torch.equal, fresh.batch(data, SEEDS, step), aged))


def test_symbols_are_uniform_and_independent_of_the_one_before():
    strings_NL = dataclasses.replace(STREAMS["random_strings"], num_strings=4000).strings(0, 0)
    counts = strings_NL.flatten().bincount(minlength=16).double()
    assert ((counts - 2000.0) ** 2 / 2000.0).sum() < 40  # chi-squared, 15 degrees of freedom: p = 5e-4
    pairs = (16 * strings_NL[:, 0] + strings_NL[:, 1]).bincount(minlength=256).double()
    assert ((pairs - 15.625) ** 2 / 15.625).sum() < 335  # 255 degrees of freedom: p = 6e-4


@pytest.mark.parametrize("name", STREAMS)
def test_evaluation_agrees_with_a_count_by_hand_token_by_token(name):
    stream, data = STREAMS[name], data_of(STREAMS[name])
    state = state_of(stream, step=8)
    before = state.flat.detach().clone()
    found = stream.evaluate(state, data)
    inputs, y_SET = stream.probe(data, SEEDS, 1)
    scored = range(7) if name == "random_strings" else range(5, 7)  # of 3 copied tokens the first is the cue
    for index in range(2):
        hits, surprises = [], []
        for example in range(10):
            for t in range(7):
                alone = state.forward(inputs[:, example : example + 1, : t + 1])[index, 0, t].detach().double()
                target = y_SET[index, example, t].item()
                surprises.append(-alone.log_softmax(dim=0)[target].item())
                if t in scored:
                    hits.append(int(alone.argmax()) == target)
        assert found["accuracy"][index].item() == pytest.approx(sum(hits) / len(hits))
        assert found["loss"][index].item() == pytest.approx(sum(surprises) / len(surprises), rel=1e-5)
    assert torch.equal(state.flat.detach(), before) and found["acts"]["hidden0"].shape == (2, 70, 16)


@pytest.mark.parametrize("name", STREAMS)
def test_the_loss_is_the_mean_over_all_tokens_and_has_the_seeds_apart(name):
    out_SBTK = torch.randn(2, 4, 7, 16, generator=torch.Generator().manual_seed(0))
    y_SBT = STREAMS[name].batch(data_of(STREAMS[name]), SEEDS, 0)[1]
    found = STREAMS[name].loss(out_SBTK, y_SBT)
    for index in range(2):
        rows_NK, y_N = out_SBTK[index].reshape(-1, 16), y_SBT[index].flatten()
        assert found[index].item() == pytest.approx(torch.nn.functional.cross_entropy(rows_NK, y_N).item(), rel=1e-6)


def test_evaluation_of_memorised_strings_can_be_limited_to_the_first():
    stream = dataclasses.replace(STREAMS["random_strings"], eval_strings=3)
    inputs, y_SET = stream.probe(data_of(stream), SEEDS, 2)
    for index, seed in enumerate(SEEDS):
        assert torch.equal(strings_of(inputs, y_SET)[index], stream.strings(seed, 2)[:3])


class StopAt(Control):
    """Asks to stop once an update was done."""

    def __init__(self, step: int):
        super().__init__(report=self.look)
        self.last = step

    def look(self, step: int, rate: float) -> None:
        self.stop = step >= self.last


@pytest.mark.parametrize("name", STREAMS)
def test_a_run_cut_at_any_update_goes_on_to_the_same_bytes(name, tmp_path, monkeypatch):
    stream = dataclasses.replace(STREAMS[name], num_tasks=2, probes_per_task=2)
    run = make_run(
        benchmark=stream, model=NET, stack="nap+redo(period=4)", optimizer=Adam(), schedule=Constant(1e-2), seeds=SEEDS
    )
    clock = iter(range(10**9))  # a second passes at every look, so that every update is reported
    monkeypatch.setattr("time.perf_counter", lambda: 2.0 * next(clock))

    def trained(folder: str, *stops: int) -> bytes:
        place = RunFolder(tmp_path / folder, run)
        place.open()
        for stop in stops:
            with pytest.raises(Interrupted, match=f"update {stop} "):
                train(run, place, control=StopAt(stop), data_dir=None, device="cpu")
        ended = train(run, place, control=Control(checkpoint_seconds=1e9), data_dir=None, device="cpu")
        assert [seed["status"] for seed in ended["status"]] == ["complete"] * 2
        return place.metrics.read_bytes()

    whole = trained("whole")
    assert all(trained(f"cut{stop}", stop) == whole for stop in (1, 2, 5, 6, 7, 11))
    assert trained("twice", 5, 6) == whole


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_strings": 0}, "num_strings >= 1; found 0"),
        ({"length": 1}, "length >= 2; found 1"),
        ({"vocabulary": 1}, "vocabulary >= 2; found 1"),
        ({"batch_size": -1}, "batch_size >= 1; found -1"),
        ({"steps_per_task": 0}, "steps_per_task >= 1; found 0"),
        ({"probes_per_task": 7}, "at most one probe per step; found probes_per_task=7"),
        ({"first_task": -1}, "first_task >= 0; found -1"),
        ({"eval_strings": 11}, "eval_strings from 1 to num_strings = 10; found 11"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name_and_value(name, changes, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        dataclasses.replace(STREAMS[name], **changes)
    assert name in str(refusal.value)


RECORDED = {
    "random_strings": [13, 7, 2, 14, 9, 3, 13, 8],
    "copying": [13, 7, 2, 14, 9, 13, 7, 2],
}


def test_what_is_drawn_stays_what_it_was():
    """A change of these numbers is a change of version."""
    assert {name: stream.strings(0, 1)[0].tolist() for name, stream in STREAMS.items()} == RECORDED

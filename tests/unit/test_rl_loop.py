"""The loop of reinforcement learning: who learns when, what a switch keeps, and runs that are killed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from conformance.test_laws import NEUTRAL

from nap_bench import session
from nap_bench.benchmarks import BENCHMARKS, Atari, CatchSequence
from nap_bench.experiments.base import make_run
from nap_bench.methods import parse_stack, stack_of
from nap_bench.optimizers import Adam
from nap_bench.rl import loop
from nap_bench.rl.loop import Learner, Playing, reinforce
from nap_bench.rl.replay import Replay
from nap_bench.schedules import Constant, Cosine
from nap_bench.session import Control, Interrupted
from nap_bench.spec import ModelSpec
from nap_bench.state import build
from nap_bench.store import RunFolder

SIZE = (("atoms", 7), ("channels", ()), ("hidden", 8), ("kernels", ()), ("sigma", 0.1), ("strides", ()))
TASK = CatchSequence(
    num_variants=2,
    cycles=2,
    steps_per_visit=96,
    num_envs=4,
    min_fill=48,
    frame_shape=(4, 3),
    batch_size=8,
    bins_per_visit=2,
    eval_steps=8,
    eval_envs=2,
    target_period=5,
)
STACK = "optimizer_reset+nap+redo(period=3)"


def run_of(task=TASK, stack=STACK, seeds=(3, 4)):
    return make_run(
        benchmark=task,
        model=ModelSpec(family="rainbow", size=SIZE),
        stack=stack,
        optimizer=Adam(clip_norm=10.0),
        schedule=Cosine(1e-2, 1e-3, warmup_steps=2, initial_lr=1e-3, restart="task"),
        seeds=seeds,
    )


def folder_of(path, run):
    folder = RunFolder(path, run)
    folder.open()
    return folder


def reinforced(path, run, control=None) -> bytes:
    folder = folder_of(path, run)
    reinforce(run, folder, data_dir=None, device="cpu", control=control or Control())
    return folder.metrics.read_bytes()


def rows(table: bytes, metric: str) -> list[tuple[int, int, float]]:
    parsed = [line.split(",") for line in table.decode().splitlines()[1:]]
    return [(int(step), int(seed), float(value)) for step, seed, name, value in parsed if name == metric]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return reinforced(tmp_path_factory.mktemp("plain"), run_of(stack="baseline"))


@pytest.mark.parametrize("method", NEUTRAL)
def test_law_4_in_rainbow_too_the_neutral_setting_is_the_baseline_bit_for_bit(method, plain, tmp_path):
    assert reinforced(tmp_path, run_of(stack=NEUTRAL[method])) == plain


@pytest.mark.parametrize(("stack", "per_update"), [("baseline", 0), ("infer", 1)])
def test_forwards_that_a_penalty_asks_for_are_counted_also_after_a_resume(tmp_path, stack, per_update):
    run = run_of(stack=stack)
    folder = folder_of(tmp_path, run)
    with pytest.raises(Interrupted):
        reinforce(run, folder, data_dir=None, device="cpu", control=Control(stop=True))
    ended = reinforce(run, folder, data_dir=None, device="cpu", control=Control())
    assert ended["cost"]["extra_forward_passes"] == per_update * run.benchmark.build(BENCHMARKS, "").num_steps


@pytest.mark.parametrize("killed_at", [0, 11, 12, 17, 40, 70, 95])
@pytest.mark.fault(
    "killed: a run of reinforcement learning, with its replay and its games",
    outcome="it goes on from its last checkpoint, to the same bytes",
)
def test_a_run_killed_at_any_step_and_resumed_leaves_the_same_bytes(tmp_path, monkeypatch, killed_at):
    expected = reinforced(tmp_path / "whole", run_of())
    step, steps = Playing.step, []

    def dying(self, actions_SE):
        if self.purpose == "training":
            steps.append(1)
            if len(steps) == killed_at + 1:
                raise KeyboardInterrupt
        step(self, actions_SE)

    monkeypatch.setattr(Playing, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        reinforced(tmp_path / "killed", run_of(), Control(checkpoint_seconds=0.0))
    monkeypatch.setattr(Playing, "step", step)
    assert reinforced(tmp_path / "killed", run_of(), Control(checkpoint_seconds=0.0)) == expected


def test_a_run_asked_to_stop_says_where_and_goes_on_from_there(tmp_path):
    with pytest.raises(Interrupted, match="goes on from there"):
        reinforced(tmp_path / "stopped", run_of(), Control(stop=True))
    assert reinforced(tmp_path / "stopped", run_of()) == reinforced(tmp_path / "whole", run_of())


@pytest.mark.fault(
    "edited: a game's program, under a run of reinforcement learning that goes on",
    outcome="refused: the run began on other data, which have to be brought back",
)
def test_a_run_does_not_go_on_with_another_game_than_it_began_with(tmp_path, monkeypatch):
    said = iter(("a game", "another"))
    monkeypatch.setattr(CatchSequence, "identity", lambda self: {"game.bin": next(said)})
    with pytest.raises(Interrupted):
        reinforced(tmp_path, run_of(), Control(stop=True))
    with pytest.raises(ValueError, match="began on other data: bring them back, or delete the checkpoint"):
        reinforced(tmp_path, run_of())


def test_a_seed_in_a_block_is_the_seed_alone(tmp_path):
    block = reinforced(tmp_path / "block", run_of(seeds=(3, 4)))
    for seed in (3, 4):
        alone = reinforced(tmp_path / str(seed), run_of(seeds=(seed,)))
        assert [row for row in block.splitlines() if row.split(b",")[1] == str(seed).encode()] == alone.splitlines()[1:]


def test_two_runs_of_one_setting_leave_the_same_bytes(tmp_path):
    assert reinforced(tmp_path / "one", run_of()) == reinforced(tmp_path / "two", run_of())


@pytest.mark.parametrize(("num_envs", "pattern"), [(1, (0, 0, 0, 1)), (2, (0, 1)), (4, (1,)), (8, (2,)), (16, (4,))])
def test_an_update_is_due_every_four_steps_whatever_the_number_of_environments(num_envs, pattern):
    task = dataclasses.replace(TASK, num_envs=num_envs, steps_per_visit=320, min_fill=96)
    due = [task.updates_due(step) for step in range(320 // num_envs + 1)]
    made = [after - before for before, after in zip(due, due[1:], strict=False)]
    filling = 96 // num_envs
    assert made[:filling] == [0] * filling
    assert made[filling:] == list(pattern) * ((320 - 96) // num_envs // len(pattern))
    assert sum(made) == task.updates_per_visit


def test_with_one_environment_the_order_is_dqn_zoos(tmp_path, monkeypatch):
    """Act, remember, step; and after every fourth step, once min_fill are there, one update."""
    order = []
    for name, owner, word in (("add", Replay, "add"), ("step", Playing, "step"), ("update", Learner, "update")):
        wrapped = getattr(owner, name)

        def spy(self, *given, wrapped=wrapped, word=word):
            if getattr(self, "purpose", "training") == "training":
                order.append(word)
            return wrapped(self, *given)

        monkeypatch.setattr(owner, name, spy)
    task = dataclasses.replace(TASK, num_envs=1, num_variants=1, cycles=1, eval_steps=0)
    reinforced(tmp_path, run_of(task))
    assert order == ["add", "step"] * 48 + (["add", "step"] * 4 + ["update"]) * 12


def test_a_visit_has_exactly_its_steps_and_every_visit_its_updates(tmp_path, monkeypatch):
    made = []
    step, begin = Playing.step, Playing.begin

    def stepped(self, actions_SE):
        made.append(("step", self.purpose))
        step(self, actions_SE)

    def began(self, visit, piece):
        made.append((visit, self.purpose))
        begin(self, visit, piece)

    monkeypatch.setattr(Playing, "step", stepped)
    monkeypatch.setattr(Playing, "begin", began)
    table = reinforced(tmp_path, run_of())
    training = [what for what, purpose in made if purpose == "training"]
    assert training == [word for visit in range(4) for word in [visit, *["step"] * (96 // 4)]]
    assert [step for step, seed, _ in rows(table, "online/loss") if seed == 3] == [6, 12, 18, 24, 30, 36, 42, 48]


def learner_of(stack=STACK, device="cpu", **changed):
    task = dataclasses.replace(TASK, **changed)
    state = build(
        stack_of(parse_stack(stack)).transform_model(ModelSpec(family="rainbow", size=SIZE)),
        run_of(task, stack).optimizer,
        (3, 4),
        task.shapes,
        device,
    )
    methods = stack_of(parse_stack(stack))
    methods.setup(state)
    learner = Learner(task, state, methods, Constant(1e-2))
    playing = Playing(task, state.seeds, task.num_envs, "training", device)
    playing.begin(0, 0)
    for _ in range(20):
        actions_SE = torch.zeros(2, task.num_envs, dtype=torch.int64, device=device)
        learner.remember(playing.frame, actions_SE)
        playing.step(actions_SE)
    for _ in range(7):
        learner.update()
    return learner


@pytest.mark.parametrize("replay", ["clear", "keep"])
@pytest.mark.parametrize("target", ["copy", "keep"])
@pytest.mark.parametrize("stack", ["optimizer_reset+nap", "nap"])
def test_a_switch_keeps_and_forgets_what_it_says_tensor_by_tensor(replay, target, stack):
    learner = learner_of(stack, replay=replay, target=target)
    state = learner.state
    before = {name: tensor.clone() for name, tensor in state.optimizer.memory.items()}
    flat, copied, rows_before = state.flat.detach().clone(), learner.target.clone(), learner.replay.num_rows
    assert not torch.equal(copied, flat) and float(before["exp_avg"].abs().sum()) > 0
    learner.switch(1)
    assert torch.equal(state.flat, flat)
    assert torch.equal(learner.target, flat if target == "copy" else copied)
    assert learner.replay.num_rows == (0 if replay == "clear" else rows_before)
    for name, tensor in state.optimizer.memory.items():
        forgets = "optimizer_reset" in stack
        assert torch.equal(tensor, torch.zeros_like(tensor) if forgets else before[name]), name
    assert torch.equal(
        learner.replay.max_priority_S,
        torch.ones(2, dtype=torch.float64) if replay == "clear" else learner.replay.max_priority_S,
    )


def test_the_control_sees_what_the_chain_saw_at_its_visit(tmp_path, monkeypatch):
    """The same frames where it acts alike, the same noise, the same draws from the replay; other parameters."""
    seen = {}
    begin = Playing.begin

    def began(self, visit, piece):
        begin(self, visit, piece)
        if self.purpose == "training":
            seen.setdefault(visit, []).append(self.frame.frame.clone())

    monkeypatch.setattr(Playing, "begin", began)
    reinforced(tmp_path / "chain", run_of())
    control = dataclasses.replace(TASK, first_visit=3)
    assert control.num_visits == 1 and control.num_steps == TASK.updates_per_visit
    table = reinforced(tmp_path / "control", run_of(control))
    assert len(seen[3]) == 2 and torch.equal(*seen[3])
    assert {step for step, *_ in rows(table, "online/loss")} == {6, 12}
    learner = Learner(control, build_small(control), stack_of(()), Constant(1e-2))
    chain = Learner(TASK, build_small(TASK), stack_of(()), Constant(1e-2))
    at = 3 * TASK.updates_per_visit
    assert torch.equal(learner.noise.at(learner.first_update), chain.noise.at(at))
    assert torch.equal(learner.uniform.draw(learner.first_update), chain.uniform.draw(at))


def build_small(task):
    return build(ModelSpec(family="rainbow", size=SIZE), run_of(task, "baseline").optimizer, (3,), task.shapes, "cpu")


def test_returns_are_those_of_the_episodes_that_ended():
    playing = Playing(TASK, (3,), 4, "training", "cpu")
    playing.begin(0, 0)
    ended, total, under_way = 0, 0.0, torch.zeros(1, 4)
    for step in range(40):
        playing.step(torch.full((1, 4), step % 3))
        under_way += playing.frame.reward
        for env in range(4):
            if playing.frame.last[0, env]:
                ended, total = ended + 1, total + float(under_way[0, env])
                under_way[0, env] = 0.0
    assert ended > 10
    assert float(playing.mean_return()) == pytest.approx(total / ended)
    playing.forget()
    assert playing.mean_return().isnan().all()


def test_evaluation_leaves_the_agent_and_the_training_as_they_were():
    learner = learner_of()
    before, rows_before = learner.state.flat.detach().clone(), learner.replay.num_rows
    first = loop.evaluate(learner.benchmark, learner, 6)
    assert torch.equal(loop.evaluate(learner.benchmark, learner, 6), first)
    assert torch.equal(learner.state.flat, before) and learner.replay.num_rows == rows_before
    assert ((first >= -1.0) & (first <= 1.0)).all()


def test_an_evaluation_tells_that_it_goes_on_as_often_as_training_does(tmp_path, monkeypatch):
    clock = itertools.count(0.0, 2.0)
    monkeypatch.setattr(session.time, "perf_counter", lambda: next(clock))
    told: list[int] = []
    control = Control(report=lambda step, rate: told.append(step))
    reinforced(tmp_path / "without", run_of(dataclasses.replace(TASK, eval_steps=0)), control)
    without = len(told)
    reinforced(tmp_path / "with", run_of(), control)
    visits, steps = TASK.num_variants * TASK.cycles, TASK.eval_steps
    assert len(told) - 2 * without == visits * TASK.bins_per_visit * steps


def test_the_target_network_follows_only_every_target_period():
    learner = learner_of("baseline")  # 7 updates done, copied after the 5th
    assert not torch.equal(learner.target, learner.state.flat.detach())
    for _ in range(3):
        learner.update()
    assert torch.equal(learner.target, learner.state.flat.detach())


@pytest.mark.fault(
    "divergence: of one seed of a block of reinforcement learning",
    outcome="reported; the others go on as if it were not there",
)
def test_a_seed_that_diverges_is_reported_and_does_not_take_its_block_down(tmp_path, monkeypatch):
    expected = reinforced(tmp_path / "alone", run_of(stack="baseline", seeds=(4,)))
    losses = loop.rainbow.Agent.losses

    def exploding(self, state, *given):
        loss_S, errors_SB = losses(self, state, *given)
        if state.step >= 20:
            loss_S = loss_S * torch.tensor([torch.nan if seed == 3 else 1.0 for seed in state.seeds])
        return loss_S, errors_SB

    monkeypatch.setattr(loop.rainbow.Agent, "losses", exploding)
    run = run_of(stack="baseline", seeds=(3, 4))
    folder = folder_of(tmp_path / "block", run)
    ended = reinforce(run, folder, data_dir=None, device="cpu", control=Control())
    assert ended["status"] == [{"seed": 3, "status": "diverged", "step": 20}, {"seed": 4, "status": "complete"}]
    block = folder.metrics.read_bytes().splitlines()
    assert [row for row in block if row.split(b",")[1] == b"4"] == expected.splitlines()[1:]
    assert all(
        value != value
        for step, seed, value in rows(folder.metrics.read_bytes(), "online/loss")
        if seed == 3 and step > 20
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(num_envs=5), "steps_per_visit to be a multiple of num_envs = 5; found 96"),
        (dict(min_fill=96), "min_fill from 20"),
        (dict(min_fill=4), "min_fill from 20"),
        (dict(capacity=40), "capacity >= min_fill = 48; found 40"),
        (dict(bins_per_visit=13), "at most one bin per update; found 13 bins in 12 updates"),
        (dict(replay="drop"), "Unknown replay of catch 'drop'"),
        (dict(target="drop"), "Unknown target of catch 'drop'"),
        (dict(v_min=2.0), "v_min < v_max"),
        (dict(batch_size=0), "batch_size >= 1; found 0"),
        (dict(changes=("winds",)), "Unknown change of catch 'winds'. Did you mean 'wind'"),
        (dict(frame_shape=(2, 9)), "rows enough"),
        (dict(cycles=0), "cycles >= 1"),
    ],
)
def test_bad_parameters_are_refused_with_what_was_wanted_and_found(changed, words):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(TASK, **changed)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(games=("brakeout",)), "Unknown game of atari 'brakeout'. Did you mean 'breakout'"),
        (dict(games=()), "wants a game"),
        (dict(games=("pong",), frames_per_visit=1_000_001), "frames_per_visit to be a multiple of"),
        (dict(games=("pong",), sticky=1.0), "sticky in [0, 1)"),
    ],
)
def test_impossible_games_are_refused(given, words):
    with pytest.raises(ValueError) as error:
        Atari(**given)
    assert words in str(error.value)


def test_a_sequence_of_games_needs_one_set_of_actions():
    with pytest.raises(ValueError, match="pong 6, breakout 4"):
        _ = Atari(games=("pong", "breakout")).num_actions
    assert Atari(games=("pong", "breakout"), full_action_space=True).num_actions == 18


def test_the_defaults_of_atari_are_dqn_zoos():
    atari = Atari(games=("pong",))
    assert atari.num_steps == (50_000_000 - 20_000) // 4
    assert (atari.n_step, atari.discount, atari.batch_size, atari.target_period) == (3, 0.99, 32, 2000)
    assert (atari.v_min, atari.v_max, atari.priority_exponent, atari.uniform_mix) == (-10.0, 10.0, 0.5, 1e-3)
    assert atari.is_exponent == (0.4, 1.0) and atari.capacity == 1_000_000 and not atari.full_action_space
    assert BENCHMARKS["atari"] is Atari


def test_the_exponent_of_importance_weights_moves_over_every_visit():
    learner = learner_of("baseline")
    learner.state.step = 0
    assert learner.is_exponent() == 0.4
    learner.state.step = 18  # halfway through the second visit of 12 updates
    assert learner.is_exponent() == pytest.approx(0.7)


@pytest.mark.gpu
def test_an_update_in_a_cuda_graph_is_the_eager_one():
    """A hundred updates from the same replay: rounding apart, the same parameters."""
    found = []
    for graphed in (False, True):
        learner = learner_of("nap", device="cuda")
        if not graphed:
            learner._graphed = lambda learn: learn()
        for _ in range(100):
            learner.update()
        found.append(learner.state.flat.detach().cpu())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)

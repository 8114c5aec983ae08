"""Catch and its variants: what a game shows, that it is a function of its seed, and that its optimum is what it is said to be."""

import pytest
import torch

from nap_bench.rl.pixels import BLOCK, CHANGES, Catch, Task, drawn_task, optimum, random_return

SHAPE = (10, 6)
SEEDS = (0, 1, 7)
EVERYTHING = Task(moves=(1, -1, 0), speed=2, wind=3, flip_columns=True, flip_rows=True, invert=True, pixels=4)
TASKS = {
    "plain": Task(),
    "actions": Task(moves=(0, 1, -1)),
    "fast": Task(speed=2),
    "wind": Task(wind=2),
    "flipped": Task(flip_columns=True, flip_rows=True),
    "inverted": Task(invert=True),
    "permuted": Task(pixels=3),
    "everything": EVERYTHING,
}


def games(task, seeds=SEEDS, num_envs=4, shape=SHAPE, counters=(0,)):
    return Catch(seeds, num_envs, [task] * len(seeds), shape, purpose="test", counters=counters)


def played(environments, num_steps, actions_seed=0, frames=None):
    """Frames [T + 1] of a game played at random by actions that depend on the step and the environment alone."""
    draw = torch.Generator().manual_seed(actions_seed)
    shown = [environments.reset()] if frames is None else frames
    for _ in range(num_steps):
        actions_E = torch.randint(3, (16,), generator=draw)[: environments.num_envs]
        shown.append(environments.step(actions_E.expand(len(environments.seeds), -1)))
    return shown


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_ball_falls_a_row_a_step_and_the_paddle_does_what_the_action_says():
    for action, columns in ((0, (2, 1, 0, 0)), (1, (3, 3, 3, 3)), (2, (4, 5, 5, 5))):
        environments = games(Task())
        frame = environments.reset()
        assert frame.frame.dtype == torch.uint8 and frame.first.all() and not frame.last.any()
        ball_SE = frame.frame[:, :, 0].argmax(dim=2)
        assert (frame.frame[:, :, 9].argmax(dim=2) == 3).all() and (frame.frame.sum(dim=(2, 3)) == 2 * 255).all()
        for row, at in enumerate(columns, start=1):
            frame = environments.step(torch.full((3, 4), action))
            assert torch.equal(frame.frame[:, :, row].argmax(dim=2), ball_SE) and not frame.first.any()
            assert (frame.frame[:, :, 9].argmax(dim=2) == at).all() and (frame.reward == 0).all()


def test_an_episode_ends_in_the_last_row_with_a_reward_and_the_next_step_begins_another_whatever_the_action():
    environments = games(Task())
    shown = played(environments, 3 * SHAPE[0])
    for time, frame in enumerate(shown):
        row = time % SHAPE[0]
        assert (frame.first == (row == 0)).all() and (frame.last == (row == 9)).all()
        assert (frame.discount == (row != 9)).all()
        bright_SE = (frame.frame[:, :, 9] > 0).sum(dim=2)  # ball and paddle, or the one on the other
        wanted = torch.where(bright_SE == 1, 1.0, -1.0) if row == 9 else torch.zeros(3, 4)
        assert torch.equal(frame.reward, wanted)
        if row == 0:
            assert (frame.frame[:, :, 9].argmax(dim=2) == 3).all()
    ends = torch.stack([frame.reward for frame in shown if frame.last.all()])
    assert (ends == 1).any() and (ends == -1).any()


def test_the_wind_moves_the_ball_by_as_much_in_every_row_and_round_the_edges():
    environments = games(Task(wind=2))
    ball_SE = environments.reset().frame[:, :, 0].argmax(dim=2)
    for row in range(1, 9):
        frame = environments.step(torch.ones(3, 4, dtype=torch.int64))
        assert torch.equal(frame.frame[:, :, row].argmax(dim=2), (ball_SE + 2 * row) % 6)


def test_variants_of_looks_show_the_same_game_in_other_places():
    plain = played(games(Task()), 25)
    looks = {
        "flipped": (Task(flip_columns=True), lambda x: x.flip(3)),
        "upside down": (Task(flip_rows=True), lambda x: x.flip(2)),
        "inverted": (Task(invert=True), lambda x: 255 - x),
    }
    for task, look in looks.values():
        for frame, other in zip(plain, played(games(task), 25), strict=True):
            assert torch.equal(other.frame, look(frame.frame)) and same(other[1:], frame[1:])
    permuted = played(games(Task(pixels=3)), 25)
    cells = [torch.stack([f.frame.flatten(2) for f in shown]) for shown in (plain, permuted)]  # [T, S, E, K]
    for index in range(len(SEEDS)):
        histories = [{tuple(column) for column in cell[:, index].flatten(0, 1).T.tolist()} for cell in cells]
        assert histories[0] == histories[1]  # every pixel's history is that of a pixel of the plain game
    assert not torch.equal(cells[0], cells[1]) and not torch.equal(cells[1][:, 0], cells[1][:, 1])


def test_actions_change_their_meaning_and_the_game_does_not():
    moves = (0, 1, -1)
    meaning = torch.tensor([Task().moves.index(move) for move in moves])
    changed, plain = games(Task(moves=moves)), games(Task())
    assert same(changed.reset(), plain.reset())
    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        actions_SE = torch.randint(3, (3, 4), generator=draw)
        assert same(changed.step(actions_SE), plain.step(meaning[actions_SE]))


@pytest.mark.parametrize("name", TASKS)
def test_a_game_is_a_function_of_its_seed_whatever_is_played_beside_it(name):
    together = played(games(TASKS[name], num_envs=4), 35)
    for index, seed in enumerate(SEEDS):
        alone = played(games(TASKS[name], seeds=(seed,), num_envs=6), 35)
        for frame, other in zip(together, alone, strict=True):
            assert all(torch.equal(a[index], b[0, :4]) for a, b in zip(frame, other, strict=True))
    assert not torch.equal(together[0].frame[0], together[0].frame[1])


def test_balls_start_everywhere_equally_often_and_anew_with_every_counter_and_block():
    environments = games(Task(), seeds=(0,), num_envs=32)
    drawn = torch.stack([environments._drawn_balls(block) for block in range(4)])
    counts = drawn.flatten().bincount(minlength=6)
    expected = drawn.numel() / 6
    assert ((counts - expected) ** 2 / expected).sum() < 25.7  # chi-square, 5 degrees of freedom, p = 1e-4
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0, :, :, 0], drawn[0, :, :, 1])
    other = games(Task(), seeds=(0,), num_envs=32, counters=(1,))
    assert not torch.equal(drawn[0], other._drawn_balls(0))


@pytest.mark.parametrize("at", [0, 7, 9, 10, 10 * BLOCK - 1, 10 * BLOCK + 3])
def test_a_game_goes_on_from_what_was_saved_at_any_step(at):
    whole = games(EVERYTHING, seeds=(3,), num_envs=2)
    played(whole, at)
    saved = whole.state_dict()
    wanted = played(whole, 12, actions_seed=1, frames=[])
    resumed = games(EVERYTHING, seeds=(3,), num_envs=2)
    resumed.reset()
    resumed.load_state_dict(saved)
    assert all(map(same, wanted, played(resumed, 12, actions_seed=1, frames=[])))


def test_a_visit_changes_what_it_is_asked_to_change_and_differs_between_seeds_and_visits():
    assert drawn_task(3, 5, SHAPE, ()) == Task()
    drawn = {(seed, visit): drawn_task(seed, visit, SHAPE, CHANGES) for seed in range(4) for visit in range(12)}
    assert drawn[1, 2] == drawn_task(1, 2, SHAPE, CHANGES) and len(set(drawn.values())) > 40
    assert {task.speed for task in drawn.values()} == {1, 2} and {task.wind for task in drawn.values()} == set(range(6))
    assert len({task.moves for task in drawn.values()}) == 6
    flips = {drawn_task(0, visit, SHAPE, ("flip",)) for visit in range(30)}
    assert flips == {Task(flip_columns=a, flip_rows=b) for a in (False, True) for b in (False, True)}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Task(moves=(1, 1, 0)), r"moves.*\(1, 1, 0\)"),
        (lambda: Task(speed=0), "speed >= 1.*speed = 0"),
        (lambda: drawn_task(0, 0, SHAPE, ("winds",)), "Did you mean 'wind'"),
        (lambda: games(Task(), shape=(1, 5)), r"at least 2 rows.*\(1, 5\)"),
        (lambda: Catch((0, 1), 1, [Task()], SHAPE, purpose="test"), "a task for each of 2 seeds; found 1"),
    ],
)
def test_what_cannot_be_played_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()


def solved(task, shape):
    """Mean return of the best policy and of the uniformly random one, by dynamic programming over the game itself.

    A state is (ball's column at the start, paddle); environments are put into all of them, row by row from the last.
    """
    height, width = shape
    environments = Catch((0,), width * width, [task], shape, purpose="test")
    environments.reset()
    ball_E, paddle_E = torch.cartesian_prod(torch.arange(width), torch.arange(width)).T
    environments._block, environments._balls = 0, ball_E.expand(BLOCK, 1, -1)
    best_E = random_E = torch.zeros(width * width, dtype=torch.float64)
    for row in reversed(range(height - 1)):
        found = []
        for action in range(3):
            environments.load_state_dict({"time": row, "paddle": paddle_E.unsqueeze(0)})
            frame = environments.step(torch.full((1, width * width), action))
            then_E = ball_E * width + environments.paddle_SE[0]
            keep_E = frame.discount[0]
            found.append([frame.reward[0] + keep_E * value_E[then_E] for value_E in (best_E, random_E)])
        best_E = torch.stack([pair[0] for pair in found]).amax(dim=0)
        random_E = torch.stack([pair[1] for pair in found]).mean(dim=0)
    starts = torch.arange(width) * width + width // 2
    return float(best_E[starts].mean()), float(random_E[starts].mean())


@pytest.mark.parametrize("shape", [(10, 6), (10, 5), (4, 9), (3, 8), (2, 2)])
@pytest.mark.parametrize("name", TASKS)
def test_optimum_and_random_return_are_those_of_dynamic_programming(name, shape):
    best, random = solved(TASKS[name], shape)
    assert optimum(TASKS[name], shape) == pytest.approx(best, abs=1e-12)
    assert random_return(shape) == pytest.approx(random, abs=1e-12)


def test_every_ball_can_be_caught_where_there_is_time_and_the_paddle_gets_to_every_column():
    assert optimum(Task(), SHAPE) == optimum(EVERYTHING, SHAPE) == 1.0
    assert optimum(Task(), (3, 9)) == 2 * 5 / 9 - 1  # two steps to either side
    assert optimum(Task(speed=2), (10, 5)) == 2 * 3 / 5 - 1  # columns 0, 2 and 4
    assert random_return(SHAPE) == 2 / 6 - 1

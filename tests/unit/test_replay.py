"""The replay against slow ones: what can be drawn, how often, and that stacks and returns are those of the episodes played.

Small rings, so that every history goes round several times.
"""

import io

import pytest
import torch

from nap_bench.rl import replay as module
from nap_bench.rl.replay import FAN_OUT, MAX_PRIORITY, Replay, SumTree, importance_weights

GAMMA, EXPONENT, SHAPE = 0.9, 0.5, (2, 3)


def small(num_seeds=2, num_envs=3, rows=12, stack=4, n_step=3, uniform_mix=1e-3):
    return Replay(
        num_seeds,
        num_envs,
        rows * num_envs + num_envs - 1,  # what is not a whole row is not kept
        SHAPE,
        stack=stack,
        n_step=n_step,
        discount=GAMMA,
        priority_exponent=EXPONENT,
        uniform_mix=uniform_mix,
        device="cpu",
    )


def history(num_rows, num_seeds=2, num_envs=3, seed=0, longest=7):
    """Rows (frame, action, reward, discount, first, last) of episodes that end, lose lives, time out or are broken off.

    Every stream has its own draws, so that a block's is that of each seed alone.
    """
    rows = [[torch.zeros(num_seeds, num_envs) for _ in range(5)] for _ in range(num_rows)]
    frames = torch.zeros(num_rows, num_seeds, num_envs, *SHAPE, dtype=torch.uint8)
    for s in range(num_seeds):
        for e in range(num_envs):
            draw = torch.Generator().manual_seed(1000 * seed + 100 * s + e)

            def uniform(draw=draw):
                return float(torch.rand((), generator=draw))

            left = 0
            for t in range(num_rows):
                action, reward, discount, first, last = (part[s, e : e + 1] for part in rows[t])
                frames[t, s, e] = torch.randint(1, 256, SHAPE, generator=draw)
                action.fill_(int(18 * uniform()))
                reward.fill_(int(3 * uniform()) - 1)
                discount.fill_(uniform() > 0.15)  # a life lost, unless the episode ends here
                first.fill_(left == 0)
                left = left - 1 if left else int(longest * uniform()) + 1
                if left == 0:
                    last.fill_(uniform() > 0.1)  # else broken off: the next row is first and this one not last
                    discount.fill_(uniform() > 0.5)  # a time limit, or the end
    return [
        (frames[t], action.long(), reward, discount, first.bool(), last.bool())
        for t, (action, reward, discount, first, last) in enumerate(rows)
    ]


class SlowReplay:
    """Lists of everything ever added, and the definitions written out."""

    def __init__(self, fast):
        self.fast, self.rows = fast, []

    def ends(self, s, e, t):
        broken_off = t + 1 < len(self.rows) and self.rows[t + 1][4][s, e]
        return bool(self.rows[t][5][s, e] or broken_off)

    def live(self, s, e):
        """Rows, counted from the first ever added, that can be drawn."""
        newest, fast = len(self.rows) - 1, self.fast
        oldest = max(0, newest - fast.num_rows_kept + fast.stack)
        return [t for t in range(oldest, newest - fast.n_step + 1) if not self.ends(s, e, t)]

    def stack_at(self, s, e, t):
        frames = []
        while len(frames) < self.fast.stack:
            if t < 0:
                frames.append(torch.zeros(SHAPE, dtype=torch.uint8))
                continue
            frames.append(self.rows[t][0][s, e])
            t = -1 if self.rows[t][4][s, e] or t == 0 else t - 1
        return torch.stack(frames[::-1])

    def transition(self, s, e, t):
        """An accumulator that walks on, as DQN Zoo's: rewards are weighed by all discounts before them."""
        total, product, at = 0.0, 1.0, t
        for _ in range(self.fast.n_step):
            at += 1
            total += product * float(self.rows[at][2][s, e])
            product *= GAMMA * float(self.rows[at][3][s, e])
            if self.ends(s, e, at):
                break
        return self.stack_at(s, e, t), int(self.rows[t][1][s, e]), total, product, self.stack_at(s, e, at)


def leaf(replay, e, t):
    return t % replay.num_rows_kept * replay.num_envs + e


def drawable(replay):
    """[S, T, E]"""
    leaves = replay.tree.levels[0].view(len(replay.max_priority_S), -1)
    return leaves[:, : replay.num_rows_kept * replay.num_envs].view(-1, replay.num_rows_kept, replay.num_envs) > 0


def uniforms(num_seeds, batch, seed=0):
    return torch.rand(num_seeds, batch, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The tree


@pytest.mark.parametrize("fan_out", [2, 3, 8, FAN_OUT])
@pytest.mark.parametrize("num_leaves", [1, 2, 31, 32, 33, 100, 1025])
def test_the_tree_finds_what_a_running_sum_finds_over_random_operations(num_leaves, fan_out):
    tree, draw = SumTree(3, num_leaves, fan_out=fan_out), torch.Generator().manual_seed(num_leaves)
    naive = torch.zeros(3, num_leaves, dtype=torch.float64)
    for _ in range(30):
        index = torch.randint(num_leaves, (3, 7), generator=draw)
        values = torch.rand(3, 7, dtype=torch.float64, generator=draw) ** 8
        values[torch.rand(3, 7, generator=draw) < 0.3] = 0
        tree.set(index, values)
        for s in range(3):
            for k in range(7):
                naive[s, index[s, k]] = values[s, k]
        assert torch.equal(tree.get(index), naive.gather(1, index))
        assert torch.allclose(tree.total_S, naive.sum(dim=1), rtol=1e-13)
        shares = torch.rand(3, 50, dtype=torch.float64, generator=draw)
        found = tree.find(shares)
        sums = naive.cumsum(dim=1)
        for s in range(3):
            if not naive[s].any():
                continue
            wanted = torch.searchsorted(sums[s], shares[s] * sums[s, -1], right=True)
            assert (naive[s][found[s]] > 0).all()
            off = found[s] != wanted  # only where the share meets a border but for rounding
            assert ((sums[s][wanted[off]] - shares[s][off] * sums[s, -1]).abs() < 1e-14 * sums[s, -1]).all()


def test_a_hundred_thousand_updates_leave_a_tree_as_if_built_at_once():
    draw, num_leaves = torch.Generator().manual_seed(0), 5000
    tree = SumTree(2, num_leaves)
    for _ in range(2000):
        index = torch.randint(num_leaves, (2, 50), generator=draw)
        tree.set(index, torch.rand(2, 50, dtype=torch.float64, generator=draw) * 10.0 ** float(index[0, 0] % 7 - 3))
    anew = SumTree(2, num_leaves)
    every = torch.arange(num_leaves).expand(2, -1)
    anew.set(every, tree.get(every))
    assert all(map(torch.equal, tree.levels, anew.levels))
    assert torch.allclose(tree.total_S, tree.get(every).sum(dim=1), rtol=1e-13)


def test_a_leaf_of_value_zero_is_never_found_however_sums_are_rounded():
    draw, extremes = torch.Generator().manual_seed(1), torch.tensor([0.0, 2**-60, 0.5, 1 - 2**-53], dtype=torch.float64)
    for _ in range(200):
        tree = SumTree(1, 1500)
        values = torch.rand(1, 1500, dtype=torch.float64, generator=draw) * 10.0 ** torch.randint(
            -9, 9, (1, 1500), generator=draw
        )
        values[torch.rand(1, 1500, generator=draw) < 0.9] = 0
        tree.set(torch.arange(1500).unsqueeze(0), values)
        borders = values.cumsum(dim=1)[0] / values.sum()  # where rounding decides
        shares = torch.cat([extremes, borders[borders < 1], torch.rand(100, dtype=torch.float64, generator=draw)])
        assert (tree.get(tree.find(shares.unsqueeze(0))) > 0).all()


# What can be drawn


@pytest.mark.parametrize(("stack", "n_step", "rows"), [(4, 3, 12), (1, 1, 2), (1, 3, 5), (4, 1, 9), (2, 5, 7)])
def test_rows_stacks_and_returns_are_those_of_a_replay_that_forgets_nothing(stack, n_step, rows):
    replay = small(stack=stack, n_step=n_step, rows=rows)
    slow, seen = SlowReplay(replay), 0
    for row in history(60, seed=rows):
        replay.add(*row)
        slow.rows.append(row)
        wanted = torch.zeros(2, rows, 3, dtype=torch.bool)
        for s in range(2):
            for e in range(3):
                for t in (live := slow.live(s, e)):
                    wanted[s, t % rows, e] = True
                if live:
                    index = torch.full((2, len(live)), 0)
                    index[s] = torch.tensor([leaf(replay, e, t) for t in live])
                    parts = [part[s] for part in replay._transitions(index)]
                    for found, t in zip(zip(*parts, strict=True), live, strict=True):
                        s_tm1, a_tm1, r_t, discount_t, s_t = slow.transition(s, e, t)
                        assert torch.equal(found[0], s_tm1) and torch.equal(found[4], s_t) and found[1] == a_tm1
                        assert float(found[2]) == pytest.approx(r_t, abs=1e-6)
                        assert float(found[3]) == pytest.approx(discount_t, abs=1e-6)
                        seen += 1
        assert torch.equal(drawable(replay), wanted)
    assert seen > 200


def one_stream(ends, rows=20, discounts=None, n_step=3, stack=4):
    """A replay of one stream whose episodes end at these rows, rewards 1, 2, 3, ...; 16 rows are added."""
    replay, first = small(1, 1, rows, n_step=n_step, stack=stack), True
    for t in range(16):
        one = torch.ones(1, 1)
        discount = 1.0 if discounts is None else discounts.get(t, 1.0)
        frame = torch.full((1, 1, *SHAPE), t + 1, dtype=torch.uint8)
        replay.add(frame, one.long(), one * t, one * discount, one.bool() & first, (one * (t in ends)).bool())
        first = t in ends
    return replay


def drawn(replay, t):
    """(frames of s, r, discount, frames of s') of the one stream's row t, a frame by its number, 0 for zeros."""
    s_tm1, _, r_t, discount_t, s_t = replay._transitions(torch.tensor([[t]]))
    return s_tm1[0, 0, :, 0, 0].tolist(), float(r_t), float(discount_t), s_t[0, 0, :, 0, 0].tolist()


def test_the_newest_n_rows_wait_for_what_follows_them():
    assert drawable(one_stream(ends=()))[0, :, 0].nonzero().flatten().tolist() == list(range(13))


def test_a_row_that_ends_an_episode_starts_no_transition():
    live = drawable(one_stream(ends=(5, 9)))[0, :, 0].nonzero().flatten().tolist()
    assert live == [t for t in range(13) if t not in (5, 9)]


def test_rows_go_before_the_frames_of_their_stack_are_overwritten():
    live = drawable(one_stream(ends=(), rows=10))[0, :, 0].nonzero().flatten().tolist()
    assert sorted(live) == sorted(
        t % 10 for t in (9, 10, 11, 12)
    )  # row 6 is the oldest kept: the stack of row 9 begins there


def test_a_termination_ends_the_return_and_a_time_limit_does_not():
    discounts = {7: 0.0}
    assert drawn(one_stream((7,), discounts=discounts), 6) == ([4, 5, 6, 7], 7.0, 0.0, [5, 6, 7, 8])
    frames, r_t, discount_t, after = drawn(one_stream((7,)), 6)
    assert (r_t, after) == (7.0, [5, 6, 7, 8]) and discount_t == pytest.approx(GAMMA)
    _, r_t, discount_t, after = drawn(one_stream((7,)), 5)
    assert r_t == pytest.approx(6 + GAMMA * 7) and discount_t == pytest.approx(GAMMA**2) and after == [5, 6, 7, 8]


def test_a_lost_life_cuts_the_return_and_neither_the_episode_nor_the_stack():
    frames, r_t, discount_t, after = drawn(one_stream((), discounts={7: 0.0}), 5)
    assert r_t == pytest.approx(6 + GAMMA * 7) and discount_t == 0.0
    assert (frames, after) == ([3, 4, 5, 6], [6, 7, 8, 9])
    assert drawable(one_stream((), discounts={7: 0.0}))[0, 7, 0]


def test_frames_before_an_episodes_first_are_zeros_in_the_oldest_places():
    replay = one_stream((7,))
    assert drawn(replay, 0)[0] == [0, 0, 0, 1] and drawn(replay, 0)[3] == [1, 2, 3, 4]
    assert [drawn(replay, t)[0] for t in (8, 10, 11)] == [[0, 0, 0, 9], [0, 9, 10, 11], [9, 10, 11, 12]]


# How often


def prioritised(num_seeds=2, uniform_mix=1e-3, num_rows=40, seed=0):
    """A full ring with random priorities, and their values [S, leaves]."""
    replay = small(num_seeds, uniform_mix=uniform_mix)
    for row in history(num_rows, num_seeds, seed=seed):
        replay.add(*row)
    live = drawable(replay).flatten(1)
    losses = torch.rand(live.shape, generator=torch.Generator().manual_seed(seed)) * 5
    for s in range(num_seeds):
        index = torch.zeros(num_seeds, int(live[s].sum()), dtype=torch.int64)
        index[:] = torch.stack([live[k].nonzero().flatten()[0] for k in range(num_seeds)]).unsqueeze(1)
        index[s] = live[s].nonzero().flatten()
        replay.update_priorities(index, losses.gather(1, index))
    return replay, torch.where(live, losses.double() ** EXPONENT, 0.0)


@pytest.mark.parametrize("uniform_mix", [0.0, 0.3])
def test_transitions_are_drawn_as_often_as_their_priorities_say(uniform_mix):
    replay, values = prioritised(uniform_mix=uniform_mix)
    grid = (torch.arange(600, dtype=torch.float64) + 0.5) / 600
    found = replay.sample(torch.cartesian_prod(grid, grid).expand(2, -1, -1))
    for s in range(2):
        counts = found.indices[s].bincount(minlength=values.shape[1]) / 600**2
        wanted = (1 - uniform_mix) * values[s] / values[s].sum() + uniform_mix * (values[s] > 0) / (values[s] > 0).sum()
        told = torch.zeros_like(wanted).scatter(0, found.indices[s], found.probabilities[s])
        assert told.sum() == pytest.approx(1.0, abs=1e-12)
        assert (counts - told).abs().max() < 2 / 600
        ends = replay._num_ends_S[s] / (replay._num_ripe * replay.num_envs)
        exactly = (1 - uniform_mix + uniform_mix * ends) * values[s] / values[s].sum()
        exactly += uniform_mix * (values[s] > 0) / (replay._num_ripe * replay.num_envs)
        assert torch.allclose(told, exactly, rtol=1e-12)
        if uniform_mix == 0.0:
            assert torch.allclose(told, wanted, rtol=1e-12)


def test_the_share_of_ends_is_that_of_the_rows_that_can_be_met():
    replay = small()
    slow = SlowReplay(replay)
    for row in history(50, seed=3):
        replay.add(*row)
        slow.rows.append(row)
        for s in range(2):
            num_live = sum(len(slow.live(s, e)) for e in range(3))
            assert replay._num_ripe * 3 - replay._num_ends_S[s] == num_live


def test_independent_draws_pass_a_chi_square_test():
    replay, values = prioritised()
    found = replay.sample(uniforms(2, 40_000)).indices
    for s in range(2):
        expected = values[s] / values[s].sum() * 40_000
        expected = expected[values[s] > 0]
        counts = found[s].bincount(minlength=values.shape[1])[values[s] > 0]
        statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(expected) - 1
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_importance_weights_are_the_inverse_probabilities_over_the_largest():
    p_SB = torch.tensor([[0.1, 0.4, 0.2], [0.5, 0.25, 0.25]], dtype=torch.float64)
    weights = importance_weights(p_SB, 0.4)
    wanted = (1 / (1000 * p_SB)) ** 0.4
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.double(), wanted / wanted.amax(dim=1, keepdim=True), rtol=1e-6)
    assert torch.equal(importance_weights(p_SB, 0.0), torch.ones(2, 3))


def test_new_rows_have_the_highest_priority_seen_by_their_seed_clipped_to_a_hundred():
    replay, rows = small(uniform_mix=0.0), history(40, longest=50)
    for row in rows[:10]:
        replay.add(*row)
    assert set(replay.tree.levels[0].unique().tolist()) == {0.0, 1.0}
    replay.update_priorities(torch.tensor([[9, 12], [9, 12]]), torch.tensor([[1e9, 2.0], [0.5, 0.25]]))
    assert replay.max_priority_S.tolist() == [MAX_PRIORITY, 1.0]
    assert replay.tree.get(torch.tensor([[9, 12], [9, 12]])).tolist() == [[10.0, 2**0.5], [0.5**0.5, 0.5]]
    replay.add(*rows[10])  # row 7 ripens
    assert replay.tree.get(torch.tensor([[21, 22, 23]] * 2)).tolist() == [[10.0] * 3, [1.0] * 3]


# Seeds, memory, saving


def worked(replay, rows, num_seeds, which=slice(None), start=0):
    """Adds, draws and re-weighs; what was drawn. `which` seeds of the history's."""
    found = []
    for t, row in enumerate(rows, start=start):
        replay.add(*(part[which] for part in row))
        if t > 6:
            drawn = replay.sample(uniforms(num_seeds, 8, seed=t)[which])
            found.append(drawn)
            replay.update_priorities(drawn.indices, drawn.r_t.abs() + drawn.s_tm1.float().mean(dim=(2, 3, 4)) / 99)
    return found


def test_a_seed_in_a_block_draws_what_it_draws_alone():
    rows = history(50, num_seeds=3)
    block = small(3)
    together = worked(block, rows, 3)
    for s in range(3):
        alone = small(1)
        for found, other in zip(together, worked(alone, rows, 3, slice(s, s + 1)), strict=True):
            assert all(torch.equal(a[s], b[0]) for a, b in zip(found, other, strict=True))
        assert block.max_priority_S[s] == alone.max_priority_S[0]
    assert not torch.equal(together[-1].indices[0], together[-1].indices[1])


def test_a_seed_that_diverged_does_not_disturb_the_others():
    rows = history(30)
    well, ill = small(), small()
    for replay in (well, ill):
        for row in rows:
            replay.add(*row)
            if replay.num_rows > 6:
                drawn = replay.sample(uniforms(2, 8, seed=replay.num_rows))
                losses = drawn.r_t.abs() + 0.1
                losses[1] = torch.nan if replay is ill else losses[1]
                replay.update_priorities(drawn.indices, losses)
    a, b = (replay.sample(uniforms(2, 8, seed=99)) for replay in (well, ill))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))
    assert b.indices.max() < 36 and b.indices.min() >= 0 and ill.tree.total_S.isfinite().all()


@pytest.mark.parametrize("at", [8, 12, 13, 31])
def test_a_replay_goes_on_from_what_was_saved_to_the_same_bytes(at):
    rows, whole, resumed = history(50), small(), small()
    worked(whole, rows[:at], 2)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    worked(resumed, rows[20:29], 2)  # whatever was in it
    resumed.load_state_dict(torch.load(file, weights_only=True))
    wanted, found = (worked(replay, rows[at:], 2, start=at) for replay in (whole, resumed))
    for a, b in zip(wanted, found, strict=True):
        assert all(map(torch.equal, a, b))
    a, b = (replay.state_dict() for replay in (whole, resumed))
    assert a["num_rows"] == b["num_rows"] and all(map(torch.equal, a["tree"], b["tree"]))
    assert all(torch.equal(a[name], b[name]) for name in ("frames", "facts", "max_priority", "num_ends"))


def test_a_ring_that_is_not_full_is_saved_without_its_empty_part():
    replay = small(1, 1, rows=10_000)
    for row in history(20, 1, 1):
        replay.add(*row)
    file = io.BytesIO()
    torch.save({key: replay.state_dict()[key] for key in ("frames", "facts")}, file)
    assert file.tell() < 5000


def test_a_cleared_replay_is_a_new_one_whatever_it_held():
    rows, cleared, new = history(50), small(), small()
    worked(cleared, rows[:33], 2)
    cleared.clear()
    assert cleared.num_added == 0
    for a, b in zip(worked(cleared, rows[33:], 2), worked(new, rows[33:], 2), strict=True):
        assert all(map(torch.equal, a, b))


def test_memory_that_is_not_there_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    2000000 kB\n")
    monkeypatch.setattr(module, "MEMINFO", meminfo)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: pytest.fail("allocated"))
    sizes = dict(stack=4, n_step=3, discount=0.99, priority_exponent=0.5, uniform_mix=1e-3, device="cpu")
    with pytest.raises(ValueError, match=r"wants 7\.\d\d GB on cpu, 2\.05 GB are free. Lower its capacity"):
        Replay(1, 16, 1_000_000, (84, 84), **sizes)


def test_the_bytes_foretold_are_those_that_are_kept():
    replay = Replay(
        2, 3, 3000, (8, 6), stack=4, n_step=3, discount=0.99, priority_exponent=0.5, uniform_mix=0.1, device="cpu"
    )
    kept = [replay.frames, replay.facts, *replay.tree.levels]
    assert Replay.memory_bytes(2, 3, 3000, (8, 6)) == sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert 7.0e9 < Replay.memory_bytes(1, 16, 1_000_000, (84, 84)) < 7.2e9


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(rows=6), r"capacity >= \(n_step \+ stack\) \* num_envs = 21.*found capacity = 20"),
        (dict(n_step=0), "n_step >= 1.*n_step = 0"),
        (dict(stack=0), "stack >= 1.*stack = 0"),
        (dict(uniform_mix=1.0), r"uniform_mix in \[0, 1\).*uniform_mix = 1.0"),
    ],
)
def test_a_replay_that_cannot_work_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        small(**wrong)


def test_drawing_from_a_replay_that_has_nothing_says_how_much_it_has():
    replay = small()
    for row in history(3):
        replay.add(*row)
    with pytest.raises(ValueError, match="from 3 rows with n_step = 3"):
        replay.sample(uniforms(2, 4))

"""Atari against a slow player written from the protocol (Mnih et al. 2015, DQN Zoo) on ALE's single emulator."""

import inspect
import itertools

import ale_py
import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv

from nap_bench.rl.envs import Atari, env_seeds
from nap_bench.rl.replay import Replay
from nap_bench.rl.scores_atari import GAMES, HUMAN_RANDOM, human_normalised

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def atari(game="breakout", seeds=(0,), num_envs=1, purpose="test", **settings):
    return Atari(seeds, num_envs, game, purpose=purpose, **settings)


def area_weights(num_in, num_out):
    """[num_out, num_in]: the share of each old pixel in each new one, by the overlap of their areas."""
    size = num_in / num_out
    new, old = np.arange(num_out)[:, None], np.arange(num_in)[None, :]
    return np.clip(np.minimum((new + 1) * size, old + 1) - np.maximum(new * size, old), 0, None) / size


ROWS, COLUMNS = area_weights(210, 84), area_weights(160, 84)


class SlowAtari:
    """One game, four frames an action, the larger of the last two, averaged over areas; no no-ops, nothing sticky."""

    def __init__(self, game, seed):
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", seed)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(game))
        self.ale.reset_game()
        self.actions, self.screens = self.ale.getMinimalActionSet(), [self.ale.getScreenGrayscale()] * 2

    def shown(self):
        """Before rounding."""
        return ROWS @ np.maximum(*self.screens[-2:]).astype(float) @ COLUMNS.T

    def act(self, action):
        """(reward, discount, over)"""
        lives, reward = self.ale.lives(), 0
        for _ in range(4):
            reward += self.ale.act(self.actions[action])
            self.screens.append(self.ale.getScreenGrayscale())
            if self.ale.game_over():
                break
        return reward, float(not self.ale.game_over() and self.ale.lives() >= lives), self.ale.game_over()


def played(environments, num_steps, seed=0, first=None, record=lambda actions, frame: None):
    """Frames of a game played at random; actions are recorded with the frame that they led to."""
    draw, shown = torch.Generator().manual_seed(seed), [first or environments.reset()]
    for _ in range(num_steps):
        actions_SE = torch.randint(environments.num_actions, environments.shape, generator=draw)
        shown.append(environments.step(actions_SE))
        record(actions_SE, shown[-1])
    return shown


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("game", "num_steps"), [("breakout", 400), ("space_invaders", 150), ("pong", 50)])
def test_frames_raw_rewards_and_discounts_are_those_of_the_protocol(game, num_steps):
    environments = atari(game, noop_max=0)
    slow, draw = SlowAtari(game, int(environments._seeds[0])), torch.Generator().manual_seed(0)
    frame, lost, largest = environments.reset(), 0, 0
    assert frame.frame.dtype == torch.uint8 and frame.first.all() and not frame.last.any()
    for _ in range(num_steps):
        assert np.abs(frame.frame[0, 0].numpy() - slow.shown()).max() <= 0.5 + 1e-9
        action = torch.randint(environments.num_actions, (1, 1), generator=draw)
        frame = environments.step(action)
        reward, discount, over = slow.act(int(action))
        assert (float(frame.reward), float(frame.discount), bool(frame.last)) == (reward, discount, over)
        lost += discount == 0 and not over
        largest = max(largest, reward)
        if over:
            break
    else:
        assert game != "breakout"
    assert lost == {"breakout": 4, "space_invaders": lost, "pong": 0}[game]
    assert game != "space_invaders" or largest >= 5


def test_after_an_episode_the_next_step_ignores_its_action_and_gives_the_first_frame_of_another():
    one, other = atari(noop_max=0), atari(noop_max=0)
    begun, _ = one.reset(), other.reset()
    draw = torch.Generator().manual_seed(0)
    while not one._over.any():
        action = torch.randint(4, (1, 1), generator=draw)
        assert same(one.step(action), other.step(action))
    a, b = one.step(torch.tensor([[3]])), other.step(torch.tensor([[1]]))
    assert same(a, b) and a.first.all() and not a.last.any() and float(a.reward) == 0 and float(a.discount) == 1
    assert torch.equal(a.frame, begun.frame) and int(one._lives[0]) == 5
    assert same(one.step(torch.tensor([[1]])), other.step(torch.tensor([[1]])))


def test_a_time_limit_counts_frames_and_ends_the_episode_and_not_the_return():
    shown = played(atari("pong", max_frames=40), 24)
    assert [t for t, frame in enumerate(shown) if frame.last.any()] == [10, 21]
    assert [t for t, frame in enumerate(shown) if frame.first.any()] == [0, 11, 22]
    assert all(frame.discount.all() for frame in shown)


def test_episodes_begin_with_none_to_all_of_the_no_ops():
    for noop_max, num_envs in ((0, 3), (1, 6)):
        environments = atari(num_envs=num_envs, noop_max=noop_max)
        counts = environments._env.reset(seed=environments._seeds)[1]["episode_frame_number"]
        assert set(counts.tolist()) == set(range(noop_max + 1))


def test_environments_of_neighbouring_seeds_purposes_and_counters_share_no_seed():
    asked = list(itertools.product(range(20), ("training", "evaluation"), range(3), range(3)))
    found = np.concatenate([env_seeds(seed, 16, purpose, *counters) for seed, purpose, *counters in asked])
    assert len(set(found.tolist())) == len(found) and found.min() >= 0 and found.max() < 2**31
    assert (env_seeds(3, 4, "training", 1) == env_seeds(3, 16, "training", 1)[:4]).all()


def test_a_seed_plays_in_a_block_what_it_plays_alone_whatever_the_threads():
    settings = dict(sticky=0.25, noop_max=30)
    block = atari(seeds=(4, 5), num_envs=2, num_threads=2, **settings)
    alone = atari(seeds=(5,), num_envs=3, **settings)
    frames, others, draw = block.reset(), alone.reset(), torch.Generator().manual_seed(0)
    for _ in range(50):
        assert all(torch.equal(a[1], b[0, :2]) for a, b in zip(frames, others, strict=True))
        actions_E = torch.randint(4, (3,), generator=draw)
        frames, others = block.step(actions_E[:2].expand(2, -1)), alone.step(actions_E.unsqueeze(0))
    assert not torch.equal(frames.frame[0], frames.frame[1])


@pytest.mark.parametrize("at", [0, 260])
def test_a_game_goes_on_from_its_log_of_actions_bit_for_bit(at):
    settings = dict(seeds=(0, 1), sticky=0.25, counters=(3,))
    whole, resumed = atari(**settings), atari(**settings)
    shown = played(whole, at)
    saved = whole.state_dict()
    assert saved["actions"].shape == (at, 2) and saved["actions"].dtype == torch.uint8
    wanted = played(whole, 200, seed=1, first=shown[-1])
    if at:  # across ends and beginnings of episodes
        assert any(frame.last.any() for frame in shown) and any(frame.last.any() for frame in wanted)
    resumed.load_state_dict(saved)
    assert all(map(same, wanted, played(resumed, 200, seed=1, first=shown[-1])))
    assert torch.equal(whole.state_dict()["actions"], resumed.state_dict()["actions"])


def test_stacks_drawn_from_a_replay_are_those_that_ale_shows():
    environments, num_steps = atari(num_envs=2), 230
    stacking = AtariVectorEnv(
        "breakout", 2, noop_max=31, use_fire_reset=False, reward_clipping=False, stack_num=4, num_threads=1
    )
    stacks = [stacking.reset(seed=environments._seeds)[0]]
    replay = Replay(
        1,
        2,
        2 * (num_steps + 8),
        (84, 84),
        stack=4,
        n_step=1,
        discount=0.99,
        priority_exponent=0.5,
        uniform_mix=0.0,
        device="cpu",
    )
    shown, taken = [], []
    shown = played(
        environments,
        num_steps,
        record=lambda actions, _: (taken.append(actions), stacks.append(stacking.step(actions.flatten().numpy())[0])),
    )
    for frame, actions in zip(shown, [*taken, taken[-1]], strict=True):
        replay.add(frame.frame, actions, frame.reward.sign(), frame.discount, frame.first, frame.last)
    assert any(frame.last.any() for frame in shown)
    live = (replay.tree.levels[0] > 0).nonzero().flatten()
    s_tm1, _, _, _, s_t = replay._transitions(live.unsqueeze(0))
    for k, index in enumerate(live.tolist()):
        row, env = divmod(index, 2)
        assert np.array_equal(s_tm1[0, k].numpy(), stacks[row][env])
        assert np.array_equal(s_t[0, k].numpy(), stacks[row + 1][env])


def test_every_argument_of_ales_vector_environment_is_set_and_not_left_to_its_default(monkeypatch):
    given = {}

    def remember(self, *args, **settings):
        given.update(settings)
        raise InterruptedError

    wanted = inspect.signature(AtariVectorEnv.__init__).parameters
    monkeypatch.setattr(AtariVectorEnv, "__init__", remember)
    with pytest.raises(InterruptedError):
        atari()
    assert set(given) == set(wanted) - {"self", "game", "num_envs"}


def test_an_unknown_game_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Unknown Atari game 'brekout'. Did you mean 'breakout'"):
        atari("brekout")


def test_actions_are_those_that_do_something_or_all():
    for game, count in {"alien": 18, "atlantis": 4, "breakout": 4, "freeway": 3, "pong": 6, "qbert": 6}.items():
        assert atari(game).num_actions == count
    assert atari("breakout", full_action_space=True).num_actions == 18


def test_there_are_57_games_with_a_rom_and_scores():
    assert len(GAMES) == len(HUMAN_RANDOM) == 57 and list(HUMAN_RANDOM) == list(GAMES) == sorted(GAMES)
    assert set(GAMES) <= set(ale_py.roms.get_all_rom_ids())
    assert all(ale_py.roms.get_rom_path(game).is_file() for game in GAMES)
    assert all(random < human for random, human in HUMAN_RANDOM.values())


def test_normalised_scores_are_0_for_random_and_1_for_human_play():
    assert human_normalised("breakout", 1.7) == 0.0 and human_normalised("breakout", 30.5) == 1.0
    assert human_normalised("pong", 21.0) == pytest.approx(41.7 / 35.3)
    assert np.allclose(human_normalised("pong", np.array([-20.7, 14.6])), [0, 1])
    with pytest.raises(ValueError, match="Did you mean 'pong'"):
        human_normalised("pongg", 0.0)

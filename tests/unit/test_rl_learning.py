"""Rainbow learns a problem whose optimum is known; with a mistake in what it learns from, it does not."""

from __future__ import annotations

import pytest
import torch

from nap_bench.benchmarks import CatchSequence
from nap_bench.experiments.base import make_run
from nap_bench.optimizers import Adam
from nap_bench.rl import loop, rainbow
from nap_bench.rl.loop import Learner, Playing, evaluate, reinforce
from nap_bench.rl.pixels import Task, optimum, random_return
from nap_bench.rl.replay import Replay
from nap_bench.schedules import Cosine
from nap_bench.session import Control
from nap_bench.spec import ModelSpec
from nap_bench.store import RunFolder

DISCOUNT, ROWS, COLUMNS = 0.8, 7, 7
TASK = CatchSequence(
    num_variants=1,
    steps_per_visit=8 * 800 + 400,
    num_envs=8,
    frame_shape=(ROWS, COLUMNS),
    changes=(),
    discount=DISCOUNT,
    bins_per_visit=1,
    eval_steps=7 * 20,
    target_period=25,
)
SEEDS = (1, 2, 3)


def trained(path, monkeypatch) -> Learner:
    kept = []

    class Kept(Learner):
        def __init__(self, *given):
            super().__init__(*given)
            kept.append(self)

    monkeypatch.setattr(loop, "Learner", Kept)
    size = dict(atoms=21, channels=(), hidden=128, kernels=(), sigma=0.1, strides=())
    run = make_run(
        benchmark=TASK,
        model=ModelSpec(family="rainbow", size=tuple(size.items())),
        stack="layer_norm",
        optimizer=Adam(eps=1.5e-4, clip_norm=10.0),
        schedule=Cosine(4e-3, 1e-4),
        seeds=SEEDS,
    )
    folder = RunFolder(path, run)
    folder.open()
    reinforce(run, folder, data_dir=None, device="cpu", control=Control())
    return kept[0]


def solves(learner: Learner) -> list[bool]:
    """Of each seed: at least 90 % of what can be gained over a blind policy, and the first frame valued for what it leads to.

    The ball is in the last row after ROWS - 1 steps, so the best policy's value of a first frame is discount ** (ROWS - 2): no
    value may exceed it by more than 15 %, and what is learned last may lag behind it by 40 %.
    """
    best, blind = optimum(Task(), TASK.frame_shape), random_return(TASK.frame_shape)
    gained_S = (evaluate(TASK, learner, TASK.num_steps) - blind) / (best - blind)
    playing = Playing(TASK, SEEDS, 32, "test", "cpu")
    playing.begin(0, 0)
    with torch.no_grad():
        noise = torch.zeros(len(SEEDS), 1, learner.state.model.num_noise)
        logits = learner.state.forward(rainbow.scaled(playing.seen, torch.float32), noise=noise)
    value_S = (logits.softmax(dim=-1) * learner.agent.support(logits)).sum(dim=-1).amax(dim=2).mean(dim=1)
    share_S = value_S / DISCOUNT ** (ROWS - 2)
    return ((gained_S >= 0.9) & (share_S >= 0.6) & (share_S <= 1.15)).tolist()


def test_a_blind_policy_gains_less_than_a_fifth():
    assert (random_return(TASK.frame_shape) + 1.0) / 2.0 < 0.2


@pytest.mark.slow
def test_rainbow_learns_on_three_of_three_seeds(tmp_path, monkeypatch):
    assert solves(trained(tmp_path, monkeypatch)) == [True] * 3


def no_bootstrap(monkeypatch):
    losses = rainbow.Agent.losses

    def wrong(self, state, stack, target, batch, noise):
        return losses(self, state, stack, target, batch._replace(discount_t=torch.zeros_like(batch.discount_t)), noise)

    monkeypatch.setattr(rainbow.Agent, "losses", wrong)


def discount_of_one_step(monkeypatch):
    """What n steps later is worth is discounted as if it were one step later."""
    sample = Replay.sample

    def wrong(self, uniforms):
        found = sample(self, uniforms)
        return found._replace(discount_t=torch.where(found.discount_t > 0, DISCOUNT, 0.0))

    monkeypatch.setattr(Replay, "sample", wrong)


def frozen_target(monkeypatch):
    update = Learner.update

    def wrong(self):
        target = self.target.clone()
        update(self)
        self.target.copy_(target)

    monkeypatch.setattr(Learner, "update", wrong)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [no_bootstrap, discount_of_one_step, frozen_target])
def test_it_does_not_with_a_mistake(tmp_path, monkeypatch, mistake):
    with monkeypatch.context() as patched:
        mistake(patched)
        learner = trained(tmp_path, patched)
    assert not any(solves(learner))

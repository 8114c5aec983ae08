"""Loop 3: reinforcement learning. An agent acts, remembers and learns; methods and the update are those of every loop.

Shape suffixes: S seeds, E environments of a seed, B batch, C stacked frames, H height, W width, P parameters.

A visit is `steps_per_visit` steps in one kind of environment. All that is random is a pure function of seed, purpose and a
counter (visit, vector step, update), so a control that starts at a visit sees what the chain saw there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from nap_bench import update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.benchmarks.base_rl import RLBenchmark
from nap_bench.methods.base import Stack
from nap_bench.rl import rainbow
from nap_bench.rl.graph import Graphed
from nap_bench.rl.replay import Replay, importance_weights
from nap_bench.rng import Uniform
from nap_bench.schedules import SCHEDULES, Schedule
from nap_bench.session import Control, Session
from nap_bench.spec import Run
from nap_bench.state import TrainState
from nap_bench.store import RunFolder
from nap_bench.train import diagnose, prepared, result


class Playing:
    """Environments of every seed, what the agent sees of them, and the returns of the episodes that ended.

    frame: what the environments gave last.  seen [S, E, C, H, W] uint8: the newest C frames of the episode, oldest first, zeros
    before its first.  sum, episodes [S]: of the raw returns that ended since `forget`, and how many.
    """

    def __init__(self, benchmark: RLBenchmark, seeds: tuple[int, ...], num_envs: int, purpose: str, device: str):
        self.benchmark, self.seeds, self.num_envs = benchmark, seeds, num_envs
        self.purpose, self.device = purpose, device
        self._make = importlib.import_module(f"nap_bench.rl.{benchmark.environments}").make
        shape = (len(seeds), num_envs)
        self.seen = torch.zeros(*shape, benchmark.stack, *benchmark.frame_shape, dtype=torch.uint8, device=device)
        self.returns_SE = torch.zeros(*shape, device=device)
        self.forget()

    def forget(self) -> None:
        self.sum_S = torch.zeros(len(self.seeds), device=self.device)
        self.episodes_S = torch.zeros(len(self.seeds), device=self.device)

    def begin(self, visit: int, piece: int) -> None:
        """New environments, at their first frames; episodes under way are left where they are."""
        self.counters = (visit, piece)
        where = (visit, self.purpose, piece, self.device)
        self.environments = self._make(self.benchmark, self.seeds, self.num_envs, *where)
        self.returns_SE.zero_()
        self._see(self.environments.reset())

    def step(self, actions_SE: Tensor) -> None:
        self._see(self.environments.step(actions_SE))
        self.returns_SE += self.frame.reward
        ended_SE = self.frame.last
        self.sum_S += torch.where(ended_SE, self.returns_SE, 0.0).sum(dim=1)
        self.episodes_S += ended_SE.sum(dim=1)
        self.returns_SE.masked_fill_(ended_SE, 0.0)

    def _see(self, frame) -> None:
        self.frame = frame
        begun = frame.first.view(*frame.first.shape, 1, 1, 1)
        older = self.seen[:, :, 1:].masked_fill(begun, 0)
        self.seen = torch.cat([older, frame.frame.unsqueeze(2)], dim=2)

    def mean_return(self) -> Tensor:
        """[S], NaN where no episode ended."""
        return self.sum_S / self.episodes_S.where(self.episodes_S > 0, torch.nan)

    def state_dict(self) -> dict:
        tensors = (self.seen, self.returns_SE, self.sum_S, self.episodes_S)
        inside = self.environments.state_dict()
        return {"counters": self.counters, "tensors": tensors, "frame": tuple(self.frame), "environments": inside}

    def load_state_dict(self, saved: dict) -> None:
        self.begin(*saved["counters"])
        self.environments.load_state_dict(saved["environments"])
        self.seen, self.returns_SE, self.sum_S, self.episodes_S = saved["tensors"]
        self.frame = type(self.frame)(*saved["frame"])


class Learner:
    """The replay, the target network and the update."""

    def __init__(self, benchmark: RLBenchmark, state: TrainState, stack: Stack, schedule: Schedule):
        self.benchmark, self.state, self.stack, self.schedule = benchmark, state, stack, schedule
        device, seeds = state.device, state.seeds
        self.replay = Replay(
            len(seeds),
            benchmark.num_envs,
            benchmark.capacity,
            benchmark.frame_shape,
            stack=benchmark.stack,
            n_step=benchmark.n_step,
            discount=benchmark.discount,
            priority_exponent=benchmark.priority_exponent,
            uniform_mix=benchmark.uniform_mix,
            device=device,
        )
        self.agent = rainbow.Agent(benchmark.v_min, benchmark.v_max)
        self.target = state.flat.detach().clone()
        self.target_model = state.twin(self.target)
        self.noise = rainbow.NoiseStream("noise/learning", state, 3)
        self.eval_noise = rainbow.NoiseStream("noise/evaluation", state, benchmark.eval_envs)
        self.uniform = Uniform("replay", seeds, (benchmark.batch_size, 2), device)
        self.first_update = benchmark.first_visit * benchmark.updates_per_visit
        self.loss_S = torch.zeros(len(seeds), device=device)
        self.num_updates = self.asked_forwards = self.asked_by_step = 0
        self.batch: rainbow.Batch | None = None
        # what changes from update to update, at places that stay: a CUDA graph reads it there
        self._uniforms_SB2 = torch.empty(len(seeds), benchmark.batch_size, 2, dtype=torch.float64, device=device)
        self._noise_S3K = torch.empty(len(seeds), 3, state.model.num_noise, device=device)
        self._is_exponent = torch.empty((), dtype=torch.float64, device=device)
        self._graphed = Graphed(device)

    def remember(self, frame, actions_SE: Tensor) -> None:
        most = self.benchmark.max_reward
        reward_SE = frame.reward.clamp(-most, most)
        self.replay.add(frame.frame, actions_SE, reward_SE, frame.discount, frame.first, frame.last)

    def is_exponent(self) -> float:
        """Of the importance weights, for the coming update: it moves over every visit anew."""
        start, end = self.benchmark.is_exponent
        per = self.benchmark.updates_per_visit
        return start + (end - start) * (self.state.step % per) / per

    def _learn(self) -> None:
        """One optimizer step from one batch, and new priorities."""
        drawn = self.replay.sample(self._uniforms_SB2)
        weights_SB = importance_weights(drawn.probabilities, self._is_exponent)
        self.batch = rainbow.Batch(drawn.s_tm1, drawn.a_tm1, drawn.r_t, drawn.discount_t, drawn.s_t, weights_SB)
        loss_S, errors_SB = self.agent.losses(self.state, self.stack, self.target_model, self.batch, self._noise_S3K)
        before = self.state.num_forwards
        update.grad_step(self.state, [loss_S], self.stack)
        self.asked_by_step = self.state.num_forwards - before  # a replayed graph asks for as many
        self.replay.update_priorities(drawn.indices, errors_SB)
        self.loss_S += errors_SB.mean(dim=1)

    def update(self) -> None:
        benchmark, state = self.benchmark, self.state
        state.lr.fill_(self.schedule(state.step, benchmark.num_steps, benchmark.updates_per_visit))
        counter = self.first_update + state.step
        self._uniforms_SB2.copy_(self.uniform.draw(counter))
        self._noise_S3K.copy_(self.noise.at(counter))
        self._is_exponent.fill_(self.is_exponent())
        self._graphed(self._learn)
        self.num_updates += 1
        num_forwards = state.num_forwards
        update.tail(state, self.stack)
        self.asked_forwards += self.asked_by_step + state.num_forwards - num_forwards
        if state.step % benchmark.target_period == 0:
            self.target.copy_(state.flat.detach())

    def switch(self, visit: int) -> None:
        """A new visit begins: what is kept and what starts anew is the benchmark's choice, and the stack's."""
        update.task_boundary(self.state, self.stack, visit)
        if self.benchmark.replay == "clear":
            self.replay.clear()
        if self.benchmark.target == "copy":
            self.target.copy_(self.state.flat.detach())

    def mean_loss(self) -> Tensor:
        """[S], unweighted, over the updates since it was last asked for."""
        mean_S = self.loss_S / self.num_updates
        self.loss_S.zero_()
        self.num_updates = 0
        return mean_S

    def state_dict(self) -> dict:
        sums = (self.loss_S, self.num_updates, self.asked_forwards)
        return {"target": self.target, "replay": self.replay.state_dict(), "sums": sums}

    def load_state_dict(self, saved: dict) -> None:
        self.target.copy_(saved["target"])
        self.replay.load_state_dict(saved["replay"])
        loss_S, self.num_updates, self.asked_forwards = saved["sums"]
        self.loss_S.copy_(loss_S)


def reinforce(run: Run, folder: RunFolder, *, data_dir: str | None, device: str, control: Control) -> dict:
    """Train a block of seeds to its end, going on from a checkpoint if there is one; returns status and cost.

    Writes metrics.csv and checkpoint in the run's folder. Raises Interrupted after a stop was asked for. data_dir is not read.
    """
    session = Session(run, folder, device, control)
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    session.made_of(benchmark.identity())
    schedule = run.schedule.build(SCHEDULES, "schedule")
    schedule(0, benchmark.num_steps, benchmark.updates_per_visit)  # refuses an impossible one before anything is made
    state, stack = prepared(run, benchmark.shapes, device)
    learner = Learner(benchmark, state, stack, schedule)
    playing = Playing(benchmark, run.seeds, benchmark.num_envs, "training", device)
    acting_noise = rainbow.NoiseStream("noise/acting", state, benchmark.num_envs)
    per_visit, total = benchmark.updates_per_visit, benchmark.num_steps
    vector_steps = benchmark.steps_per_visit // benchmark.num_envs
    rebuild = benchmark.rebuild_steps and benchmark.rebuild_steps // benchmark.num_envs
    bin_ends, done = benchmark.bin_ends(), 0
    if saved := session.saved:
        state.load_state_dict(saved["state"])
        learner.load_state_dict(saved["learner"])
        playing.load_state_dict(saved["playing"])
        done = saved["vector_steps"]
        del saved
        session.saved = None  # the replay is in memory once

    def log(name: str, values_S: Tensor) -> None:
        session.recorder.log(state.step, name, torch.where(state.alive, values_S, torch.nan))

    def write_down(before_SP: Tensor) -> None:
        """What was measured in a bin."""
        state.alive &= state.values.isfinite().all(dim=1)
        counter = learner.first_update + state.step - 1
        acts: dict[str, Tensor] = {}
        with torch.no_grad():
            inputs = rainbow.scaled(learner.batch.s_tm1, state.flat.dtype)
            state.forward(inputs, acts, noise=learner.noise.at(counter)[:, :1])
        for name, values_S in diagnose(state, acts, before_SP).items():
            log(name, values_S)
        log("online/loss", learner.mean_loss())
        log("return/training", playing.mean_return())
        log("return/episodes", playing.episodes_S)
        playing.forget()
        if benchmark.eval_steps:
            log("return/evaluation", evaluate(benchmark, learner, counter, lambda: session.tell(state.step)))

    def content() -> dict:
        return {
            "state": state.state_dict(),
            "learner": learner.state_dict(),
            "playing": playing.state_dict(),
            "vector_steps": done,
        }

    session.begin(state.step)
    while done < benchmark.num_visits * vector_steps:
        index, within = divmod(done, vector_steps)
        visit = benchmark.first_visit + index
        piece, since = divmod(within, rebuild) if rebuild else (0, within)
        if since == 0:
            if within == 0 and index:
                learner.switch(visit)
                playing.forget()
            playing.begin(visit, piece)
        actions_SE = learner.agent.act(state, playing.seen, acting_noise.at(visit * vector_steps + within))
        learner.remember(playing.frame, actions_SE)
        playing.step(actions_SE)
        due = benchmark.updates_due(within + 1)
        while state.step - index * per_visit < due:
            ends = state.step + 1 in bin_ends
            before_SP = state.flat.detach().clone() if ends else None
            learner.update()
            if ends:
                write_down(before_SP)
        done += 1
        session.after(state.step, total, content)

    return result(session, state, total, extra_forward_passes=learner.asked_forwards)


def evaluate(
    benchmark: RLBenchmark, learner: Learner, update_number: int, tell: Callable[[], object] = lambda: None
) -> Tensor:
    """Mean raw return [S] of the episodes that end within `eval_steps` vector steps of new environments, noise on, no learning.

    Where none ends, the return so far (as DQN Zoo). Reads the agent and leaves it as it was. tell: called after every step.
    """
    state = learner.state
    playing = Playing(benchmark, state.seeds, benchmark.eval_envs, "evaluation", state.device)
    playing.begin(update_number // benchmark.updates_per_visit, update_number)
    with state.as_evaluated():
        for step in range(benchmark.eval_steps):
            noise_SEK = learner.eval_noise.at(update_number * benchmark.eval_steps + step)
            playing.step(learner.agent.act(state, playing.seen, noise_SEK))
            tell()
    return torch.where(playing.episodes_S > 0, playing.mean_return(), playing.returns_SE.mean(dim=1))

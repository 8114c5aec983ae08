"""Loop 4: a language model learns to denoise, then from its own samples and their reward. Methods and the update are every loop's.

Shape suffixes: S seeds, G puzzles of a rollout, N completions of a rollout, M masks of a string, T tokens of a string, P of its
prompt, L of its completion; flat parameters [S, P].

All that is random is a pure function of seed, purpose and a counter (update or rollout), so every rule and method meets the same
puzzles, masks and draws.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nap_bench import update, weights
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.benchmarks.diffusion_policy import DiffusionPolicy
from nap_bench.data import puzzles
from nap_bench.data.images import sha256
from nap_bench.methods.base import Stack
from nap_bench.policy.diffusion import drawn_masks, elbo, hidden, sample
from nap_bench.rng import generator
from nap_bench.schedules import SCHEDULES
from nap_bench.session import Control, Session
from nap_bench.spec import Run
from nap_bench.state import TrainState
from nap_bench.store import RunFolder
from nap_bench.train import diagnose, prepared, result


class Rollout(NamedTuple):
    """What the policy did, and what it thought of it: all that the updates of a rollout read."""

    tokens: Tensor  # [S, N, T]
    reward: Tensor  # [S, N]
    masks: Tensor  # [S, N, M, T], weights of tokens: by which `log_old` was estimated
    log_old: Tensor  # [S, N], of the policy that sampled

    def advantage(self, completions: int) -> Tensor:
        """[S, N]: reward less the mean over a puzzle's completions; not divided by their spread."""
        reward_SGC = self.reward.unflatten(1, (-1, completions))
        return (reward_SGC - reward_SGC.mean(dim=2, keepdim=True)).flatten(1)


class Measured:
    """Means and largest values of the bin under way, on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.largest: dict[str, Tensor] = {}

    def add(self, name: str, values_S: Tensor) -> None:
        self.sums[name] = self.sums[name] + values_S if name in self.sums else values_S
        self.counts[name] = self.counts.get(name, 0) + 1

    def most(self, name: str, values_S: Tensor) -> None:
        self.largest[name] = torch.maximum(self.largest[name], values_S) if name in self.largest else values_S

    def read(self) -> dict[str, Tensor]:
        """Name -> [S]; then the next bin begins."""
        means = {name: sum_S / self.counts[name] for name, sum_S in self.sums.items()}
        found = {**means, **self.largest}
        self.sums, self.counts, self.largest = {}, {}, {}
        return found

    def state_dict(self) -> tuple[dict, dict, dict]:
        return self.sums, self.counts, self.largest

    def load_state_dict(self, saved: tuple[dict, dict, dict]) -> None:
        self.sums, self.counts, self.largest = saved


class Policy:
    """The model in its two roles. `reference` [S, P]: its parameters when its training by reward began."""

    def __init__(self, benchmark: DiffusionPolicy, state: TrainState, stack: Stack):
        self.benchmark, self.state, self.stack = benchmark, state, stack
        self.reference = torch.zeros_like(state.flat.detach())
        self._reference_model = state.twin(self.reference)
        (length,), first = benchmark.shapes[0], benchmark.problem.prompt_length
        self._in_completion = (torch.arange(length) >= first).expand(len(state.seeds), benchmark.num_examples, length)

    def learning(self, inputs: Tensor) -> Tensor:
        """The forward that is trained on."""
        return update.forward(self.state, self.stack, inputs)

    def masks(self, purpose: str, counter: int) -> Tensor:
        """[S, N, M, T], of completions."""
        state = self.state
        return drawn_masks(
            state.seeds, purpose, counter, self._in_completion, self.benchmark.samples, state.flat.device
        )

    def denoise(self, step: int) -> tuple[Tensor, Tensor]:
        """(loss [S], nats per maskable token; inputs) of an update of the first phase."""
        tokens_SBT, maskable_SBT = self.benchmark.strings(self.state.seeds, step)
        device = self.state.flat.device
        weights_SBMT = drawn_masks(self.state.seeds, "masks/denoising", step, maskable_SBT, 1, device)
        tokens_SBT, size_SB = tokens_SBT.to(device), maskable_SBT.sum(dim=2).to(device)
        bound_SB = elbo(self.learning, tokens_SBT, weights_SBMT)
        return -(bound_SB / size_SB).mean(dim=1), hidden(tokens_SBT, weights_SBMT)

    @torch.no_grad()
    def roll_out(self, number: int) -> Rollout:
        benchmark, state = self.benchmark, self.state
        prompt_SGP = benchmark.puzzles_of(state.seeds, number).to(state.flat.device)
        prompt_SNP = prompt_SGP.repeat_interleave(benchmark.completions, dim=1)
        shape = (2, benchmark.num_examples, benchmark.problem.completion_length)
        drawn = [torch.rand(shape, generator=generator(seed, "sampling", number)) for seed in state.seeds]
        keys_SNL, uniform_SNL = torch.stack(drawn, dim=1).to(state.flat.device)
        rank_SNL = keys_SNL.argsort(dim=2).argsort(dim=2)
        tokens_SNT = sample(state.forward, prompt_SNP, rank_SNL, uniform_SNL, benchmark.tokens_per_step)
        reward_SN = benchmark.problem.reward(prompt_SNP, tokens_SNT[:, :, prompt_SNP.shape[2] :])
        masks_SNMT = self.masks("masks/old", number)
        log_old_SN = elbo(state.forward, tokens_SNT, masks_SNMT)
        return Rollout(tokens_SNT, reward_SN.to(log_old_SN.dtype), masks_SNMT, log_old_SN)

    def improve(self, rollout: Rollout, measured: Measured) -> tuple[Tensor, Tensor]:
        """(loss [S], inputs) of an update of the second phase: examples weighted by rule, advantage and ratio."""
        benchmark = self.benchmark
        masks_SNMT = rollout.masks if benchmark.common_masks else self.masks("masks", self.state.step)
        log_likelihood_SN = elbo(self.learning, rollout.tokens, masks_SNMT)
        log_ratio_SN = log_likelihood_SN.detach() - rollout.log_old
        advantage_SN = rollout.advantage(benchmark.completions)
        coefficient_SN = weights.coefficients(benchmark.rule, log_ratio_SN, advantage_SN, benchmark.clip)
        spread_SN = log_ratio_SN - log_ratio_SN.mean(dim=1, keepdim=True)
        inside_SN = weights.clipped(log_ratio_SN, benchmark.clip) == log_ratio_SN
        measured.add("ratio/log_std", spread_SN.square().mean(dim=1).sqrt())
        measured.most("ratio/log_largest", log_ratio_SN.amax(dim=1))
        measured.add("ratio/outside", 1.0 - inside_SN.to(log_ratio_SN.dtype).mean(dim=1))
        for name, weight_SN in (("ratios", weights.normalised(log_ratio_SN)), ("coefficients", coefficient_SN)):
            measured.add(f"ess/{name}", weights.effective_sample_size(weight_SN) / weight_SN.shape[1])
        loss_S = -(coefficient_SN * advantage_SN * log_likelihood_SN).sum(dim=1)
        return loss_S, hidden(rollout.tokens, masks_SNMT[:, :, :1])

    @torch.no_grad()
    def drift(self, rollout: Rollout) -> Tensor:
        """[S], nats per completion: mean of ELBO - ELBO of the reference over completions of the policy, by the same masks.

        Were both bounds tight it would be the Kullback-Leibler divergence of the policy from the reference.
        """
        return (rollout.log_old - elbo(self._reference_model, rollout.tokens, rollout.masks)).mean(dim=1)


def optimise(run: Run, folder: RunFolder, *, data_dir: str | None, device: str, control: Control) -> dict:
    """Train a block of seeds to its end, going on from a checkpoint if there is one; returns status and cost.

    Writes metrics.csv and checkpoint in the run's folder. Raises Interrupted after a stop was asked for. data_dir is not read.
    """
    session = Session(run, folder, device, control)
    benchmark = run.benchmark.build(BENCHMARKS, "benchmark")
    session.made_of({"help topics": sha256(puzzles.text())} if benchmark.text else {})
    schedule = run.schedule.build(SCHEDULES, "schedule")
    state, stack = prepared(run, benchmark.shapes, device)
    policy, measured = Policy(benchmark, state, stack), Measured()
    rollout: Rollout | None = None
    asked_forwards, total, first = 0, benchmark.num_steps, benchmark.pretrain_steps
    bin_ends = benchmark.bin_ends()
    if saved := session.saved:
        state.load_state_dict(saved["state"])
        policy.reference.copy_(saved["reference"])
        measured.load_state_dict(saved["measured"])
        rollout = saved["rollout"] and Rollout(*saved["rollout"])
        asked_forwards = saved["asked_forwards"]

    def log(name: str, values_S: Tensor) -> None:
        """A diverged seed has no numbers: it is NaN in everything recorded from then on."""
        session.recorder.log(state.step, name, torch.where(state.alive, values_S, torch.nan))

    def write_down(inputs: Tensor, before_SP: Tensor) -> None:
        """What was measured in a bin."""
        state.alive &= state.values.isfinite().all(dim=1)
        acts: dict[str, Tensor] = {}
        with torch.no_grad():
            state.forward(inputs, acts)
        for name, values_S in {**diagnose(state, acts, before_SP), **measured.read()}.items():
            log(name, values_S)
        if rollout is not None:
            log("drift/reference", policy.drift(rollout))

    def content() -> dict:
        return {
            "state": state.state_dict(),
            "reference": policy.reference,
            "measured": measured.state_dict(),
            "rollout": rollout and tuple(rollout),
            "asked_forwards": asked_forwards,
        }

    session.begin(state.step)
    while state.step < total:
        step = state.step
        state.lr.fill_(schedule(step, total, total))
        number, within = divmod(step - first, benchmark.updates_per_rollout)
        if step == first:
            update.task_boundary(state, stack, 1)
            policy.reference.copy_(state.flat.detach())
        if step >= first and within == 0:
            rollout = policy.roll_out(number)
            measured.add("reward/mean", rollout.reward.mean(dim=1))
        loss_S, inputs = policy.denoise(step) if step < first else policy.improve(rollout, measured)
        before_SP = state.flat.detach().clone() if step + 1 in bin_ends else None
        num_forwards = state.num_forwards
        update.grad_step(state, [loss_S], stack)
        norm_S = torch.linalg.vector_norm(state.gradient, dim=1)
        measured.add("online/loss", loss_S.detach())
        measured.add("gradient/norm", norm_S)
        measured.most("gradient/largest", norm_S)
        update.tail(state, stack)
        asked_forwards += state.num_forwards - num_forwards
        if state.step in bin_ends:
            write_down(inputs, before_SP)
        session.after(state.step, total, content)

    return result(session, state, total, extra_forward_passes=asked_forwards)

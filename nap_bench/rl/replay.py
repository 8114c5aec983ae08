"""Prioritised replay of single frames: stacks and n-step returns are made when they are drawn (Rainbow as DQN Zoo runs it).

A row is what one step of an environment showed and what was done then: frame, the reward and discount that came with it,
whether it ended an episode, and the action taken on it. So a frame is kept once, whatever the stack and n.
Everything is torch on one device, without a loop over items and without waiting for a GPU.
Shape suffixes: S seeds, E environments per seed, T rows, B batch, C stack (oldest first), H W,
N steps of a return, K leaves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FAN_OUT = 32
"""Children of a node. Of 2, 8, 32, 64, 128 and 1024 the fastest on a CPU for 8 seeds, be it of 8192 leaves or of a million, and
within a fifth of the fastest for one seed."""
BELOW = 1 - 2**-52
"""x * BELOW is less than x, for every normal float64 above 0."""
MAX_PRIORITY = 100.0
"""DQN Zoo clips losses to it before they become priorities."""
ACTION, REWARD, DISCOUNT, LAST, AGE = range(5)
"""Columns of `facts`. LAST: no transition starts here.  AGE: rows since the episode's first, at most C - 1."""
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class SumTree:
    """Sums of leaves, so that one is found by its share of the whole in a few reads; one tree for every seed.

    A node is always summed anew from its children, never changed by a difference, so nothing drifts. float64.
    Level 0 holds the leaves, the last the S totals; a level is flat, a node's children are side by side in the one before.
    """

    def __init__(self, num_seeds: int, num_leaves: int, device: torch.device | str = "cpu", fan_out: int = FAN_OUT):
        counts = self.level_sizes(num_leaves, fan_out)
        self.num_leaves = counts[0]
        self.levels = [torch.zeros(num_seeds * count, dtype=torch.float64, device=device) for count in counts]
        self.widths = [below // above for below, above in zip(counts, counts[1:], strict=False)]
        self._seeds_S1 = torch.arange(num_seeds, device=device).unsqueeze(1)

    @staticmethod
    def level_sizes(num_leaves: int, fan_out: int = FAN_OUT) -> list[int]:
        """Nodes of each level of one seed, leaves first: filled up so that only the root has fewer children than the rest."""
        depth, top = 0, num_leaves
        while top > fan_out:
            depth, top = depth + 1, -(-top // fan_out)
        return [top * fan_out ** (depth - level) for level in range(depth + 1)] + [1]

    @property
    def total_S(self) -> Tensor:
        return self.levels[-1]

    def get(self, index_SK: Tensor) -> Tensor:
        return self.levels[0].take(self._seeds_S1 * self.num_leaves + index_SK)

    def set(self, index_SK: Tensor, values_SK: Tensor) -> None:
        """Of several values for one leaf the last is kept on a CPU, any of them on a GPU."""
        node = (self._seeds_S1 * self.num_leaves + index_SK).flatten()
        self.levels[0][node] = values_SK.flatten()
        for width, children, parents in zip(self.widths, self.levels, self.levels[1:], strict=False):
            node = node // width
            parents[node] = children.view(-1, width).index_select(0, node).cumsum(1)[:, -1]

    def find(self, uniforms_SK: Tensor) -> Tensor:
        """Leaf [S, K] at which the running sum first exceeds a fraction of the total; never one of value 0.

        uniforms: float64 in [0, 1). Leaf 0 for a seed whose total is 0.
        """
        mass = (uniforms_SK * self.total_S.unsqueeze(1)).view(-1, 1)
        node = self._seeds_S1.expand(uniforms_SK.shape).reshape(-1, 1)
        for width, children in zip(reversed(self.widths), self.levels[-2::-1], strict=True):
            value = children.view(-1, width).index_select(0, node.flatten())
            reached = value.cumsum(1)
            child = torch.searchsorted(reached, mass, right=True).remainder_(width)  # 0 where nothing is reached
            value = value.gather(1, child)
            mass = mass - (reached.gather(1, child) - value)
            mass = torch.minimum(mass, value * BELOW).clamp_(min=0)  # rounding must not lead to a neighbour of value 0
            node = torch.add(child, node, alpha=width)
        return node.view(uniforms_SK.shape) - self._seeds_S1 * self.num_leaves

    def clear(self) -> None:
        for level in self.levels:
            level.zero_()


class Sampled(NamedTuple):
    """Transitions drawn. r_t: discounted sum of up to n rewards; discount_t: of what s_t is worth, 0 after an end."""

    s_tm1: Tensor  # uint8 [S, B, C, H, W]
    a_tm1: Tensor  # int64 [S, B]
    r_t: Tensor  # float32 [S, B]
    discount_t: Tensor  # float32 [S, B]
    s_t: Tensor  # uint8 [S, B, C, H, W]
    indices: Tensor  # int64 [S, B], for update_priorities
    probabilities: Tensor  # float64 [S, B]: of drawing this transition


class Replay:
    """The newest `capacity` steps of every seed, in a ring of T = capacity // num_envs rows of E streams.

    A row can be drawn once the n rows after it are there, until only C - 1 rows older than it are left of the ring; rows that
    end an episode never. It becomes drawable with the highest priority seen (DQN Zoo's: 1 at first, losses clipped to
    [0, 100]). Returns stop at an episode's end, and stacks at its start, with frames of zeros as the oldest.
    priority_exponent: probabilities are proportional to priority ** it.
    uniform_mix: share of draws that are uniform over what can be drawn (DQN Zoo's 1e-3; a uniform draw that meets the end of
        an episode is replaced by one by priority, and `probabilities` says so).
    Refuses, before allocating, what does not fit in memory.
    """

    def __init__(
        self,
        num_seeds: int,
        num_envs: int,
        capacity: int,
        frame_shape: tuple[int, int],
        *,
        stack: int,
        n_step: int,
        discount: float,
        priority_exponent: float,
        uniform_mix: float,
        device: torch.device | str,
    ):
        self.num_rows_kept = capacity // num_envs
        if stack < 1 or n_step < 1:
            raise ValueError(f"Replay wants stack >= 1 and n_step >= 1; found stack = {stack}, n_step = {n_step}.")
        if self.num_rows_kept < n_step + stack:
            raise ValueError(
                f"Replay wants capacity >= (n_step + stack) * num_envs = {(n_step + stack) * num_envs}, so that something "
                f"can be drawn; found capacity = {capacity}."
            )
        if not (0 <= discount <= 1 and 0 <= uniform_mix < 1 and priority_exponent >= 0):
            raise ValueError(
                f"Replay wants discount in [0, 1], uniform_mix in [0, 1) and priority_exponent >= 0; found discount = "
                f"{discount}, uniform_mix = {uniform_mix}, priority_exponent = {priority_exponent}."
            )
        self.num_envs, self.stack, self.n_step, self.discount = num_envs, stack, n_step, discount
        self.priority_exponent, self.uniform_mix, self.device = priority_exponent, uniform_mix, torch.device(device)
        refuse_what_does_not_fit(self.memory_bytes(num_seeds, num_envs, capacity, frame_shape), self.device)
        rows = (num_seeds, self.num_rows_kept, num_envs)
        num_frames, (height, width) = num_seeds * self.num_rows_kept * num_envs, frame_shape
        self._stored = torch.zeros(num_frames + 1, height, width, dtype=torch.uint8, device=device)  # the last: zeros
        self.frames = self._stored[:-1].view(*rows, height, width)
        self.facts = torch.zeros(*rows, 5, device=device)
        self.tree = SumTree(num_seeds, self.num_rows_kept * num_envs, device)
        self.max_priority_S = torch.ones(num_seeds, dtype=torch.float64, device=device)
        self._num_ends_S = torch.zeros(num_seeds, dtype=torch.float64, device=device)  # among the rows that ripened
        self._oldest = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # row that can be drawn, counted from the first
        self._num_ripe = torch.zeros((), dtype=torch.int64, device=device)  # rows from there on that can be drawn
        self._streams_E = torch.arange(num_envs, device=device)
        self._seed_starts_S1 = torch.arange(num_seeds, device=device).unsqueeze(1) * self.num_rows_kept * num_envs
        self._ahead_N = torch.arange(n_step + 1, device=device)
        self._back_C = torch.arange(stack - 1, -1, -1, device=device)
        self.num_rows = 0

    @staticmethod
    def memory_bytes(num_seeds: int, num_envs: int, capacity: int, frame_shape: tuple[int, int]) -> int:
        """Bytes that a replay of this size keeps."""
        steps = capacity // num_envs * num_envs
        nodes = sum(SumTree.level_sizes(steps))
        return num_seeds * (steps * (frame_shape[0] * frame_shape[1] + 5 * 4) + nodes * 8)

    @property
    def num_added(self) -> int:
        """Steps of every seed since the start or `clear`, rows that end an episode included."""
        return self.num_rows * self.num_envs

    def add(
        self,
        frame_SEHW: Tensor,
        action_SE: Tensor,
        reward_SE: Tensor,
        discount_SE: Tensor,
        first_SE: Tensor,
        last_SE: Tensor,
    ) -> None:
        """One step of all environments: what each showed, and the action taken on it.

        reward, clipped, and discount (0 or 1) came with the frame: they belong to the transition that leads to it. A row that
        is `first` follows no other: its reward and discount are not read, and the row before it counts as an episode's end
        even if it is not `last` (environments may be made anew at any step). The action of a `last` row is not read.
        """
        kept, row = self.num_rows_kept, self.num_rows
        now, before = row % kept, (row - 1) % kept
        lost, ripe = row - kept + self.stack - 1, row - self.n_step
        changed, values = [], []
        if lost >= 0:  # the oldest frame of its stack goes
            self._num_ends_S -= self.facts[:, lost % kept, :, LAST].sum(dim=1)
            changed.append(lost % kept)
            values.append(torch.zeros_like(self.facts[:, 0, :, 0], dtype=torch.float64))
        first_SE = first_SE.to(self.device, torch.float32) if row else torch.ones_like(self.facts[:, 0, :, 0])
        age_SE = (self.facts[:, before, :, AGE] + 1).clamp_(max=self.stack - 1) * (1 - first_SE)
        ends_SE = self.facts[:, before, :, LAST]
        torch.maximum(ends_SE, first_SE, out=ends_SE)
        self.frames[:, now] = frame_SEHW
        facts = [part.to(self.device, torch.float32) for part in (action_SE, reward_SE, discount_SE, last_SE)]
        self.facts[:, now] = torch.stack([*facts, age_SE], dim=-1)
        if ripe >= 0:
            last_SE = self.facts[:, ripe % kept, :, LAST].double()
            self._num_ends_S += last_SE.sum(dim=1)
            changed.append(ripe % kept)
            values.append((1 - last_SE) * (self.max_priority_S**self.priority_exponent).unsqueeze(1))
        if changed:
            index_K = torch.cat([row * self.num_envs + self._streams_E for row in changed])
            self.tree.set(index_K.expand(len(self.max_priority_S), -1), torch.cat(values, dim=1))
        self.num_rows += 1
        self._mark_window()

    def _mark_window(self) -> None:
        oldest = max(self.num_rows - self.num_rows_kept + self.stack - 1, 0)
        self._oldest.fill_(oldest)
        self._num_ripe.fill_(max(self.num_rows - self.n_step - oldest, 0))

    def sample(self, uniforms_SB2: Tensor) -> Sampled:
        """Transitions drawn, independent of each other, with replacement.

        uniforms: float64 in [0, 1), one for the draw by priority, one for whether (and where) to draw uniformly instead.
        """
        if self.num_rows <= self.n_step:
            raise ValueError(
                f"Nothing can be drawn from {self.num_rows} rows with n_step = {self.n_step}: add more first."
            )
        by_priority_SB, mixed_SB = uniforms_SB2.unbind(dim=-1)
        index_SB = self.tree.find(by_priority_SB)
        share = self.uniform_mix
        if share:
            num_items = (self._num_ripe * self.num_envs).double()
            place_SB = torch.minimum(mixed_SB / share * num_items, num_items - 1).long()
            row_SB = (self._oldest + place_SB // self.num_envs) % self.num_rows_kept
            anywhere_SB = row_SB * self.num_envs + place_SB % self.num_envs
            ends_SB = self.facts.take((self._seed_starts_S1 + anywhere_SB) * 5 + LAST)
            index_SB = torch.where((mixed_SB < share) & (ends_SB == 0), anywhere_SB, index_SB)
            by_priority_S1 = 1 - share + share * (self._num_ends_S / num_items).unsqueeze(1)
            probability_SB = (
                by_priority_S1 * self.tree.get(index_SB) / self.tree.total_S.unsqueeze(1) + share / num_items
            )
        else:
            probability_SB = self.tree.get(index_SB) / self.tree.total_S.unsqueeze(1)
        return Sampled(*self._transitions(index_SB), index_SB, probability_SB)

    def _transitions(self, index_SB: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        kept, num_envs = self.num_rows_kept, self.num_envs
        row_SB, place_SB = index_SB // num_envs, self._seed_starts_S1 + index_SB % num_envs

        def places(row: Tensor) -> Tensor:
            """Of rows [..., S, B, any] among all frames."""
            return row % kept * num_envs + place_SB.unsqueeze(-1)

        place_SBN = places(row_SB.unsqueeze(-1) + self._ahead_N)  # of the row and the n after it
        facts_SBN = self.facts.view(-1, 5).index_select(0, place_SBN.flatten()).unflatten(0, place_SBN.shape)
        going_SBN = (1 - facts_SBN[..., :-1, LAST]).cumprod(dim=-1)  # 1 while the episode has not ended
        discount_SBN = facts_SBN[..., 1:, DISCOUNT] * (going_SBN * self.discount) + (1 - going_SBN)
        product_SBN = discount_SBN.cumprod(dim=-1)
        reward_SBN = facts_SBN[..., 1:, REWARD] * going_SBN
        reward_SBN[..., 1:] *= product_SBN[..., :-1]
        num_steps_SB = going_SBN.sum(dim=-1).long()

        age_SBN = facts_SBN[..., AGE]
        age_2SB = torch.stack([age_SBN[..., 0], age_SBN.gather(-1, num_steps_SB.unsqueeze(-1)).squeeze(-1)])
        rows_2SBC = torch.stack([row_SB, row_SB + num_steps_SB]).unsqueeze(-1) - self._back_C
        shown = self._back_C <= age_2SB.unsqueeze(-1)
        frame_2SBC = torch.where(shown, places(rows_2SBC), len(self._stored) - 1)
        frames = self._stored.index_select(0, frame_2SBC.flatten()).unflatten(0, frame_2SBC.shape)
        return frames[0], facts_SBN[..., 0, ACTION].long(), reward_SBN.sum(dim=-1), product_SBN[..., -1], frames[1]

    def update_priorities(self, indices_SB: Tensor, priorities_SB: Tensor) -> None:
        """Unweighted losses become priorities, clipped to [0, 100]. Of what `sample` gave, before the next `add`.

        A seed that diverged has losses without value: 0 keeps its tree in order.
        """
        priorities_SB = priorities_SB.detach().double().nan_to_num(nan=0.0).clamp(0, MAX_PRIORITY)
        torch.maximum(self.max_priority_S, priorities_SB.amax(dim=1), out=self.max_priority_S)
        self.tree.set(indices_SB, priorities_SB**self.priority_exponent)

    def clear(self) -> None:
        """Forget everything, the highest priority included."""
        self.facts.zero_()
        self.tree.clear()
        self.max_priority_S.fill_(1)
        self._num_ends_S.zero_()
        self.num_rows = 0
        self._mark_window()

    def state_dict(self) -> dict[str, Any]:
        """The rows written so far, and everything else. Tensors are shared with the replay once the ring is full."""
        rows = min(self.num_rows, self.num_rows_kept)
        frames, facts = self.frames[:, :rows], self.facts[:, :rows]
        full = rows == self.num_rows_kept
        return {
            "num_rows": self.num_rows,
            "frames": frames.to("cpu", copy=not full),
            "facts": facts.to("cpu", copy=not full),
            "tree": self.tree.levels,
            "max_priority": self.max_priority_S,
            "num_ends": self._num_ends_S,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Into a replay of the same size."""
        self.clear()
        rows = saved["frames"].shape[1]
        self.frames[:, :rows] = saved["frames"]
        self.facts[:, :rows] = saved["facts"]
        for level, values in zip(self.tree.levels, saved["tree"], strict=True):
            level.copy_(values)
        self.max_priority_S.copy_(saved["max_priority"])
        self._num_ends_S.copy_(saved["num_ends"])
        self.num_rows = saved["num_rows"]
        self._mark_window()


def importance_weights(probabilities_SB: Tensor, exponent: float | Tensor) -> Tensor:
    """float32 [S, B]: (1 / (items * probability)) ** exponent over the batch's largest (Schaul et al. 2016, DQN Zoo)."""
    return ((probabilities_SB.amin(dim=1, keepdim=True) / probabilities_SB) ** exponent).float()


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be allocated; None where the system does not say (no /proc/meminfo)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not MEMINFO.exists():
        return None
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and limit.read_text().strip() != "max":  # a job's or a container's share
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def refuse_what_does_not_fit(wanted_bytes: int, device: torch.device) -> None:
    free = free_bytes(device)
    if free is not None and wanted_bytes > free:
        raise ValueError(
            f"The replay wants {wanted_bytes / 1e9:.2f} GB on {device}, {free / 1e9:.2f} GB are free. Lower its capacity, the "
            f"size of its frames or the number of seeds in a run, or run fewer jobs at once."
        )

"""Metrics of a whole stream, from what a run recorded. numpy only: scores are made without torch.

Shape suffixes: T measurements, S seeds, M tasks. Steps are numbers of updates done. A diverged seed's measurements are
NaN, and so is everything made of them.
"""

from __future__ import annotations

import numpy as np


def average_online_accuracy(steps_T: np.ndarray, online_TS: np.ndarray, steps_per_task: int) -> np.ndarray:
    """[M, S]: mean over each task's updates of the batch's accuracy before the update (Kumar et al. 2023).

    online_TS: `online/accuracy`, means over the updates since the measurement before; each task's last is at its end.
    """
    lengths_T = np.diff(steps_T, prepend=0)
    task_T = (steps_T - 1) // steps_per_task
    return np.stack(
        [np.average(online_TS[task_T == t], axis=0, weights=lengths_T[task_T == t]) for t in np.unique(task_T)]
    )


def total_online_accuracy(steps_T: np.ndarray, online_TS: np.ndarray) -> np.ndarray:
    """[S]: mean over all updates of the batch's accuracy before the update (Kumar et al. 2023, what they select by)."""
    return np.average(online_TS, axis=0, weights=np.diff(steps_T, prepend=0))


def time_to_threshold(
    steps_T: np.ndarray, accuracy_TS: np.ndarray, steps_per_task: int, threshold: float = 0.99
) -> np.ndarray:
    """[M, S]: updates from a task's start to the first measurement of at least `threshold`; infinite if none.

    As fine as the measurements: with `probes_per_task` probes it is a multiple of their distance, rounded up.
    """
    task_T = (steps_T - 1) // steps_per_task
    found = []
    for task in np.unique(task_T):
        steps, values_TS = steps_T[task_T == task] - task * steps_per_task, accuracy_TS[task_T == task]
        reached_TS = values_TS >= threshold
        first_S = np.where(reached_TS.any(axis=0), steps[reached_TS.argmax(axis=0)].astype(float), np.inf)
        found.append(np.where(np.isnan(values_TS).any(axis=0), np.nan, first_S))
    return np.stack(found)


def backward_transfer(accuracy_MMS: np.ndarray) -> np.ndarray:
    """BWT [S]: mean over tasks m but the last of A[-1, m] - A[m, m] (Lopez-Paz & Ranzato 2017); negative is forgetting.

    accuracy_MMS: A[k, m] is the accuracy on task m once task k has been learnt.
    """
    own_MS = np.diagonal(accuracy_MMS).T
    return (accuracy_MMS[-1, :-1] - own_MS[:-1]).mean(axis=0)


def one_step_backward_transfer(own_MS: np.ndarray, previous_MS: np.ndarray) -> np.ndarray:
    """[S]: mean over tasks of A[m + 1, m] - A[m, m], what one more task costs the task before it.

    own_MS: `task_end/accuracy`.  previous_MS: `task_end/previous_accuracy`, on the task before, at each task's end; the
    first task has none before it.
    """
    return (previous_MS[1:] - own_MS[:-1]).mean(axis=0)


def gap_to_fresh(aged_MS: np.ndarray, fresh_MS: np.ndarray) -> np.ndarray:
    """Fresh minus aged: what a network lost against one trained on the same task alone, with the same budget.

    fresh_MS: the same tasks, labels, images and batches met by fresh parameters (a run with `first_task`). Positive is
    loss of plasticity for an accuracy; for a loss the sign turns.
    """
    return fresh_MS - aged_MS

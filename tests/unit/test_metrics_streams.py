"""Metrics of a whole stream on records whose answer can be counted."""

import numpy as np
import pytest

from nap_bench.metrics import streams

NAN, INF = np.nan, np.inf


def test_online_accuracy_weighs_a_bin_by_its_updates():
    steps_T = np.array([1, 4, 6, 8])  # tasks of 4 updates; bins of 1, 3, 2 and 2
    online_TS = np.array([[1.0, 0.0], [0.2, 0.4], [0.5, 1.0], [0.7, NAN]])
    found = streams.average_online_accuracy(steps_T, online_TS, 4)
    assert np.allclose(found, [[0.4, 0.3], [0.6, NAN]], equal_nan=True)
    total = streams.total_online_accuracy(steps_T, online_TS)
    assert total[0] == pytest.approx(0.5) and np.isnan(total[1])


def test_time_to_threshold_is_the_first_measurement_that_reaches_it_within_each_task():
    steps_T = np.array([5, 10, 15, 20])
    accuracy_TS = np.array([[0.99, 0.5, 0.1], [0.2, 0.99, 0.1], [0.5, 0.5, NAN], [1.0, 0.5, NAN]])
    found = streams.time_to_threshold(steps_T, accuracy_TS, 10)
    assert np.array_equal(found, [[5, 10, INF], [10, INF, NAN]], equal_nan=True)
    assert np.array_equal(streams.time_to_threshold(steps_T, accuracy_TS, 10, 0.5)[1], [5, 5, NAN], equal_nan=True)


def test_backward_transfer_is_what_the_last_task_left_of_the_others():
    accuracy_MMS = np.zeros((3, 3, 1))
    accuracy_MMS[:, :, 0] = [[0.9, 0.1, 0.1], [0.7, 0.8, 0.1], [0.4, 0.6, 0.9]]
    assert streams.backward_transfer(accuracy_MMS) == pytest.approx([((0.4 - 0.9) + (0.6 - 0.8)) / 2])
    own_MS = np.array([[0.9], [0.8], [0.9]])
    previous_MS = np.array([[NAN], [0.7], [0.6]])  # nothing stands before the first task
    assert streams.one_step_backward_transfer(own_MS, previous_MS) == pytest.approx([((0.7 - 0.9) + (0.6 - 0.8)) / 2])
    never_forgets = np.broadcast_to(np.array([[0.9], [0.8], [0.7]]).T[None], (3, 1, 3)).transpose(0, 2, 1)
    assert streams.backward_transfer(never_forgets) == pytest.approx([0.0])


def test_the_gap_to_a_fresh_network_is_positive_where_the_aged_one_is_worse():
    found = streams.gap_to_fresh(np.array([[0.5, 1.0, NAN]]), np.array([[0.9, 0.9, 0.9]]))
    assert np.allclose(found, [[0.4, -0.1, NAN]], equal_nan=True)

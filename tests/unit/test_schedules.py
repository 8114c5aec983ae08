"""Learning rates against closed forms, endpoints included."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nap_bench.schedules import SCHEDULES, Constant, Cosine, Linear, Steps
from nap_bench.spec import Part

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)  # the machine may be busy
settings.load_profile("steady")

PEAK, FINAL = 6.25e-5, 1e-6  # the paper's Rainbow rates (4.2, 5.3)


def rates(schedule, steps, total_steps=1000, steps_per_task=100):
    return [schedule(step, total_steps, steps_per_task) for step in steps]


def test_a_constant_rate_stays():
    assert rates(Constant(1e-3), [0, 1, 500, 999]) == [1e-3] * 4


def test_the_papers_linear_decay_ends_halfway_and_stays_there():
    schedule = Linear(PEAK, FINAL, until=0.5)
    total = 12_500_000  # 200M frames, an update every 16
    assert schedule(0, total, total) == PEAK
    assert schedule(total // 4, total, total) == pytest.approx((PEAK + FINAL) / 2, rel=1e-12)
    assert FINAL < schedule(total // 2 - 1, total, total) < FINAL * 1.0001
    assert schedule(total // 2, total, total) == FINAL
    assert schedule(total - 1, total, total) == FINAL


def test_linear_decay_over_the_whole_run_reaches_its_end_after_the_last_update():
    schedule = Linear(1.0, 0.0)
    assert rates(schedule, [0, 250, 999, 1000]) == pytest.approx([1.0, 0.75, 0.001, 0.0], abs=1e-15)


def test_the_papers_cosine_warms_up_decays_and_restarts_with_every_task():
    schedule = Cosine(PEAK, FINAL, warmup_steps=1000, initial_lr=1e-8, restart="task")
    per_task = 1_250_000  # 20M frames
    total = 20 * per_task
    assert schedule(0, total, per_task) == 1e-8
    assert schedule(500, total, per_task) == pytest.approx((1e-8 + PEAK) / 2, rel=1e-12)
    assert schedule(1000, total, per_task) == PEAK
    middle = 1000 + (per_task - 1000) // 2
    assert schedule(middle, total, per_task) == pytest.approx((PEAK + FINAL) / 2, rel=1e-9)
    assert FINAL < schedule(per_task - 1, total, per_task) < FINAL * (1 + 1e-6)
    assert schedule(per_task, total, per_task) == 1e-8
    assert schedule(7 * per_task + 321, total, per_task) == schedule(321, total, per_task)


def test_a_cosine_without_restart_ends_exactly_at_its_final_rate():
    assert Cosine(PEAK, FINAL, warmup_steps=10)(1000, 1000, 100) == FINAL
    assert Cosine(PEAK, FINAL, until=0.3)(300, 1000, 100) == FINAL


@pytest.mark.parametrize("progress", [0.1, 0.37, 0.9])
def test_a_cosine_is_half_a_period_of_a_cosine(progress):
    wanted = 0.1 + 0.5 * (2.0 - 0.1) * (1 + math.cos(math.pi * progress))
    assert Cosine(2.0, 0.1)(round(1000 * progress), 1000, 100) == pytest.approx(wanted, rel=1e-12)


def test_steps_divide_the_rate_at_the_very_updates_their_fractions_name():
    schedule = Steps(0.025, (0.3, 0.5, 0.75))
    wanted = [0.025] * 300 + [0.0025] * 200 + [0.00025] * 250 + [0.000025] * 250
    assert rates(schedule, range(1000)) == pytest.approx(wanted, rel=1e-12)
    assert rates(Steps(0.025, (0.5,)), [199_999, 200_000], total_steps=400_000) == [0.025, 0.025 * 0.1]
    assert rates(Steps(1.0, ()), [0, 999]) == [1.0, 1.0]


def test_steps_count_from_the_end_of_the_warm_up_and_anew_in_every_task():
    schedule = Steps(1.0, (0.5,), factor=0.5, warmup_steps=20, restart="task")
    assert rates(schedule, [10, 59, 60, 99, 110, 159, 160]) == [0.5, 1.0, 0.5, 0.5, 0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(1.0, warmup_steps=4),
        Linear(1.0, 0.5, warmup_steps=4),
        Cosine(1.0, 0.5, warmup_steps=4),
        Steps(1.0, (0.5,), warmup_steps=4),
    ],
)
def test_every_kind_of_schedule_can_warm_up(schedule):
    assert rates(schedule, [0, 1, 2, 3, 4]) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_decay_after_a_warm_up_still_ends_where_until_says():
    schedule = Linear(1.0, 0.0, warmup_steps=100, until=0.5)
    assert rates(schedule, [100, 300, 500, 700]) == [1.0, 0.5, 0.0, 0.0]


@given(
    kind=st.sampled_from([Linear, Cosine]),
    final=st.floats(0.0, 1.0),
    until=st.floats(0.1, 1.0),
    warmup=st.integers(0, 9),
    restart=st.sampled_from(["never", "task"]),
)
def test_a_decay_rises_only_while_it_warms_up_and_stays_within_its_rates(kind, final, until, warmup, restart):
    schedule = kind(1.0, final, until=until, warmup_steps=warmup, restart=restart)
    length = 100 if restart == "task" else 1000
    values = rates(schedule, range(length))
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert values[warmup] == 1.0
    assert min(values[warmup:]) >= final


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: Constant(0.0), "positive"),
        (lambda: Constant(-1e-3), "positive"),
        (lambda: Constant(math.nan), "positive"),
        (lambda: Constant(math.inf), "finite"),
        (lambda: Linear(1e-3, 2e-3), "final_lr in"),
        (lambda: Cosine(1e-3, -1e-6), "final_lr in"),
        (lambda: Linear(1e-3, 0.0, until=0.0), "until, a fraction"),
        (lambda: Linear(1e-3, 0.0, until=1.5), "until, a fraction"),
        (lambda: Cosine(1e-3, 0.0, warmup_steps=-1), "warmup_steps"),
        (lambda: Cosine(1e-3, 0.0, warmup_steps=2.5), "warmup_steps"),
        (lambda: Constant(1e-3, warmup_steps=10, initial_lr=2e-3), "initial_lr in"),
        (lambda: Constant(1e-3, initial_lr=1e-8), "does nothing without warmup_steps"),
        (lambda: Constant(1e-3, restart="tasks"), "Did you mean 'task'"),
        (lambda: Steps(1e-3, (0.5, 0.5)), "increasing fractions `at` in"),
        (lambda: Steps(1e-3, (0.5, 0.2)), "increasing fractions `at` in"),
        (lambda: Steps(1e-3, (0.0,)), "increasing fractions `at` in"),
        (lambda: Steps(1e-3, (0.5, 1.0)), "increasing fractions `at` in"),
        (lambda: Steps(1e-3, (math.nan,)), "increasing fractions `at` in"),
        (lambda: Steps(1e-3, (0.5,), factor=0.0), "factor in"),
        (lambda: Steps(1e-3, (0.5,), factor=1.0), "factor in"),
    ],
)
def test_nonsense_is_refused_with_the_reason(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize(
    "schedule", [Constant(1.0, warmup_steps=1000), Linear(1.0, 0.0, warmup_steps=100, restart="task")]
)
def test_a_warm_up_that_leaves_no_room_is_refused_at_the_first_step(schedule):
    with pytest.raises(ValueError, match="warm-up"):
        schedule(0, 1000, 100)


@pytest.mark.parametrize(
    "schedule",
    [Constant(1e-3), Linear(PEAK, FINAL, until=0.5), Cosine(PEAK, FINAL, warmup_steps=1000), Steps(0.1, (0.5, 0.75))],
)
def test_a_schedule_survives_being_written_down(schedule):
    assert Part.from_dict(Part.of(schedule).as_dict()).build(SCHEDULES, "schedule") == schedule

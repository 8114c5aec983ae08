"""The random walks of Figs. 11 and 12: the closed form against autograd and against theory, and their loop."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from nap_bench import jobs, plan
from nap_bench.benchmarks.random_walk import NORMS, RULES, STEPS_PER_CHUNK, RandomWalk
from nap_bench.experiments import fig11_random_walk, fig12_random_walk_centring
from nap_bench.experiments.base import Labelled
from nap_bench.optimizers import Adam
from nap_bench.schedules import Constant
from nap_bench.session import Control, Interrupted
from nap_bench.simulate import FIXED, check, simulate
from nap_bench.spec import ModelSpec, Part, Run
from nap_bench.store import RunFolder, read_result, result_path

FUNCTIONS = {
    "identity": lambda v: v,
    "centre": lambda v: v - v.mean(),
    "rms": lambda v: v / v.norm(),
    "layer": lambda v: (v - v.mean()) / (v - v.mean()).norm(),
}
"""norm -> f, as the paper writes it; the walk follows z^T J with J = d/dv max(f(v), 0)."""
EVERY = [(norm, rule) for norm in NORMS for rule in RULES]
INTERRUPTED = (1, 19, 20, 33)


def run_of(walk: RandomWalk, seeds=(0, 1), step_size=1.0) -> Run:
    return Run(benchmark=Part.of(walk), schedule=Part.of(Constant(step_size)), seeds=tuple(seeds), **FIXED)


def walked(walk: RandomWalk, seeds, num_steps: int, lr: float = 1.0) -> torch.Tensor:
    """v [T + 1, S, W, D] at every step."""
    path = [walk.start(seeds)]
    for step in range(num_steps):
        path.append(walk.advance(path[-1], seeds, step, lr))
    return torch.stack(path)


def slow_direction(norm: str, v: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """One vector at a time, J whole, from autograd."""
    if norm == "none":
        return torch.stack([max(float(a), 0.0) * b for a, b in zip(v, z, strict=True)])
    return z @ jacobian(lambda x: FUNCTIONS[norm](x).relu(), v)


def vectors(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("norm", "rule"), EVERY)
def test_a_walk_is_that_of_a_slow_reference_with_the_whole_jacobian(norm, rule):
    seeds, num_steps = (0, 5), 45
    walk = RandomWalk(norm, rule, dim=9, num_walks=2)
    found = walked(walk, seeds, num_steps)
    for s, seed in enumerate(seeds):
        for w in range(2):
            v = walk.start((seed,))[0, w]
            for step in range(num_steps):
                direction = slow_direction(norm, v, walk.noise((seed,), step, v.device)[0, w])
                v = v + (direction.sign() if rule == "sign" else direction)
                torch.testing.assert_close(found[step + 1, s, w], v, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    norm=st.sampled_from(list(FUNCTIONS)),
    dim=st.integers(4, 12),
    seed=st.integers(0, 10**6),
    scale=st.floats(0.01, 100.0),
)
def test_the_closed_form_is_the_product_with_autograds_jacobian(norm, dim, seed, scale):
    v, z = scale * vectors(dim, seed=seed), vectors(dim, seed=seed + 1)
    found = RandomWalk(norm, "gd", dim=dim).direction(v.view(1, 1, -1), z.view(1, 1, -1)).flatten()
    torch.testing.assert_close(found, slow_direction(norm, v, z), rtol=1e-9, atol=1e-12 / scale)


def test_the_jacobian_is_that_of_proposition_1():
    """Rows of active outputs: delta_ij / ||v|| - v_i v_j / ||v||^3, also where unit j is saturated; others 0."""
    v, eye = vectors(7, seed=3), torch.eye(7, dtype=torch.float64)
    walk = RandomWalk("rms", "gd", dim=7, num_walks=7)
    rows = walk.direction(v.expand(1, 7, 7), eye.unsqueeze(0))[0]
    expected = (eye / v.norm() - torch.outer(v, v) / v.norm() ** 3) * (v > 0).double().unsqueeze(1)
    torch.testing.assert_close(rows, expected)
    assert 0 < (v > 0).sum() < 7 and (rows[v > 0][:, v < 0] != 0).all()


def test_for_a_positive_vector_the_direction_is_the_tangent_part_of_z_over_the_norm():
    v, z = vectors(1, 3, 6, seed=0).abs(), vectors(1, 3, 6, seed=1)
    length = v.norm(dim=-1, keepdim=True)
    unit = v / length
    expected = (z - unit * (unit * z).sum(dim=-1, keepdim=True)) / length
    torch.testing.assert_close(RandomWalk("rms", "gd", dim=6).direction(v, z), expected)
    assert torch.equal(RandomWalk("identity", "gd", dim=6).direction(v, z), z)
    assert torch.equal(RandomWalk("none", "gd", dim=6).direction(v, z), v * z)


@settings(max_examples=20, deadline=None)
@given(norm=st.sampled_from(("none", "identity")), rule=st.sampled_from(RULES), seed=st.integers(0, 10**6))
def test_without_a_norm_a_dead_unit_never_moves_again(norm, rule, seed):
    path = walked(RandomWalk(norm, rule, dim=6), (seed,), 40)
    dead = path[:-1] <= 0
    assert torch.equal(path[1:][dead], path[:-1][dead])
    assert dead.any() and ((path[1:] < 0).sum(dim=-1) >= (path[:-1] < 0).sum(dim=-1)).all()


def test_through_a_norm_sign_updates_move_all_negative_coordinates_in_lockstep_and_revive_them():
    path = walked(RandomWalk("rms", "sign", dim=50), (0, 1, 2), 60)
    moves, negative = path[1:] - path[:-1], path[:-1] < 0
    for move, mask in zip(moves.flatten(0, 2), negative.flatten(0, 2), strict=True):
        assert len(set(move[mask].round().tolist())) <= 1
    assert (negative & (path[1:] > 0)).any()


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_under_gradient_descent_the_squared_norm_grows_by_that_of_the_step(norm):
    """Gradients through a norm are orthogonal to what is normalised (paper A.5); centred ones leave the mean alone."""
    walk = RandomWalk(norm, "gd", dim=20)
    path = walked(walk, (0, 1), 50)
    squared = walk.argument(path).square().sum(dim=-1)
    steps = (path[1:] - path[:-1]).square().sum(dim=-1)
    torch.testing.assert_close(squared[1:] - squared[:-1], steps, rtol=1e-9, atol=1e-9)
    if norm == "layer":
        torch.testing.assert_close(path.mean(dim=-1), path[:1].mean(dim=-1).expand(51, -1, -1))


def test_a_step_size_of_sqrt_d_is_the_norm_with_its_sqrt_d():
    v, z, d = vectors(16, seed=5), vectors(16, seed=6), 16
    scaled = z @ jacobian(lambda x: (math.sqrt(d) * x / x.norm()).relu(), v)
    found = math.sqrt(d) * RandomWalk("rms", "gd", dim=d).direction(v.view(1, 1, -1), z.view(1, 1, -1)).flatten()
    torch.testing.assert_close(found, scaled)


def normal_cdf(x: float) -> float:
    return 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))


def test_the_printed_gradient_rule_loses_units_at_the_rate_theory_gives():
    """v (1 + z) stays positive with probability P(z > -1), independently at each step."""
    num, steps = 200 * 100, 6
    survivors = (walked(RandomWalk("none", "gd", dim=100, num_walks=100), (0, 1), steps)[-1] > 0).double().mean()
    expected = 0.5 * normal_cdf(1.0) ** steps
    assert abs(survivors - expected) < 4 * math.sqrt(expected * (1 - expected) / num)


def test_sign_updates_without_a_norm_are_simple_random_walks_stopped_below_zero():
    """From v > 0 it takes k = floor(v) + 1 more steps down than up; by reflection P(not yet) = P(-k < S_t <= k)."""
    num, steps = 200 * 100, 30
    survivors = (walked(RandomWalk("none", "sign", dim=100, num_walks=100), (0, 1), steps)[-1] > 0).double().mean()
    expected = 0.0
    for k in range(1, 8):
        inside = sum(math.comb(steps, (steps + s) // 2) for s in range(-k + 1, k + 1) if (steps + s) % 2 == 0)
        expected += (normal_cdf(k) - normal_cdf(k - 1)) * inside / 2**steps
    assert abs(survivors - expected) < 4 * math.sqrt(expected * (1 - expected) / num)


def test_what_is_probed_is_what_its_names_say():
    v = torch.tensor([[[3.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0], [-1.0, -2.0, -3.0, -4.0]]], dtype=torch.float64)
    plain = {name: values.item() for name, values in RandomWalk("rms", "gd", dim=4, num_walks=3).probe(v).items()}
    assert plain == pytest.approx(
        {
            "probe/negative_fraction": (0.75 + 0.0 + 1.0) / 3,
            "probe/negative_spread": math.sqrt(((0.75 - 7 / 12) ** 2 + (7 / 12) ** 2 + (5 / 12) ** 2) / 3),
            "probe/inactive_fraction": (0.75 + 0.0 + 1.0) / 3,
            "probe/none_active": 1 / 3,
            "probe/one_active": 1 / 3,
            "probe/largest_share": (3 / math.sqrt(12) + 1 / 2 + 4 / math.sqrt(30)) / 3,
            "probe/participation": (144 / 84 + 4 + 900 / 354) / 4 / 3,
        }
    )
    centred = RandomWalk("layer", "gd", dim=4, num_walks=2).probe(v[:, [0, 2]])
    assert centred["probe/negative_fraction"].item() == 0.875 and centred["probe/inactive_fraction"].item() == 0.625


@pytest.mark.parametrize("norm", NORMS)
def test_only_where_a_norm_centres_can_a_negative_coordinate_be_an_active_unit(norm):
    walk = RandomWalk(norm, "sign", dim=10, num_walks=3)
    v = walked(walk, (4,), 30)[-1]
    assert torch.equal(v < 0, walk.argument(v) <= 0) == (norm not in ("centre", "layer"))
    assert torch.equal(walk.start((4,)), RandomWalk("none", "gd", dim=10, num_walks=3).start((4,)))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(EVERY),
    dim=st.integers(4, 70),
    num_walks=st.integers(1, 40),
    seeds=st.lists(st.integers(0, 999), min_size=2, max_size=7, unique=True),
)
def test_law_1_a_block_of_seeds_equals_each_seed_alone(kind, dim, num_walks, seeds):
    walk, num_steps = RandomWalk(*kind, dim=dim, num_walks=num_walks), STEPS_PER_CHUNK + 3
    block = walked(walk, tuple(seeds), num_steps)
    for index, seed in enumerate(seeds):
        alone = walked(walk, (seed,), num_steps)
        assert torch.equal(alone[:, 0], block[:, index])
        for name, values_S in walk.probe(alone[-1]).items():
            assert torch.equal(values_S[0], walk.probe(block[-1])[name][index])


def test_law_1_holds_at_the_sizes_of_the_exhibit():
    walk, seeds = RandomWalk("layer", "sign", dim=100, num_walks=8), tuple(range(32))
    assert torch.equal(walked(walk, seeds, 30)[-1, 17], walked(walk, (17,), 30)[-1, 0])


def test_law_6_noise_is_a_pure_function_of_seed_and_step():
    walk, device = RandomWalk("rms", "gd", dim=5, num_walks=2), torch.device("cpu")
    steps = (0, STEPS_PER_CHUNK - 1, STEPS_PER_CHUNK, 3 * STEPS_PER_CHUNK + 1)
    forwards = [walk.noise((0, 1), step, device).clone() for step in steps]
    again = dataclasses.replace(walk, norm="none", rule="sign")
    backwards = [again.noise((1, 0), step, device) for step in reversed(steps)][::-1]
    for left, right in zip(forwards, backwards, strict=True):
        assert torch.equal(left, right.flip(0)) and not torch.equal(left[0], left[1])
    assert len({left.sum().item() for left in forwards}) == len(steps)


GOLDEN = {
    1: {
        ("none", "gd"): (1.201384541124631, -0.3571299644808762, -0.6645039249873403, -0.08908775780204109),
        ("none", "sign"): (4.332805151747662, -0.006772953236773294, -0.6645039249873403, -0.07864491304240162),
        ("identity", "gd"): (1.9213055021744432, -0.8743210365938592, -0.6645039249873403, -0.007083024694380269),
        ("identity", "sign"): (4.332805151747662, -0.006772953236773294, -0.6645039249873403, -0.07864491304240162),
        ("centre", "gd"): (2.2939580250993004, 0.25538802612033107, 0.46520513772685, -0.4316678284653349),
        ("centre", "sign"): (4.332805151747662, -0.006772953236773294, 3.3354960750126597, 0.9213550869575984),
        ("rms", "gd"): (1.2978309914696413, 1.6118050849291254, -1.020671502549177, 1.2518664899960765),
        ("rms", "sign"): (4.332805151747662, -0.006772953236773294, -2.6645039249873403, -1.0786449130424014),
        ("layer", "gd"): (1.2226161468550303, 2.008835239648713, -0.8983082424913315, 0.24974021646873534),
        ("layer", "sign"): (4.332805151747662, -0.006772953236773294, 1.3354960750126597, 0.9213550869575984),
    }
}
"""Version of the benchmark -> (norm, rule) -> v of seed 1 after four steps."""


def test_law_9_walks_are_the_recorded_ones():
    for (norm, rule), expected in GOLDEN[RandomWalk.version].items():
        final = walked(RandomWalk(norm, rule, dim=4), (1,), 4)[-1].flatten()
        torch.testing.assert_close(final, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


SMALL = RandomWalk("layer", "sign", dim=6, num_walks=2, num_steps=40, probe_every=20)


def simulated(folder, run: Run, **control) -> tuple[dict, bytes]:
    place = RunFolder(folder, run)
    place.path.mkdir(parents=True, exist_ok=True)
    ended = simulate(run, place, data_dir=None, device="cpu", control=Control(**control))
    ended["cost"] = None
    return ended, place.metrics.read_bytes()


@pytest.mark.parametrize("killed_at", INTERRUPTED)
@pytest.mark.parametrize("checkpoint_seconds", [0.0, 30.0], ids=["checkpoint at every step", "none"])
def test_law_2_a_simulation_killed_at_any_step_resumes_to_the_same_bytes(
    tmp_path, monkeypatch, killed_at, checkpoint_seconds
):
    run = run_of(SMALL)
    expected = simulated(tmp_path / "whole", run)
    advance, done = RandomWalk.advance, []

    def dying(self, v, seeds, step, lr):
        done.append(step)
        if step == killed_at and done.count(step) == 1:
            raise KeyboardInterrupt
        return advance(self, v, seeds, step, lr)

    monkeypatch.setattr(RandomWalk, "advance", dying)
    with pytest.raises(KeyboardInterrupt):
        simulated(tmp_path / "killed", run, checkpoint_seconds=checkpoint_seconds)
    assert simulated(tmp_path / "killed", run, checkpoint_seconds=checkpoint_seconds) == expected
    assert done.count(0) == (1 if checkpoint_seconds == 0.0 else 2)


def test_a_simulation_asked_to_stop_says_where_and_goes_on_from_there(tmp_path):
    run = run_of(SMALL)
    with pytest.raises(Interrupted, match="stopped at update 1 of 40; it goes on from there"):
        simulated(tmp_path / "stopped", run, stop=True)
    assert simulated(tmp_path / "stopped", run) == simulated(tmp_path / "whole", run)


def test_a_seed_that_leaves_the_finite_numbers_is_reported_and_never_dropped(tmp_path, monkeypatch):
    advance = RandomWalk.advance

    def diverging(self, v, seeds, step, lr):
        moved = advance(self, v, seeds, step, lr)
        moved[1] = math.nan if step == 30 else moved[1]
        return moved

    _, healthy = simulated(tmp_path / "healthy", run_of(SMALL))
    monkeypatch.setattr(RandomWalk, "advance", diverging)
    ended, table = simulated(tmp_path / "diverging", run_of(SMALL))
    assert ended["status"] == [{"seed": 0, "status": "complete"}, {"seed": 1, "status": "diverged", "step": 20}]
    rows, whole = table.decode().splitlines(), healthy.decode().splitlines()
    assert len(rows) == len(whole)
    for row, expected in zip(rows, whole, strict=True):
        step, seed, *_ = row.split(",")
        assert row == expected if seed != "1" or int(step) <= 20 else row.endswith(",nan")


def test_a_job_finds_the_loop_of_its_benchmark_and_leaves_a_result(tmp_path):
    run = run_of(SMALL, seeds=(2, 9), step_size=0.5)
    line = {"run_id": run.run_id, "work": 80, "uses": {}, "methods": [], "run": plan.compact(run)}
    suite = jobs.Suite([], "laptop", store=tmp_path / "store", results=tmp_path)
    job = jobs.Job(line, store=tmp_path / "store", results=tmp_path)
    assert jobs.do([job], data_dir=None, device="cpu", suite=suite) == 0
    result = read_result(result_path(tmp_path, run.run_id))
    assert result["spec"] == json.loads(json.dumps(run.as_dict()))
    assert result["environment"]["resolved_model"] == {"family": "none"}
    assert result["metrics"]["probe/negative_fraction"]["steps"] == [0, 20, 40]
    path = walked(SMALL, (2, 9), 40, lr=0.5)
    expected = [SMALL.probe(path[step])["probe/negative_fraction"].tolist() for step in (0, 20, 40)]
    assert result["metrics"]["probe/negative_fraction"]["values"] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ModelSpec(family="mlp", size=())}, "no choice of model"),
        ({"optimizer": Part.of(Adam())}, "no choice of optimizer"),
        ({"methods": (Part("nap"),)}, "no choice of methods"),
        ({"precision": "fp32"}, "no choice of precision: wanted fp64, found fp32"),
    ],
)
def test_a_run_that_asks_for_what_a_simulation_would_ignore_is_refused(change, message):
    check(run_of(SMALL))
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(run_of(SMALL), **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "rmz"}, "norm of random_walk 'rmz'. Did you mean 'rms'"),
        ({"rule": "sgd"}, "rule of random_walk 'sgd'. Did you mean 'gd'"),
        ({"dim": 3}, "dim >= 4"),
        ({"num_walks": 0}, "positive sizes"),
        ({"probe_every": 7}, "divides num_steps"),
    ],
)
def test_impossible_walks_are_refused_in_words(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


EXHIBITS = (fig11_random_walk, fig12_random_walk_centring)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=["fig11", "fig12"])
def test_every_claim_and_panel_finds_what_it_reads_in_the_scores(exhibit):
    from nap_bench.report import claims
    from nap_bench.report.scores import Scores

    rows, seeds = [], (1000, 1001)
    for entry in exhibit.runs("laptop"):
        check(entry.run)
        params = dict(entry.run.benchmark.params) | {"num_walks": 2, "num_steps": 20, "probe_every": 10}
        walk = RandomWalk(**params)
        path = walked(walk, seeds, 20, dict(entry.run.schedule.params)["lr"])
        probes = [walk.probe(path[step]) for step in (0, 10, 20)]
        metrics = {name: {"steps": [0, 10, 20], "values": [p[name].tolist() for p in probes]} for name in probes[0]}
        result = {"spec": {"seeds": list(seeds)}, "metrics": metrics}
        rows += exhibit.score([Labelled(entry.arm, entry.setting, result)])
    found = Scores(rows)
    judged = claims.judge(exhibit.CLAIMS, found, exhibit="e", scale="laptop", expected_seeds=seeds)
    for claim in judged["claims"]:
        assert all(m["n"] == 2 and m["num_missing"] == 0 for m in claim["measurements"]), claim["id"]
    for panel in exhibit.PANELS:
        for arm in panel.arms:
            has_it = found.has(panel.measure, arm, panel.setting)
            assert has_it and found.curve(panel.measure, arm, panel.setting)[0].tolist() == [0.0, 10.0, 20.0]


def test_the_two_exhibits_share_the_runs_that_they_have_in_common():
    runs = [{entry.run.run_id for entry in exhibit.runs("laptop")} for exhibit in EXHIBITS]
    assert [len(ids) for ids in runs] == [12, 16] and len(runs[0] & runs[1]) == 8

"""Identity of runs."""

from __future__ import annotations

import dataclasses

import pytest

from nap_bench.experiments.arms import entry
from nap_bench.plan import compact, expand
from nap_bench.spec import Part, Run, canonical

TASK = {"num_examples": 320, "num_tasks": 2, "steps_per_task": 3, "batch_size": 4}
RUN = entry("laptop", "ln_weight_decay", {"lr": 0.01, "weight_decay": 0.3}, seeds=(0, 1), task=TASK).run


def test_a_run_survives_json_and_the_plan_with_its_identity():
    assert Run.from_dict(RUN.as_dict()) == RUN
    assert expand(compact(RUN)) == RUN
    assert Run.from_dict(RUN.as_dict()).run_id == RUN.run_id


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (0, 2)},
        {"schedule": Part("constant", 1, (("lr", 0.02),))},
        {"protocol": 2},
        {"methods": ()},
        {"model": dataclasses.replace(RUN.model, init_scale=2.0)},
        {"benchmark": dataclasses.replace(RUN.benchmark, version=2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_can_change_a_number_changes_the_run_id(change):
    changed = dataclasses.replace(RUN, **change)
    assert changed.run_id != RUN.run_id
    assert (changed.cell_id == RUN.cell_id) == ("seeds" in change)


def test_methods_stand_in_canonical_order_whatever_the_order_given():
    swapped = dataclasses.replace(RUN, methods=RUN.methods[::-1])
    assert swapped == RUN and RUN.stack == "layer_norm+weight_decay"


def test_a_part_of_another_version_is_refused():
    from nap_bench.methods import METHODS

    with pytest.raises(ValueError, match="version 1 here, the run wants version 7"):
        Part("nap", 7).build(METHODS, "method")


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1, 2)])
def test_seeds_are_distinct_and_not_negative(seeds):
    with pytest.raises(ValueError, match="distinct, non-negative seeds"):
        dataclasses.replace(RUN, seeds=seeds)


def test_identity_refuses_what_json_cannot_say():
    with pytest.raises(ValueError):
        canonical({"period": float("inf")})


def test_the_id_of_a_known_run_never_changes():
    """A change here means that every stored result has lost its name: bump PROTOCOL if numbers changed, else undo it."""
    assert RUN.run_id == "random_labels.mlp.layer_norm+weight_decay-d77bee4480"


def test_a_later_field_leaves_the_identity_of_older_results_alone():
    from nap_bench.benchmarks import RandomLabels

    task = dict(dataset="digits", num_examples=8, num_tasks=1, steps_per_task=2, batch_size=4)
    without = Part.of(RandomLabels(**task))
    assert "jacobian_examples" not in dict(without.params)
    assert dict(Part.of(RandomLabels(**task, jacobian_examples=4)).params)["jacobian_examples"] == 4

"""In-context copying: where the suffix comes from, what is scored, and that evaluation reads strings nobody was trained on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from nap_bench.benchmarks import Copying
from nap_bench.experiments.base import make_run
from nap_bench.optimizers import Adam
from nap_bench.schedules import Constant
from nap_bench.session import Control
from nap_bench.spec import ModelSpec
from nap_bench.state import build
from nap_bench.store import RunFolder
from nap_bench.train import train

STREAM = Copying(
    num_strings=300, length=14, vocabulary=50, num_tasks=2, steps_per_task=5, batch_size=8, copied=4, cue=2
)
"""Ten tokens, then four of them again."""


def places(string: list[int], copied: int) -> list[int]:
    """Where in its prefix a string's suffix stands."""
    prefix, suffix = string[:-copied], string[-copied:]
    return [start for start in range(len(prefix) - copied + 1) if prefix[start : start + copied] == suffix]


def test_the_suffix_is_a_stretch_of_the_prefix_from_any_place_alike():
    found = [places(string, 4) for seed in (0, 1) for string in STREAM.strings(seed, 0).tolist()]
    assert all(found)
    counts = torch.tensor([starts[0] for starts in found]).bincount(minlength=7).double()
    assert len(counts) == 7 and ((counts - 600 / 7) ** 2 / (600 / 7)).sum() < 24  # 6 degrees of freedom: p = 5e-4


def test_the_prefix_holds_every_symbol_at_every_place():
    strings_NL = dataclasses.replace(STREAM, vocabulary=3).strings(0, 0)
    assert all(set(strings_NL[:, place].tolist()) == {0, 1, 2} for place in range(14))


def test_accuracy_is_over_the_copied_tokens_after_the_cue_alone():
    inputs, y_SBT = STREAM.batch(STREAM.load(None, "cpu"), (0, 1), 3)
    right = F.one_hot(y_SBT, 50).float()
    wrong = F.one_hot((y_SBT + 1) % 50, 50).float()
    assert STREAM.accuracy(right, y_SBT).tolist() == [1.0, 1.0] and STREAM.accuracy(wrong, y_SBT).tolist() == [0, 0]
    for t in range(13):
        mixed = right.clone()
        mixed[0, :, t] = wrong[0, :, t]
        expected = 0.5 if t >= 11 else 1.0  # targets 11 and 12 are the last two of the four copied tokens
        assert STREAM.accuracy(mixed, y_SBT).tolist() == [expected, 1.0], t
        assert (STREAM.loss(mixed, y_SBT) > STREAM.loss(right, y_SBT)).tolist() == [True, False], t


def test_a_reader_who_looks_up_the_cue_copies_without_a_mistake():
    """What is scored follows from the prefix, where the cue stands there once."""
    correct, total = 0, 0
    for string in STREAM.strings(0, 1).tolist():
        prefix, cue = string[:10], string[10:12]
        starts = [start for start in range(7) if prefix[start : start + 2] == cue]
        if len(starts) == 1:
            correct += prefix[starts[0] + 2 : starts[0] + 4] == string[12:]
            total += 1
    assert total > 280 and correct == total


def test_evaluation_reads_new_strings_in_every_task_and_none_that_is_trained_on():
    data, seen = STREAM.load(None, "cpu"), []
    for task in (0, 1):
        inputs, y_SET = dataclasses.replace(STREAM, eval_strings=40).probe(data, (0, 1), task)
        assert inputs.shape == (2, 40, 13)
        for index, seed in enumerate((0, 1)):
            shown = {tuple(row) for row in torch.cat([inputs, y_SET[..., -1:]], dim=2)[index].tolist()}
            trained = {tuple(row) for other in (0, 1) for row in STREAM.strings(seed, other).tolist()}
            assert len(shown) == 40 and not shown & trained and all(places(list(row), 4) for row in shown)
            seen.append(shown)
    assert not set.intersection(*seen) and len(set().union(*seen)) == 160


def test_both_of_the_papers_sizes_can_be_written():
    common = dict(num_strings=4096, vocabulary=256, num_tasks=10, steps_per_task=1000, batch_size=128)
    b3 = Copying(length=512, copied=100, **common)
    c3 = Copying(length=150, copied=50, **common)
    assert b3.length - b3.copied == 412 and c3.length - c3.copied == 100 and c3.copied - c3.cue == 48


@pytest.mark.parametrize(
    ("changes", "found"), [({"copied": 8}, "copied=8"), ({"cue": 0}, "cue=0"), ({"cue": 4}, "cue=4, copied=4")]
)
def test_suffixes_that_cannot_be_are_refused(changes, found):
    with pytest.raises(ValueError, match=f"0 < cue < copied <= length - copied; found .*{found}"):
        dataclasses.replace(STREAM, **changes)


def test_online_accuracy_is_over_the_tokens_that_are_scored_before_the_update(tmp_path):
    stream = dataclasses.replace(STREAM, num_tasks=1, steps_per_task=1, vocabulary=3)
    net = ModelSpec(family="transformer", size=(("d_model", 16), ("entrance", "rms"), ("heads", 2), ("widths", (16,))))
    run = make_run(benchmark=stream, model=net, stack="nap", optimizer=Adam(), schedule=Constant(0.1), seeds=(0, 1))
    folder = RunFolder(tmp_path, run)
    folder.open()
    train(run, folder, data_dir=None, device="cpu", control=Control())
    rows = [line.split(",") for line in folder.metrics.read_text().splitlines()]
    recorded = {int(row[1]): float(row[3]) for row in rows if row[2] == "online/accuracy"}
    state = build(dataclasses.replace(net, norm="layer"), run.optimizer, (0, 1), stream.shapes, "cpu")
    inputs, y_SBT = stream.batch(stream.load(None, "cpu"), (0, 1), 0)
    right = state.forward(inputs).argmax(dim=-1) == y_SBT
    for index in range(2):
        hits = [right[index, example, t].item() for example in range(8) for t in (11, 12)]
        assert recorded[index] == pytest.approx(sum(hits) / 16)
    assert recorded != {index: right[index].float().mean().item() for index in range(2)}

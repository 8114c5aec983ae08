"""Checkpoints and the metrics table: whole, one's own, and resumed to the same bytes."""

from __future__ import annotations

import pytest
import torch

from nap_bench import checkpoint
from nap_bench.record import Recorder


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    content = {"a": torch.randn(3), "n": 2, "nested": {"t": torch.ones(2, dtype=torch.bool)}}
    checkpoint.save(tmp_path / "c", "run", "cpu", content)
    back = checkpoint.load(tmp_path / "c", "run", "cpu")
    assert (
        torch.equal(back["a"], content["a"])
        and back["n"] == 2
        and torch.equal(back["nested"]["t"], content["nested"]["t"])
    )
    assert checkpoint.load(tmp_path / "absent", "run", "cpu") is None


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_flipped_bit_is_noticed(tmp_path, position):
    checkpoint.save(tmp_path / "c", "run", "cpu", {"a": torch.zeros(100)})
    data = bytearray((tmp_path / "c").read_bytes())
    data[position] ^= 1
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load(tmp_path / "c", "run", "cpu")


def test_another_runs_checkpoint_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", "theirs", "cpu", {})
    with pytest.raises(ValueError, match="belongs to run theirs, wanted mine"):
        checkpoint.load(tmp_path / "c", "mine", "cpu")


@pytest.mark.fault(
    "checkpoint: was made on another kind of device", outcome="refused in one line: going on would change numbers"
)
def test_resuming_on_another_kind_of_device_is_refused(tmp_path):
    checkpoint.save(tmp_path / "c", "run", "meta", {})
    with pytest.raises(ValueError, match="was made on meta, this is cpu"):
        checkpoint.load(tmp_path / "c", "run", "cpu")


@pytest.mark.fault("checkpoint: vouches for rows that the run's table has lost", outcome="refused in one line")
def test_a_table_shorter_than_its_checkpoint_says_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("step,seed,metric,value\n")
    with pytest.raises(ValueError, match="has 23 bytes, its checkpoint vouches for 400"):
        Recorder(tmp_path / "m.csv", (0,), 400)


def test_the_table_keeps_every_bit_and_cuts_off_what_no_checkpoint_vouches_for(tmp_path):
    recorder = Recorder(tmp_path / "m.csv", (4, 7))
    values = torch.tensor([1 / 3, float("nan")])
    recorder.log(1, "loss", values)
    offset = recorder.flush()
    kept = (tmp_path / "m.csv").read_bytes()
    recorder.log(2, "loss", values)
    recorder.flush()
    resumed = Recorder(tmp_path / "m.csv", (4, 7), offset)
    assert (tmp_path / "m.csv").read_bytes() == kept and len(kept) == offset
    assert resumed.flush() == offset
    lines = kept.decode().splitlines()
    assert lines[0] == "step,seed,metric,value" and lines[2] == "1,7,loss,nan"
    assert torch.tensor(float(lines[1].split(",")[-1])) == values[0]

"""Language modelling: pure batches, accuracy against a slow reference, micro-batches, bf16, resume, processes together."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers")

from nap_bench import jobs, plan, together, update
from nap_bench.benchmarks import BENCHMARKS
from nap_bench.benchmarks.language import STEPS_PER_CHUNK, Language, Texts, bigram_accuracy
from nap_bench.data import topics
from nap_bench.data.tokens import as_rows
from nap_bench.experiments.base import make_run
from nap_bench.methods import parse_stack, stack_of
from nap_bench.optimizers import Adam
from nap_bench.schedules import Cosine
from nap_bench.session import Control, Interrupted
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build
from nap_bench.store import RunFolder
from nap_bench.train import micro_losses, train

ROOT = Path(__file__).parents[2]
TASK = Language(
    dataset="topics",
    length=12,
    vocabulary=300,
    num_evaluations=2,
    steps_per_evaluation=4,
    batch_size=8,
    eval_tokens=400,
)
NET = (("d_model", 16), ("entrance", "layer"), ("heads", 2), ("widths", (24, 16)))
SPEC = ModelSpec(family="transformer", size=NET)
ADAMW = "weight_decay(coef=0.1)"


@pytest.fixture(scope="module")
def data() -> Texts:
    return TASK.load(None, "cpu")


def run_of(stack=f"nap+{ADAMW}", seeds=(0, 1), precision="fp32", **params):
    run = make_run(
        benchmark=dataclasses.replace(TASK, **params),
        model=SPEC,
        stack=stack,
        optimizer=Adam(),
        schedule=Cosine(3e-3, 0.0, warmup_steps=3),
        seeds=seeds,
    )
    return dataclasses.replace(run, precision=precision)


def state_of(precision="fp32", seeds=(0, 1), task=TASK, stack=ADAMW):
    methods = stack_of(parse_stack(stack))
    state = build(methods.transform_model(SPEC), Part.of(Adam()), seeds, task.shapes, "cpu", precision)
    state.lr.fill_(0.003)
    methods.setup(state)
    return state, methods


def test_a_batch_is_a_pure_function_of_seed_and_step(data):
    again = dataclasses.replace(TASK)
    for step in (0, 3, STEPS_PER_CHUNK + 5):
        first = TASK.batch(data, (0, 1), step)
        TASK.batch(data, (9,), step + 1)
        for left, right in zip(first, again.batch(data, (0, 1), step), strict=True):
            assert torch.equal(left, right)
        assert torch.equal(first[0][1], TASK.batch(data, (1,), step)[0][0])
        assert not torch.equal(first[0][0], first[0][1])


def test_targets_are_the_tokens_that_follow_and_every_pass_reads_every_string_once(data):
    num_strings = (len(data.train) - 1) // 12
    inputs, y_SBT = TASK.batch(data, (5,), 0)
    assert inputs.shape == y_SBT.shape == (1, 8, 12) and torch.equal(inputs[..., 1:], y_SBT[..., :-1])
    text = data.train[: num_strings * 12 + 1]
    long = dataclasses.replace(TASK, num_evaluations=1, steps_per_evaluation=2 * STEPS_PER_CHUNK)
    steps = -(-num_strings // 8)
    assert steps > STEPS_PER_CHUNK  # over the seam of two chunks
    read = torch.cat(
        [long._order(num_strings, (5,), s // STEPS_PER_CHUNK)[s % STEPS_PER_CHUNK, 0] for s in range(steps)]
    )
    assert sorted(read[:num_strings].tolist()) == list(range(num_strings))
    first = read[:8].tolist()
    for row, index in zip(range(8), first, strict=True):
        assert inputs[0, row].tolist() == text[index * 12 : index * 12 + 12].tolist()
        assert y_SBT[0, row].tolist() == text[index * 12 + 1 : index * 12 + 13].tolist()


def test_per_token_accuracy_and_loss_are_those_of_a_slow_reference(data):
    state, _ = state_of()
    found = TASK.evaluate(state, data)
    corpus = topics.load(300)
    held_out, starts = corpus.evaluation["topics"].tolist(), []
    starts = [i for i, token in enumerate(held_out) if token == corpus.end]
    for seed in range(2):
        correct, loss, asked = 0, 0.0, 0
        for start, stop in zip(starts, [*starts[1:], len(held_out)], strict=True):
            if start >= 400:
                break
            for first in range(start, stop - 1, 12):
                string = held_out[first : min(first + 13, stop)]
                logits = state.forward(torch.tensor([[string[:-1]]] * 2))[seed, 0]
                for t, target in enumerate(string[1:]):
                    correct += int(logits[t].argmax()) == target
                    loss -= logits[t].log_softmax(dim=0)[target].item()
                    asked += 1
        assert found["test_accuracy"][seed].item() == pytest.approx(correct / asked, abs=1e-9)
        assert found["test_loss"][seed].item() == pytest.approx(loss / asked, rel=1e-5)


def test_a_bigram_model_is_counted_by_hand():
    train = np.array([0, 1, 2, 1, 2, 1, 3, 0, 4, 4], dtype=np.uint16)  # after 1: 2 twice; after 0: 1 or 4; after 4: 4
    rows, num_targets_R = as_rows(np.array([0, 1, 2, 1, 2, 9, 9, 0, 4, 4], dtype=np.uint16), 0, 20)
    # 0->1 yes, 1->2 yes, 2->1 yes, 1->2 yes, 2->9 no, 9->9 no; 0->4 no (1 is lower), 4->4 yes
    assert bigram_accuracy(train, rows, num_targets_R) == pytest.approx(5 / 8)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_micro_batches_sum_to_the_batch(precision, data):
    losses, gradients, seen = [], [], []
    for micro_batches in (1, 2, 8):
        task = dataclasses.replace(TASK, micro_batches=micro_batches)
        state, methods = state_of(precision, task=task)
        seen.append([])
        update.grad_step(state, micro_losses(state, methods, task, *task.batch(data, (0, 1), 0), seen[-1]), methods)
        gradients.append(state.gradient.clone())
        losses.append(sum(loss for loss, _ in seen[-1]))
    assert [len(found) for found in seen] == [1, 2, 8]
    tolerance = dict(rtol=1e-4, atol=1e-6) if precision == "fp32" else dict(rtol=1e-10, atol=1e-12)
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert torch.allclose(loss, losses[0], **tolerance) and torch.allclose(gradient, gradients[0], **tolerance)


def test_bfloat16_is_for_products_and_parameters_stay_in_single_precision(data):
    inputs, y_SBT = TASK.batch(data, (0, 1), 0)
    outputs = {}
    for precision in ("fp32", "bf16"):
        state, methods = state_of(precision)
        outputs[precision] = state.forward(inputs)
        update.grad_step(state, [TASK.loss(outputs[precision], y_SBT)], methods)
        assert outputs[precision].dtype == state.flat.dtype == state.gradient.dtype == torch.float32
    gap = (outputs["bf16"] - outputs["fp32"]).abs().max()
    assert 0 < gap < 0.1


def trained(run, store, *, stops=(), ranks=None):
    """Train to the end, with `ranks` until stopped after each of these updates; returns metrics as they stand, and how it ended."""
    folder = RunFolder(store, run)
    folder.open()
    plain = Language.batch
    for stop in stops:
        control = Control(ranks=ranks)

        def batch(self, data, seeds, step, stop=stop, control=control):
            control.stop = step + 1 == stop
            return plain(self, data, seeds, step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Language, "batch", batch)
            with pytest.raises(Interrupted, match=f"at update {stop} of {TASK.num_steps}"):
                train(run, folder, data_dir=None, device="cpu", control=control)
    ended = train(run, folder, data_dir=None, device="cpu", control=Control())
    return folder.metrics.read_text(), ended


@pytest.mark.parametrize("stack", [ADAMW, f"nap+{ADAMW}"])
def test_a_seed_in_a_block_records_what_it_records_alone(stack, tmp_path):
    def rows(text, seed):
        return [line for line in text.splitlines() if line.split(",")[1] == str(seed)]

    block, _ = trained(run_of(stack), tmp_path / "block")
    alone, _ = trained(run_of(stack, seeds=(1,)), tmp_path / "alone")
    assert rows(block, 1) == rows(alone, 1) and len(rows(alone, 1)) > 50


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_run_stopped_at_any_step_resumes_to_the_same_bytes(micro_batches, tmp_path):
    run = run_of(micro_batches=micro_batches)
    whole, ended = trained(run, tmp_path / "whole")
    assert "task_end/test_accuracy" in whole and "task_end/bigram_accuracy" in whole and "online/loss" in whole
    assert trained(run, tmp_path / "stopped", stops=(1, 4, 6))[0] == whole
    assert ended["data"] == topics.load(300).about and ended["cost"]["extra_forward_passes"] == 0


def lines_of(*runs) -> str:
    header, lines = {}, []
    for run in runs:
        where = {"uses": {"laptop": {"table1_c4": [["nap", ""]]}}, "resources": "lm"}
        work = TASK.num_steps * len(run.seeds)
        lines.append({"run_id": run.run_id, "methods": [], "work": work, **where, "run": plan.compact(run)})
    return "".join(json.dumps(line) + "\n" for line in [header, *lines])


def with_processes(num_processes: int, folder: Path, run, *, wait=120) -> Path:
    """Do a run with so many processes, as torchrun would start them; returns its folder in the store."""
    folder.mkdir()
    (folder / "plan.jsonl").write_text(lines_of(run))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "nap_bench.together", run.run_id, "--scale", "laptop", "--device", "cpu"]
    command += [
        "--plan",
        str(folder / "plan.jsonl"),
        "--store",
        str(folder / "store"),
        "--results",
        str(folder / "results"),
    ]
    ranks = [
        {"RANK": str(rank), "WORLD_SIZE": str(num_processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for rank in range(num_processes)
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(command, env={**environment, **rank}, stderr=subprocess.PIPE, text=True, cwd=folder)
        for rank in ranks
    ]
    for process in started:
        _, said = process.communicate(timeout=wait)
        assert process.returncode == 0, said
    return folder / "store" / run.run_id


def test_two_processes_together_equal_one_process_to_the_byte(tmp_path):
    run = run_of(f"nap+regenerative+{ADAMW}", micro_batches=2)
    wanted, _ = trained(run, tmp_path / "one")
    found = with_processes(2, tmp_path / "two", run)
    assert (found / "metrics.csv").read_text() == wanted
    result = json.loads((tmp_path / "two" / "results" / "runs" / f"{run.run_id}.json").read_text())
    assert result["environment"]["data"] == topics.load(300).about
    assert result["cost"]["extra_forward_passes"] == 0


class Pair:
    """Two processes, as one of them sees them."""

    rank, size = 0, 2

    def share(self, pieces):
        return pieces[:: self.size]

    def summed(self, *tensors):
        return tensors[-1]

    def any(self, flag):
        return flag


def test_a_run_that_goes_on_with_another_number_of_processes_counts_what_it_looked_at(tmp_path):
    _, ended = trained(run_of(micro_batches=2), tmp_path, stops=(4,), ranks=Pair())
    assert ended["cost"]["extra_forward_passes"] == 0


def test_a_run_does_not_go_on_with_other_data_than_it_began_with(tmp_path, monkeypatch):
    said = iter(("a text", "another"))
    monkeypatch.setattr(Language, "identity", lambda self, data: {"train": next(said)})
    with pytest.raises(
        ValueError, match="began on other data: bring them back, or delete the checkpoint .*/checkpoint"
    ):
        trained(run_of(), tmp_path, stops=(4,))


def test_who_finds_a_run_held_by_another_process_says_so(tmp_path, monkeypatch, capsys):
    run = run_of()
    job = jobs.Job(json.loads(lines_of(run).splitlines()[1]), store=tmp_path, results=tmp_path / "results")
    monkeypatch.setattr(together, "attempt", lambda *a, **k: jobs.HELD)
    control = types.SimpleNamespace(ranks=types.SimpleNamespace(told=lambda word: word))
    assert together.lead([job], suite=None, data_dir=None, device="cpu", control=control) == 1
    assert f"another process holds {run.run_id}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stack", "micro_batches", "complaint"),
    [
        (ADAMW, 1, "2 processes cannot share the 1 micro-batches"),
        ("redo", 2, "processes that train together have different ones"),
    ],
)
def test_what_processes_cannot_share_is_refused(stack, micro_batches, complaint, tmp_path):
    folder = RunFolder(tmp_path, run_of(stack, micro_batches=micro_batches))
    folder.open()
    with pytest.raises(ValueError, match=complaint):
        train(folder.run, folder, data_dir=None, device="cpu", control=Control(ranks=Pair()))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dataset": "topic"}, "Did you mean 'topics'"),
        ({"vocabulary": 256}, "vocabulary >= 257"),
        ({"length": 0}, "length >= 1; found 0"),
        ({"micro_batches": 3}, "micro_batches to divide batch_size=8; found 3"),
        ({"train_tokens": 0}, "train_tokens >= 1; found 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(TASK, **changes)


def test_another_tokenizer_and_a_text_that_is_too_short_are_refused():
    with pytest.raises(
        ValueError, match="another one: wanted sha256 abc, found [0-9a-f]{64}. .*the Python of the wanted"
    ):
        dataclasses.replace(TASK, tokenizer="abc").load(None, "cpu")
    with pytest.raises(ValueError, match="tokens to train on; topics has .*Ask for fewer train_tokens"):
        dataclasses.replace(TASK, train_tokens=100_000_000).load(None, "cpu")
    right = topics.load(300).about["tokenizer"]
    assert len(dataclasses.replace(TASK, tokenizer=right, train_tokens=500).load(None, "cpu").train) == 500


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, monkeypatch):
    from unit.test_tokens import TRAIN, VALIDATION, shard

    from nap_bench.data import c4

    monkeypatch.setattr(c4, "VOCABULARY", 300)
    shard(tmp_path / "c4" / "c4-train.00000-of-01024.json.gz", TRAIN)
    shard(tmp_path / "c4" / "c4-validation.00000-of-00008.json.gz", VALIDATION)
    c4.download(tmp_path, say=lambda line: None)
    task = dataclasses.replace(TASK, dataset="c4")
    with pytest.raises(ValueError, match="wants a vocabulary of 290 tokens; c4 is packed with 300, .*vocabulary=300"):
        dataclasses.replace(task, vocabulary=290).load(tmp_path, "cpu")
    with pytest.raises(ValueError, match="sha256 abc, .*Put the wanted one into DATA_DIR/c4/tokenizer.json"):
        dataclasses.replace(task, tokenizer="abc").load(tmp_path, "cpu")
    loaded = task.load(tmp_path, "cpu")
    assert list(loaded.rows) == ["c4"] and task.download == "c4" and task.resources == "lm"
    inputs, y_SBT = task.batch(loaded, (0,), 0)
    assert inputs.shape == (1, 8, 12) and y_SBT.max() < 300


def test_every_supervised_benchmark_has_one_micro_batch_unless_it_says_otherwise():
    others = [kind for kind in BENCHMARKS.values() if kind.loop == "supervised" and kind is not Language]
    assert {kind.micro_batches for kind in others} == {1}

"""The documentation, executed: what a page tells a reader to write, to change and to call works as it stands there."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from nap_bench import cli, plan, update
from nap_bench.benchmarks import BENCHMARKS, RandomLabels
from nap_bench.experiments import EXPERIMENTS, arms
from nap_bench.methods import METHODS, parse_stack, stack_of
from nap_bench.optimizers import Adam
from nap_bench.report import claims
from nap_bench.spec import ModelSpec, Part
from nap_bench.state import build

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES_OF_TASKS = ["adding-a-method", "adding-a-benchmark", "adding-an-exhibit"]
HEADINGS = ["What it does", "Hyperparameters", "Differences", "Composition", "Cost"]
CREATED = re.compile(r"(?:# |<!-- )((?:nap_bench|docs)/\S+\.(?:py|md))(?: -->)?\n")
"""First line of a block that is a file of its own."""


def blocks(path: Path, *languages: str) -> list[tuple[int, str]]:
    """(line, content) of the fenced blocks in these languages."""
    text = path.read_text()
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(2)].count("\n"), match[2]) for match in found if match[1] in languages]


def created(page: Path) -> dict[str, str]:
    """The files that a page tells its reader to make: path -> content."""
    whole = [content for _, content in blocks(page, "python", "markdown") if CREATED.match(content)]
    return {CREATED.match(content)[1]: content[CREATED.match(content).end() :] for content in whole}


def apply(diff: str, root: Path) -> None:
    """Make the edit that a page shows. `@@` stands between places; `...` at a line's end is the rest of that line."""
    head, _, body = diff.partition("\n")
    path = root / head.removeprefix("+++ ")
    text = path.read_text()
    for place in re.split(r"^@@\n", body, flags=re.MULTILINE):
        lines = place.splitlines()
        old = "\n" + "\n".join(line[1:] for line in lines if line[0] in " -").removesuffix("...")
        new = "\n" + "\n".join(line[1:] for line in lines if line[0] in " +").removesuffix("...")
        assert text.count(old) == 1, f"{path.name} has {text.count(old)} times what the page shows: {old}"
        text = text.replace(old, new)
    path.write_text(text)


def arms_planned(lines: list[dict], scale: str) -> list[str]:
    """The arms of the example exhibit at a scale."""
    return [arm for line in lines for arm, _ in line["uses"].get(scale, {}).get("projection_period", [])]


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Execute a page's Python blocks, in order, in one module and an empty folder; what they register is forgotten."""
    monkeypatch.chdir(tmp_path)
    kept = [(registry, dict(registry)) for registry in (METHODS, BENCHMARKS, EXPERIMENTS)]

    def execute(page: Path) -> ModuleType:
        module = ModuleType(page.stem.replace("-", "_"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for line, content in blocks(page, "python"):
            exec(compile("\n" * line + content, str(page), "exec", dont_inherit=True), module.__dict__)
        return module

    yield execute
    for registry, content in kept:
        registry.clear()
        registry.update(content)


def trained(stack: str, num_steps: int = 12):
    """A small state after some updates, over a task boundary."""
    half = -(-num_steps // 2)
    task = RandomLabels(dataset="digits", num_examples=60, num_tasks=2, steps_per_task=half, batch_size=16)
    methods = stack_of(parse_stack(stack))
    spec = methods.transform_model(ModelSpec(family="mlp", size=(("widths", (20, 12)),)))
    state = build(spec, Part.of(Adam()), (0, 1), task.shapes, "cpu")
    state.lr.fill_(0.01)
    methods.setup(state)
    data = task.load(None, "cpu")
    for step in range(num_steps):
        if step and task.task_at(step) != task.task_at(step - 1):
            update.task_boundary(state, methods, task.task_at(step))
        inputs, y_SB = task.batch(data, state.seeds, step)
        update.grad_step(state, [task.loss(update.forward(state, methods, inputs), y_SB)], methods)
        update.tail(state, methods)
    return state


def test_the_page_on_reinforcement_learning_trains_what_it_shows(follow):
    module = follow(DOCS / "reinforcement-learning.md")
    assert [seed["status"] for seed in module.ended["status"]] == ["complete"] * 4
    for path in re.findall(r"`(nap_bench/\S+\.py)`", (DOCS / "reinforcement-learning.md").read_text()):
        assert (ROOT / path).is_file(), path


def field_streams():
    """The supervised benchmarks of the field, at paper scale."""
    from nap_bench.experiments import field_comparison

    return [BENCHMARKS["random_labels"], *(benchmark for benchmark, *_ in field_comparison.streams("paper").values())]


def test_the_page_on_streams_trains_what_it_shows_and_names_every_stream(follow):
    module = follow(DOCS / "streams.md")
    assert [seed["status"] for seed in module.ended["status"]] == ["complete"] * 30
    text = (DOCS / "streams.md").read_text()
    rows = text.split("|---|---|---|\n", 1)[1].split("\n\n", 1)[0].splitlines()
    named = {re.search(r"`(\w+)", row.split("|")[3])[1] for row in rows}
    assert named <= set(BENCHMARKS) and {stream.name for stream in field_streams()} <= named


def test_the_page_for_tonight_shows_the_effect(follow, capsys):
    accuracy = follow(DOCS / "tonight.md").accuracy
    assert accuracy["baseline"][0] - accuracy["baseline"][1] > 0.2 > accuracy["nap"][0] - accuracy["nap"][1]
    assert capsys.readouterr().out.count("first five tasks") == 2


def test_the_page_for_reviewers_checks_published_verdicts_with_code_of_its_own(follow, monkeypatch, tmp_path, capsys):
    (tmp_path / "reports").symlink_to(ROOT / "reports")
    assert follow(DOCS / "reviewing.md").checked > 50
    assert "measurements of 20" in capsys.readouterr().out


def test_the_page_on_the_diffusion_policy_trains_what_it_shows(follow):
    module = follow(DOCS / "diffusion-policy.md")
    assert [seed["status"] for seed in module.ended["status"]] == ["complete"] * 3
    for path in re.findall(r"`(nap_bench/\S+\.py)`", (DOCS / "diffusion-policy.md").read_text()):
        assert (ROOT / path).is_file(), path


def test_the_page_on_methods_makes_a_method_that_works_alone_and_with_nap(follow):
    follow(DOCS / "adding-a-method.md")
    assert torch.equal(trained("clip_weights(limit=None)").flat, trained("baseline").flat)
    assert not torch.equal(trained("clip_weights(limit=1.1)").flat, trained("baseline").flat)
    clipped, free = trained("clip_weights(limit=1.1)"), trained("baseline")
    for name, start_S in clipped.slots["clip_weights"].items():
        largest_S, free_S = (state.params[name].flatten(1).abs().amax(dim=1) for state in (clipped, free))
        assert torch.all(largest_S <= 1.1 * start_S) and torch.all(free_S > 1.1 * start_S)
    both = trained("nap+clip_weights(limit=1.1)")
    for group in both.groups[:-1]:
        assert torch.allclose(both.group_norm(group), both.slots["nap"][group.name], rtol=1e-6)
    assert parse_stack("clip_weights+nap") == parse_stack("nap+clip_weights")


def test_the_page_on_benchmarks_makes_a_pure_stream_that_trains_a_seed_alone_as_in_a_block(follow):
    module = follow(DOCS / "adding-a-benchmark.md")
    task, data = module.task, module.data
    for step in (0, task.steps_per_task, task.num_steps - 1):
        first, again = task.batch(data, (3, 4), step), dataclasses.replace(task).batch(data, (3, 4), step)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    one, other = (task.shown(data.inputs[:1].unsqueeze(0), (0,), number) for number in (0, 1))
    assert not torch.equal(one, other) and torch.equal(one.abs(), other.abs())

    def of_seed_1(metrics: str) -> list[str]:
        return [line for line in metrics.splitlines() if line.split(",")[1] == "1"]

    assert of_seed_1(module.try_task(task, seeds=(1,))[1]) == of_seed_1(module.metrics) != []


def test_the_page_on_exhibits_goes_from_runs_to_verdicts_by_functions_and_by_commands(follow, tmp_path, monkeypatch):
    module = follow(DOCS / "adding-an-exhibit.md")
    assert {claim["verdict"] for claim in module.verdicts["claims"]} <= {"SUPPORTED", "CONTRADICTED", "INCONCLUSIVE"}
    assert all(m["n"] == 3 for claim in module.verdicts["claims"] for m in claim["measurements"])

    entries = {entry.arm: entry for entry in module.runs("laptop")}
    nap = next(entry.run for entry in arms.runs("laptop") if entry.arm == "nap")
    assert entries["every_step"].run.run_id == nap.run_id and len({e.run.run_id for e in entries.values()}) == 3

    monkeypatch.setitem(EXPERIMENTS, "projection_period", module)
    planned = [json.loads(line) for line in plan.make(ROOT).splitlines()[1:]]
    assert set(arms_planned(planned, "paper")) == set(arms_planned(planned, "laptop")) == set(module.ARMS)

    uses = {e.run.run_id: {"laptop": {"projection_period": [[e.arm, e.setting]]}} for e in module.entries}
    lines = [{"num_runs": 3}, *({**line, "uses": uses[line["run_id"]]} for line in module.lines)]
    Path("plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for command in ("score", "claims"):
        places = ["--plan", "plan.jsonl", "--results", "tried/results"]
        assert cli.main([command, *places, "--exhibit", "projection_period"]) == 0
    assert claims.read(Path("tried/results/laptop/claims/projection_period.json")) == module.verdicts


@pytest.mark.timeout(900)
def test_a_reader_who_follows_all_three_pages_to_the_letter_passes_the_conformance_tests(tmp_path):
    copy = tmp_path / "copy"
    for name in ("nap_bench", "tests", "config", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for page in PAGES_OF_TASKS:
        for path, content in created(DOCS / f"{page}.md").items():
            (copy / path).write_text(content)
        for _, diff in blocks(DOCS / f"{page}.md", "diff"):
            apply(diff, copy)
    new = ("clip_weights", "projection_period", "flipped_pixels-baseline", "flipped_pixels-nap")
    about_all = ("law_4_every", "law_11", "every_module")
    units = [f"tests/unit/test_{name}.py" for name in ("plan", "architecture", "docs")]
    words = ["tests/conformance", "tests/golden", *units, "--record-golden", "-p", "no:cacheprovider"]
    words += ["-k", " or ".join([*new, *about_all])]
    both = f"import pytest; from nap_bench.cli import main; raise SystemExit(main(['plan']) or pytest.main({words}))"
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    how = dict(cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run([sys.executable, "-c", both], check=False, **how)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20, done.stdout
    planned = plan.load(copy / "config" / "plan.jsonl", copy)
    assert sorted(arms_planned(planned, "laptop")) == ["every_100_steps", "every_step", "never"]
    recorded = json.loads((copy / "tests" / "golden" / "losses.json").read_text())
    assert any("clip_weights@1" in name and "flipped_pixels@1" in name for name in recorded)


PAGES = [*(DOCS / f"{name}.md" for name in PAGES_OF_TASKS), *sorted((DOCS / "methods").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_a_page_exists_with_its_options(page, capsys):
    new = {Path(path).stem for path in created(page)}
    known = {"experiments": {*EXPERIMENTS, *new}, "methods": {*METHODS, *new}}
    for _, content in blocks(page, "sh"):
        for words in filter(None, (shlex.split(line, comments=True) for line in content.splitlines())):
            program, *rest = words
            if program == "nap-bench":
                with contextlib.suppress(SystemExit):
                    parsed = cli._parser().parse_args(rest)
                    assert getattr(parsed, "exhibit", None) in {None, *known["experiments"]}, words
                    continue
                pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")
            elif program == "pytest":
                options = (ROOT / "tests" / "conftest.py").read_text()
                assert all((ROOT / word).exists() or f'"{word}"' in options for word in rest), words
            elif program == "snakemake":
                config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
                assert rest[0] == "--config", words
                for key, value in (word.split("=", 1) for word in rest[1:]):
                    assert key in config and (key not in known or set(yaml.safe_load(value)) <= known[key]), words
            else:
                pytest.fail(f"Unknown program in {page.name}: {shlex.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_and_link_that_a_page_names_exists(page):
    text = re.sub(r"^```\w*\n.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    new = set(created(page))
    named = re.findall(r"`((?:nap_bench|tests|config|docs)/[\w./-]*)`", text)
    for path in named:
        assert "NAME" in path or path in new or (ROOT / path).exists(), f"{page.name} names {path}"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def section(page: Path, heading: str) -> str:
    """The text under a heading of the second level."""
    return re.split(r"^## ", page.read_text().split(f"\n## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> dict[str, object]:
    """Name -> default of a table | `name` | `default` | source |; every row must say its source."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\|", text, re.MULTILINE)) - 2, f"not a table of name, default, source: {text}"
    return {name: ast.literal_eval(default) for name, default, _ in rows}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_with_its_hyperparameters_and_their_defaults(name):
    page = DOCS / "methods" / f"{name}.md"
    assert page.exists(), f"Method {name!r} has no page: write {page.relative_to(ROOT)}."
    assert page.read_text().startswith(f"# {name}\n")
    for heading in HEADINGS:
        assert f"\n## {heading}\n" in page.read_text(), f"{page.name} has no heading {heading!r}"
    assert table(section(page, "Hyperparameters")) == {f.name: f.default for f in dataclasses.fields(METHODS[name])}


@pytest.mark.parametrize("name", ["batch_norm", "group_norm", "layer_norm", "rms_norm"])
def test_what_a_page_says_of_the_model_is_what_the_model_says(name):
    defaults = {f.name: f.default for f in dataclasses.fields(ModelSpec)}
    said = table(section(DOCS / "methods" / f"{name}.md", "From the model"))
    assert said and said == {key: defaults[key] for key in said}


def test_every_page_of_a_method_is_of_a_method():
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == set(METHODS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("layer_norm+nap(norm='none')", "nap"),
        ("nap(project=False)", "layer_norm"),
        ("rms_norm+nap(norm='none')", "nap(norm='rms')"),
        ("batch_norm+nap(norm='none')", "nap(norm='batch')"),
        ("group_norm+nap(norm='none')", "nap(norm='group')"),
        ("group_norm(groups=1)", "layer_norm"),
    ],
)
def test_stacks_that_the_pages_call_equal_are_equal(one, other):
    assert torch.equal(trained(one).flat, trained(other).flat)


def test_weight_decay_under_nap_decays_the_final_layer_only():
    with_decay, without = trained("nap+weight_decay(coef=5.0)", 1), trained("nap", 1)
    for name in ("linears.0.weight", "linears.1.weight"):
        assert torch.allclose(with_decay.params[name], without.params[name], rtol=1e-5)
    decayed, free = (state.params["output.weight"] for state in (with_decay, without))
    assert torch.allclose(decayed, 0.95 * free, rtol=1e-5)  # lr 0.01 times 5

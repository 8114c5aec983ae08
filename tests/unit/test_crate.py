"""The crate of a finished suite: what it says is what is in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from faults import toy
from workflow import small

from nap_bench import cli, crate, plan

DIGEST = "b5ca44cb0ec1aef9c0a3e1c47fb9db3fe19950dfd37b8910f4b3250d099261da"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with two runs of `arms`, one of them made in an image, and all that follows from them."""
    folder = tmp_path_factory.mktemp("finished")
    small.write_plan(folder, toy.lines(2))
    assert toy.do(folder, toy.lines(2)) == 0
    first = folder / "results" / "runs" / f"{toy.lines()[0]['run_id']}.json"
    result = json.loads(first.read_text())
    result["environment"]["container"] = f"sha256:{DIGEST}"
    first.write_text(json.dumps(result))
    at = ["--plan", str(folder / "plan.jsonl"), "--results", str(folder / "results")]
    for step in ("score", "claims", "figure"):
        assert cli.main([step, *at, "--exhibit", "arms"]) == 0
    (folder / "reports" / "laptop").mkdir(parents=True)
    (folder / "reports" / "laptop" / "index.html").write_text("<p>a report</p>")
    return folder


def write(folder: Path, path: Path, **more) -> Path:
    lines = plan.load(folder / "plan.jsonl")
    at = dict(plan_path=folder / "plan.jsonl", results=folder / "results", reports=folder / "reports")
    return crate.write(path, lines, scale="laptop", agent="Ada Lovelace", **{**at, **more})


@pytest.fixture(scope="module")
def packed(finished, tmp_path_factory):
    return write(finished, tmp_path_factory.mktemp("crate") / "a.crate.zip")


@pytest.fixture(scope="module")
def graph(packed):
    with zipfile.ZipFile(packed) as archive:
        found = json.loads(archive.read(crate.METADATA))
    assert found["@context"] == crate.CONTEXT
    assert len({entity["@id"] for entity in found["@graph"]}) == len(found["@graph"])
    return {entity["@id"]: entity for entity in found["@graph"]}


def targets(value) -> list[str]:
    """Every {"@id": ...} below a value."""
    if isinstance(value, list):
        return [at for item in value for at in targets(item)]
    return [value["@id"]] if isinstance(value, dict) else []


def test_every_file_is_described_with_its_size_and_checksum_and_every_description_has_its_file(packed, graph):
    parts = targets(graph["./"]["hasPart"])
    with zipfile.ZipFile(packed) as archive:
        assert sorted(archive.namelist()) == sorted([crate.METADATA, *parts])
        for name in set(parts) - {"README.md"}:
            content = archive.read(name)
            assert graph[name]["sha256"] == hashlib.sha256(content).hexdigest()
            assert graph[name]["contentSize"] == str(len(content))
            assert "File" in graph[name]["@type"]


def test_the_run_says_what_who_when_from_what_and_what_came_of_it(finished, graph):
    run = graph[crate.RUN]
    assert run["@type"] == "CreateAction" and run["instrument"] == {"@id": "Snakefile"}
    assert graph[run["agent"]["@id"]] == {"@id": "#agent", "@type": "Person", "name": "Ada Lovelace"}
    assert {"config/plan.jsonl", "config/config.yaml", "config/tuned.json", "#scale-given"} <= set(
        targets(run["object"])
    )
    made = set(targets(run["result"]))
    assert {f"results/runs/{line['run_id']}.json" for line in toy.lines(2)} <= made
    assert {"results/laptop/scores/arms.csv", "results/laptop/claims/arms.json", "reports/laptop/index.html"} <= made
    assert run["startTime"] < run["endTime"] == graph["./"]["datePublished"]
    assert run["endTime"].endswith("+00:00")
    (image,) = targets(run["containerImage"])
    assert graph[image]["sha256"] == DIGEST and graph[image]["name"] == "nap-bench-cpu-b5ca44cb0ec1.sif"


def test_the_main_workflow_is_the_snakefile_at_the_commit_that_made_the_results(finished, graph):
    main = graph[graph["./"]["mainEntity"]["@id"]]
    assert set(main["@type"]) == {"File", "SoftwareSourceCode", "ComputationalWorkflow"}
    assert main["programmingLanguage"] == {"@id": crate.SNAKEMAKE} and main["@id"] == "Snakefile"
    results = [json.loads(path.read_text()) for path in finished.glob("results/runs/*")]
    assert main["version"] == crate._commit(results[0]["environment"])
    assert {graph[at]["name"] for at in targets(main["softwareRequirements"])} == {"python", "torch", "numpy"}
    for at in targets(main["input"]) + targets(main["output"]):
        assert graph[at]["@type"] == "FormalParameter"
        (example,) = targets(graph[at]["workExample"])
        assert targets(graph[example]["exampleOfWork"]) == [at]


def test_what_is_referred_to_is_there_or_on_the_web(graph):
    for entity in graph.values():
        for key, value in entity.items():
            for at in targets(value):
                assert at in graph or at.startswith("http"), f"{entity['@id']}.{key} refers to {at}"
    for profile in crate.PROFILES:
        assert graph[profile]["@type"] == "CreativeWork" and profile in targets(graph["./"]["conformsTo"])


def test_equal_files_give_equal_bytes(finished, packed, tmp_path):
    assert write(finished, tmp_path / "b.crate.zip").read_bytes() == packed.read_bytes()


def test_an_unfinished_suite_is_refused_with_what_is_missing(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    missing = toy.lines()[0]["run_id"]
    os.remove(copy / "results" / "runs" / f"{missing}.json")
    with pytest.raises(
        ValueError, match=f"wanted 2 results, 1 are missing from .* \\({missing}\\). Make them with: snakemake"
    ):
        write(copy, tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def test_the_command_writes_it_beside_the_report(finished, capsys):
    at = [f"--{what}={finished / what}" for what in ("results", "reports")]
    assert cli.main(["store", "crate", "--plan", str(finished / "plan.jsonl"), "--agent", "Ada Lovelace", *at]) == 0
    assert str(finished / "reports" / "laptop" / "nap_bench.crate.zip") in capsys.readouterr().out
    (finished / "reports" / "laptop" / "nap_bench.crate.zip").unlink()


def test_the_profiles_validator_finds_nothing_that_must_be_otherwise(packed, tmp_path):
    """`pip install roc-validator` into an environment of its own (it pins other versions), and put it on the PATH."""
    validator = shutil.which("rocrate-validator")
    if validator is None:
        pytest.skip("no rocrate-validator on the PATH")
    words = [
        validator,
        "--no-interactive",
        "--disable-color",
        "validate",
        "--verbose",
        "--profile-identifier",
        "workflow-run-crate-0.5",
    ]
    done = subprocess.run([*words, str(packed)], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=250)
    if "URLError" in done.stdout + done.stderr:
        pytest.skip("the validator reads the contexts of JSON-LD from the web, which is not there")
    assert done.returncode == 0, done.stdout + done.stderr

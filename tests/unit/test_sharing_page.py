"""The page on sharing results, followed to the letter."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from unit.test_docs import blocks
from unit.test_sharing import OTHER, RUN, everything, make, place

from nap_bench import cli, crate, plan, sharing

PAGE = Path(__file__).parents[2] / "docs" / "sharing-results.md"


def planned(path: Path, runs) -> None:
    lines = [
        {"run_id": run.run_id, "uses": {"paper": {"arms": [["baseline", ""]]}}, "run": plan.compact(run)}
        for run in runs
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"num_runs": len(lines)}, *lines]))


def commands() -> list[list[str]]:
    """The commands of the page, in order."""
    lines = [line for _, content in blocks(PAGE, "sh") for line in content.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_commands_of_the_page_do_what_it_says_of_them(tmp_path, monkeypatch, capsys):
    there, here, other = (tmp_path / name for name in ("cluster", "laptop", "laptop/other"))
    make(place(there))
    make(place(other), OTHER, value=0.3)
    for folder in (there, here):
        planned(folder / "config" / "plan.jsonl", [RUN])
    archive = tmp_path / "results.tar.gz"
    done = []
    for words in commands():
        if words[:2] != ["nap-bench", "store"] or words[2] == "crate":
            continue
        monkeypatch.chdir(there if words[2] == "export" else here)
        assert cli.main([str(archive) if word == archive.name else word for word in words[1:]]) == 0, (
            capsys.readouterr().err
        )
        done.append(words[2])
    assert done == ["export", "import", "import", "merge"]
    ours = everything(here)
    for name, content in everything(there).items():
        assert ours[name] == content
    assert {name.split("/")[1] for name in ours if name.startswith("store/") and name.count("/") == 2} == {
        RUN.run_id,
        OTHER.run_id,
    }
    assert (here / "theirs" / "store" / RUN.run_id / "done.json").exists()
    monkeypatch.chdir(there)
    assert cli.main(["store", "export", "results.tar", "--scale", "paper"]) == 0


def test_every_command_of_the_page_is_understood(capsys):
    for words in commands():
        if words[0] == "nap-bench":
            parsed = cli._parser().parse_args(words[1:])
            assert callable(parsed.command)
        else:
            assert words[0] == "snakemake" and words[1:2] in ([], ["--config"])


def test_the_page_names_the_files_of_an_archive_and_the_cases_of_an_import():
    text = PAGE.read_text()
    for name in sharing.FINISHED:
        assert f"`{name}`" in text or f"/{name}`" in text
    assert "`manifest.json`" in text
    assert "(profile 0.5)" in text and "https://w3id.org/ro/wfrun/workflow/0.5" in crate.PROFILES
    assert "`nap_bench.crate.write`" in text and callable(crate.write)

"""A cluster's results become a laptop's report: exported there, imported here, and nothing is trained again."""

from __future__ import annotations

import json
import subprocess

import pytest
import small

from nap_bench import cli

pytestmark = pytest.mark.timeout(300)


def shared(folder, *words):
    assert cli.main(["store", *words, "--store", str(folder / "store"), "--results", str(folder / "results")]) == 0


def test_imported_results_make_the_report_and_nothing_is_trained(tmp_path, capsys):
    planned = small.lines(num_tasks=1, steps_per_task=10)
    planned[0]["data"] = "mnist"  # as if it had needed a dataset, which is not here
    cluster, laptop = tmp_path / "cluster", tmp_path / "laptop"
    for folder in (cluster, laptop):
        folder.mkdir()
        small.write_plan(folder, planned)
    made = ["run", "--pack", "--plan", "plan.jsonl", *(line["run_id"] for line in planned)]
    words, settings = small.command(cluster)
    code = "import sys; from nap_bench.cli import main; sys.exit(main())"
    subprocess.run([words[0], "-c", code, *made], **settings, check=True, capture_output=True)
    shared(cluster, "export", str(tmp_path / "results.tar.gz"))
    shared(laptop, "import", str(tmp_path / "results.tar.gz"))
    assert f"Imported {len(planned)} finished runs. The report follows with: snakemake" in capsys.readouterr().out
    done = small.snakemake(laptop)
    assert done.returncode == 0 and "steps/s" not in done.stdout and "rule run_" not in done.stdout, done.stdout
    html = (laptop / "reports" / "laptop" / "index.html").read_text()
    assert all(line["run_id"] in html for line in planned)
    assert json.loads((laptop / "results" / "laptop" / "published.json").read_text())["runs"]
    assert small.fingerprint(laptop / "results" / "runs") == small.fingerprint(cluster / "results" / "runs")

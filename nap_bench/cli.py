"""nap-bench: every step of the suite as a command. The workflow calls these; so can you."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nap_bench import plan
from nap_bench.catalogue import KINDS
from nap_bench.spec import nearest

FOLLOW_SECONDS = 20.0
"""Between two looks of `publish --follow`; a line is printed at least every SILENT_SECONDS."""
SILENT_SECONDS = 40.0
PLAN = Path("config/plan.jsonl")
"""Of this folder, or else (as in an image) the repository's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 something failed (named), 2 bad input, 75 stopped with checkpoints written."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except (ValueError, OSError) as error:
        print(f"nap-bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nap-bench: stopped", file=sys.stderr)
        return 75


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nap-bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, summary: str, *options: str, of: Any = commands) -> argparse.ArgumentParser:
        made = of.add_parser(name, help=summary, description=summary)
        made.set_defaults(command=function)
        known: dict[str, dict[str, Any]] = {
            "--scale": dict(choices=plan.SCALES, default="laptop", help="which scale's runs (default: laptop)"),
            "--plan": dict(type=Path, default=PLAN if PLAN.exists() else plan.ROOT / PLAN, help="the plan file"),
            "--store": dict(type=Path, default=Path("store"), help="the run store"),
            "--results": dict(type=Path, default=Path("results"), help="where results are"),
            "--reports": dict(type=Path, default=Path("reports"), help="where reports go"),
            "--device": dict(default="cpu", help="cpu, cuda or cuda:N"),
            "--data-dir": dict(default="data", help="where downloaded datasets are"),
            "--tracking-uri": dict(default="sqlite:///mlflow.db", help="MLflow tracking URI"),
            "--images-dir": dict(default="containers/images", help="where images lie"),
            "--exhibit": dict(required=True, help="name of an exhibit"),
        }
        for option in options:
            made.add_argument(option, **known[option])
        return made

    everywhere = ("--scale", "--plan", "--results")
    summary = "write config/plan.jsonl from the experiments, or check that it is current; or a plan of your own"
    made = command("plan", _plan, summary, "--plan", "--scale")
    made.add_argument("--check", action="store_true", help="write nothing; exit 1 if the plan would change")
    made.add_argument("--estimate", action="store_true", help="say what a scale's runs will take, and write nothing")
    made.add_argument("--results", type=Path, default=Path("results"), help="of --estimate: what is done already")
    made.add_argument("--device", default="cpu", help="of --estimate: cpu or cuda")
    made.add_argument("--cores", type=int, help="of --estimate: runs at a time (default: the cores of this machine)")
    made.add_argument("--experiments", nargs="*", default=[], help="of --estimate: only these exhibits")
    own = made.add_argument_group("your own plan: an exhibit, and stacks of yours beside it")
    own.add_argument("--out", type=Path, help="file to write")
    own.add_argument("--exhibit", help="the exhibit to compare in")
    own.add_argument("--with", dest="stacks", action="append", metavar="STACK", help="what to add, e.g. l2(coef=0.1)")
    own.add_argument(
        "--to", dest="arms", action="append", metavar="ARM", help="arm of the exhibit to add it to (default: baseline)"
    )
    made = command(
        "run",
        _run,
        "train runs of the plan, going on from their checkpoints",
        *everywhere,
        "--store",
        "--device",
        "--data-dir",
    )
    made.add_argument("--checkpoint-seconds", type=float, default=30.0, help="seconds between checkpoints")
    made.add_argument(
        "--pack",
        action="store_true",
        help="several runs in worker processes; one that fails or hangs leaves the others",
    )
    made.add_argument("--slots", type=int, default=1, help="of a pack: how many runs at a time (default: 1)")
    made.add_argument("--hang-minutes", type=float, default=60.0, help="of a pack: a run without progress is given up")
    made.add_argument("--suite", type=Path, help="file with the ids of the runs that progress counts (default: these)")
    made.add_argument("run_ids", nargs="+", metavar="RUN_ID", help="a run of the plan, or the path of its result")
    command(
        "tune",
        _tune,
        "choose hyperparameters on tuning seeds, write config/tuned.json",
        "--scale",
        "--store",
        "--results",
        "--device",
        "--data-dir",
    )
    command("score", _score, "results -> results/SCALE/scores/EXHIBIT.csv", *everywhere, "--exhibit")
    command("claims", _claims, "scores -> results/SCALE/claims/EXHIBIT.json", *everywhere, "--exhibit")
    command("figure", _figure, "scores -> results/SCALE/figures/EXHIBIT.svg and .png", *everywhere, "--exhibit")
    made = command("report", _report, "everything -> reports/SCALE/index.html", *everywhere, "--store", "--reports")
    made.add_argument(
        "--partial",
        action="store_true",
        help="from whatever results exist, to reports/SCALE/partial.html; scores, claims and figures are not kept",
    )
    made.add_argument("--experiments", nargs="*", default=[], help="only these exhibits")
    made = command(
        "publish",
        _publish,
        "runs, claims and figures -> MLflow; publishing twice adds nothing",
        *everywhere,
        "--store",
        "--reports",
        "--tracking-uri",
    )
    made.add_argument("--experiments", nargs="*", default=[], help="only these exhibits")
    made.add_argument("--done", type=Path, help="write this file once all is published")
    made.add_argument(
        "--follow",
        action="store_true",
        help="keep MLflow up to date while the suite runs: publish what is new every 20 s until every run is done",
    )
    made = command("dashboard", _dashboard, "MLflow's pages on a free loopback port", "--tracking-uri")
    made.add_argument("--port", type=int, default=None, help="a port of your choice")
    made = command("data", _data, "verify a dataset in the data folder, or download it", "--data-dir")
    made.add_argument("dataset")
    made.add_argument("--done", type=Path, help="write this file once the dataset is verified")
    _store_commands(command, commands)
    looked_at = ("--plan", "--store", "--data-dir", "--tracking-uri", "--images-dir")
    command("doctor", _doctor, "what will work on this machine, and what to do about the rest", *looked_at)
    made = command("list", _list, "what there is, a few lines each", "--plan")
    made.add_argument("kind", metavar="|".join(KINDS))
    made.add_argument(
        "--markdown",
        nargs="?",
        const="",
        metavar="FILE",
        help="of methods: print a table, or renew the one between FILE's markers",
    )
    looked_at = ("--plan", "--store", "--results")
    made = command(
        "status", _status, "what is done, running, failed and missing, and what to do next", "--scale", *looked_at
    )
    made.add_argument("--experiments", nargs="*", default=[], help="only these exhibits")
    made.add_argument("--why", metavar="RUN_ID", help="why this run would run again, or would not")
    summary = "renew config/speeds.json, which estimates rest on, from finished runs"
    made = command("speeds", _speeds, summary, *looked_at, "--device", "--data-dir")
    made.add_argument(
        "--try", dest="seconds", type=float, default=0.0, metavar="SECONDS", help="try other kinds so long"
    )
    made = command("show", _show, "one method, benchmark or exhibit; or a run's spec, state and command", *looked_at)
    made.add_argument("--scale", choices=plan.SCALES, help="the scale of a run's command (default: its first)")
    made.add_argument("name", metavar="NAME_OR_RUN_ID")
    return parser


def _store_commands(command, commands) -> None:
    """nap-bench store export | import | merge | crate."""
    summary = "share results: into an archive and from one, from another store, or as a crate for archives"
    of = commands.add_parser("store", help=summary, description=summary).add_subparsers(required=True, metavar="WHAT")
    here = ("--store", "--results")
    checkpoints = dict(action="store_true", help="unfinished runs too, with what it takes to go on elsewhere")
    made = command("export", _export, "runs of the store, with their results, into one archive", *here, "--plan", of=of)
    made.add_argument("archive", type=Path, metavar="ARCHIVE", help="file to write, e.g. results.tar.gz")
    made.add_argument("run_ids", nargs="*", metavar="RUN_ID", help="only these (default: all that is there)")
    made.add_argument("--scale", choices=plan.SCALES, help="only the plan's runs of this scale")
    made.add_argument("--checkpoints", **checkpoints)
    made = command("import", _import, "the runs of an archive, all or none; conflicts are refused", *here, of=of)
    made.add_argument("archive", type=Path, metavar="ARCHIVE")
    made = command("merge", _merge, "the runs of another store, all or none; conflicts are refused", *here, of=of)
    made.add_argument("--from-store", type=Path, required=True, help="the other run store")
    made.add_argument("--from-results", type=Path, required=True, help="its results")
    made.add_argument("--checkpoints", **checkpoints)
    summary = "a finished suite as a Workflow Run RO-Crate: one file for Zenodo or WorkflowHub"
    made = command("crate", _crate, summary, "--scale", "--plan", "--results", "--reports", of=of)
    made.add_argument("--out", type=Path, help="file to write (default: REPORTS/SCALE/nap_bench.crate.zip)")
    made.add_argument("--agent", metavar="NAME", help="who ran it (default: the name that git knows)")


def _experiment(name: str):
    from nap_bench.experiments import EXPERIMENTS

    if name not in EXPERIMENTS:
        raise ValueError(nearest(name, EXPERIMENTS, "exhibit"))
    return EXPERIMENTS[name]


def _places(lines: list[dict], scale: str, exhibit: str) -> list[tuple[str, str, str]]:
    """(arm, setting, run_id) of an exhibit's runs at a scale, in the plan's order."""
    return [
        (arm, setting, line["run_id"])
        for line in lines
        for arm, setting in line["uses"].get(scale, {}).get(exhibit, [])
    ]


def _found(results: Path, run_ids: Sequence[str]) -> dict[str, dict]:
    """The results that exist, by run id."""
    from nap_bench.store import check_protocol, read_result, result_path

    check_protocol(results)
    paths = {run_id: result_path(results, run_id) for run_id in dict.fromkeys(run_ids)}
    return {run_id: read_result(path) for run_id, path in paths.items() if path.exists()}


def _folder(arguments: argparse.Namespace) -> Path:
    """Where scores, claims and figures are."""
    return getattr(arguments, "folder", arguments.results / arguments.scale)


def _plan(arguments: argparse.Namespace) -> int:
    from nap_bench.store import write_whole

    if arguments.estimate:
        return _estimate(arguments)
    if arguments.out or arguments.exhibit or arguments.stacks or arguments.arms:
        return _own_plan(arguments)
    text = plan.make()
    if arguments.plan.exists() and arguments.plan.read_text() == text:
        print(f"{arguments.plan} is current: {text.count(chr(10)) - 1} runs.")
        return 0
    if arguments.check:
        print(f"{arguments.plan} would change. Renew it with: nap-bench plan", file=sys.stderr)
        return 1
    write_whole(arguments.plan, text)
    print(f"{arguments.plan}: {text.count(chr(10)) - 1} runs.")
    return 0


def _estimate(arguments: argparse.Namespace) -> int:
    import os

    from nap_bench import estimate
    from nap_bench.jobs import results_in

    lines = plan.select(plan.load(arguments.plan), arguments.scale, arguments.experiments)
    for line in estimate.table(
        lines,
        results_in(arguments.results),
        scale=arguments.scale,
        device=arguments.device,
        num_workers=arguments.cores or len(os.sched_getaffinity(0)),
    ):
        print(line)
    return 0


def _own_plan(arguments: argparse.Namespace) -> int:
    from nap_bench.store import write_whole

    if not (arguments.out and arguments.exhibit and arguments.stacks) or arguments.check:
        raise ValueError(
            "A plan of your own wants --out FILE, --exhibit NAME and at least one --with STACK, and no --check."
        )
    if arguments.out.resolve() == arguments.plan.resolve():
        raise ValueError(f"{arguments.out} is the suite's plan: choose another file for your own.")
    stacks, arms = (list(dict.fromkeys(words)) for words in (arguments.stacks, arguments.arms or ["baseline"]))
    text = plan.extend(plan.load(arguments.plan), arguments.scale, arguments.exhibit, stacks, arms)
    write_whole(arguments.out, text)
    added = sorted(plan.added(plan.load(arguments.out)))
    folder = arguments.out.with_suffix("")
    scale = "" if arguments.scale == "laptop" else f" scale={arguments.scale}"
    print(f"{arguments.out}: {text.count(chr(10)) - 1} runs of {arguments.exhibit}; added arms: {', '.join(added)}.")
    print(
        f"Compare: snakemake --config plan={arguments.out}{scale} results_dir={folder}/results reports_dir={folder}/reports"
    )
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from nap_bench import pack
    from nap_bench.jobs import Job, Suite, do
    from nap_bench.store import check_protocol

    if len(arguments.run_ids) > 1 and not arguments.pack:
        raise ValueError(f"{len(arguments.run_ids)} runs in one job: say so with --pack.")
    check_protocol(arguments.results)
    lines = {line["run_id"]: line for line in plan.load(arguments.plan)}
    run_ids = [Path(name).stem if name.endswith(".json") else name for name in arguments.run_ids]
    for run_id in run_ids:
        if run_id not in lines:
            raise ValueError(
                nearest(run_id, lines, "run").split(" Known:")[0] + f" {len(lines)} runs are in {arguments.plan}."
            )
    told = arguments.suite and arguments.suite.exists()
    counted = set(json.loads(arguments.suite.read_text()) if told else run_ids)
    at = dict(store=arguments.store, results=arguments.results)
    suite = Suite([line for line in lines.values() if line["run_id"] in counted], arguments.scale, **at)
    how = dict(
        data_dir=arguments.data_dir,
        device=arguments.device,
        suite=suite,
        checkpoint_seconds=arguments.checkpoint_seconds,
    )
    jobs = [Job(lines[run_id], **at) for run_id in run_ids]
    if arguments.pack:
        return pack.do(jobs, slots=arguments.slots, hang_seconds=60 * arguments.hang_minutes, **how)
    return do(jobs, **how)


def _tune(arguments: argparse.Namespace) -> int:
    from nap_bench import tune

    section = tune.tune(
        arguments.scale,
        store=arguments.store,
        results=arguments.results,
        data_dir=arguments.data_dir,
        device=arguments.device,
    )
    tune.write(arguments.scale, section)
    print(f"{tune.TUNED}: {arguments.scale} scale chosen. The plan follows from it: nap-bench plan")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from nap_bench.experiments.base import Labelled
    from nap_bench.report import scores

    places = _places(plan.load(arguments.plan), arguments.scale, arguments.exhibit)
    results = _found(arguments.results, [run_id for *_, run_id in places])
    labelled = [Labelled(arm, setting, results[run_id]) for arm, setting, run_id in places if run_id in results]
    rows = _experiment(arguments.exhibit).score(labelled)
    scores.write(_folder(arguments) / "scores" / f"{arguments.exhibit}.csv", rows)
    return 0


def planned_seeds(experiment, lines: list[dict], scale: str, exhibit: str) -> dict[tuple[str, str], list[int]]:
    """(arm, setting) of an exhibit's scores -> the seeds that the plan has for them.

    Scores stand where their run does, unless the exhibit's `cells(arm, setting, scale)` says otherwise: a chain of games is
    scored game by game, controls together.
    """
    cells = getattr(experiment, "cells", lambda arm, setting, scale: [(arm, setting)])
    seeds: dict[tuple[str, str], set[int]] = {}
    for line in lines:
        for arm, setting in line["uses"].get(scale, {}).get(exhibit, []):
            for cell in cells(arm, setting, scale):
                seeds.setdefault(cell, set()).update(line["run"]["seeds"])
    return {cell: sorted(found) for cell, found in seeds.items()}


def _claims(arguments: argparse.Namespace) -> int:
    from nap_bench.report import claims, scores

    folder, experiment = _folder(arguments), _experiment(arguments.exhibit)
    seeds = planned_seeds(experiment, plan.load(arguments.plan), arguments.scale, arguments.exhibit)
    verdicts = claims.judge(
        experiment.CLAIMS,
        scores.read(folder / "scores" / f"{arguments.exhibit}.csv"),
        exhibit=arguments.exhibit,
        scale=arguments.scale,
        expected_seeds=seeds,
    )
    claims.write(folder / "claims" / f"{arguments.exhibit}.json", verdicts)
    return 0


def _figure(arguments: argparse.Namespace) -> int:
    from nap_bench.report import figures, scores

    folder = _folder(arguments)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures.draw(
        arguments.exhibit,
        figures.at(_experiment(arguments.exhibit).PANELS, arguments.scale),
        scores.read(folder / "scores" / f"{arguments.exhibit}.csv"),
        folder / "figures" / f"{arguments.exhibit}.svg",
        folder / "figures" / f"{arguments.exhibit}.png",
        added=plan.added(plan.load(arguments.plan)),
        path_pdf=folder / "figures" / f"{arguments.exhibit}.pdf",
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    import tempfile

    from nap_bench.jobs import Job
    from nap_bench.report import page

    folder = arguments.reports / arguments.scale
    if not arguments.partial:
        html = _page(arguments, folder)
        (folder / "partial.html").unlink(missing_ok=True)
    else:
        lines = plan.select(plan.load(arguments.plan), arguments.scale, arguments.experiments)
        for line in lines:  # a failed pack took its good members' results along; the store still has them
            job = Job(line, store=arguments.store, results=arguments.results)
            if not job.is_done():
                job.remake()
        with tempfile.TemporaryDirectory() as scratch:
            arguments.folder = Path(scratch)
            for name in plan.exhibits(plan.load(arguments.plan), arguments.scale, arguments.experiments):
                arguments.exhibit = name
                for make in (_score, _claims, _figure):
                    make(arguments)
            html = _page(arguments)
    path = folder / ("partial.html" if arguments.partial else "index.html")
    page.write_page(path, html)
    print(f"Report: {path.resolve()}")
    return 0


def _page(arguments: argparse.Namespace, beside: Path | None = None) -> str:
    """The page's text, from scores, claims and figures as they are.

    beside: the folder of the page, where the files that it offers are written; it offers none without.
    """
    from nap_bench.experiments import EXPERIMENTS
    from nap_bench.experiments.base import tuned_section
    from nap_bench.jobs import failures
    from nap_bench.report import claims, files, page, scores

    lines, folder = plan.load(arguments.plan), _folder(arguments)
    exhibits = plan.exhibits(lines, arguments.scale, arguments.experiments)
    modules = {name: _experiment(name) for name in exhibits}
    run_ids = [run_id for ids in exhibits.values() for run_id in ids]
    results = _found(arguments.results, run_ids)

    def existing(kind: str, suffix: str, read) -> dict[str, Any]:
        paths = {name: folder / kind / f"{name}.{suffix}" for name in exhibits}
        return {name: read(path) for name, path in paths.items() if path.exists()}

    table = existing("scores", "csv", scores.read)
    figures = existing("figures", "svg", lambda path: path.read_text())
    report = page.collect(
        arguments.scale,
        modules,
        existing("claims", "json", claims.read),
        table,
        list(results.values()),
        {name: _places(lines, arguments.scale, name) for name in exhibits},
        failures([line for line in lines if line["run_id"] in set(run_ids) - set(results)], arguments.store),
        tuned_section(arguments.scale),
        plan.added(lines),
        EXPERIMENTS,
        {name: [scale for scale in plan.SCALES if name in plan.exhibits(lines, scale)] for name in EXPERIMENTS},
    )
    if beside is None:
        return page.render(report, figures)
    files.write(beside, report, table, folder / "figures")
    return page.render(report, figures, files.listed(figures, beside))


def _publish(arguments: argparse.Namespace) -> int:
    from nap_bench.store import as_json, write_whole
    from nap_bench.tracking import TrackerError

    lines = plan.load(arguments.plan)
    exhibits = plan.exhibits(lines, arguments.scale, arguments.experiments)
    try:
        if not arguments.follow:
            _publish_exhibits(arguments, lines, exhibits)
        elif not _follow(arguments, lines, exhibits):
            return 0
    except TrackerError as error:
        print(f"nap-bench publish: {error}", file=sys.stderr)
        return 1
    if arguments.done:
        found = _found(arguments.results, [run_id for run_ids in exhibits.values() for run_id in run_ids])
        write_whole(arguments.done, as_json({"runs": sorted(found)}))
    return 0


def _exhibit_files(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """What is published about an exhibit besides its runs, as far as it exists."""
    folder = arguments.results / arguments.scale
    return {
        "claims": folder / "claims" / f"{name}.json",
        "scores": folder / "scores" / f"{name}.csv",
        "figures": tuple(folder / "figures" / f"{name}.{suffix}" for suffix in ("svg", "png")),
    }


def _publish_exhibits(arguments: argparse.Namespace, lines: list[dict], exhibits: dict[str, list[str]]) -> None:
    from nap_bench.jobs import failures
    from nap_bench.tracking.publish import Exhibit, publish

    uses: dict[str, list[tuple[str, str, str]]] = {}
    for name in exhibits:
        for arm, setting, run_id in _places(lines, arguments.scale, name):
            uses.setdefault(run_id, []).append((name, arm, setting))
    results = _found(arguments.results, list(uses))
    described = {
        name: Exhibit(title=_experiment(name).TITLE, paper=_experiment(name).PAPER, **_exhibit_files(arguments, name))
        for name in exhibits
    }
    summary = publish(
        [(result, uses[run_id]) for run_id, result in results.items()],
        described,
        scale=arguments.scale,
        report=arguments.reports / arguments.scale / "index.html",
        failures=[
            (failure, uses[failure["run_id"]])
            for failure in failures(
                [line for line in lines if line["run_id"] in uses.keys() - results.keys()], arguments.store
            )
        ],
        tracking_uri=arguments.tracking_uri,
    )
    print(f"Published: {summary}", file=sys.stderr)


def _follow(arguments: argparse.Namespace, lines: list[dict], exhibits: dict[str, list[str]]) -> bool:
    """Publish exhibits of which something is new, until every run is done (True) or Ctrl-C (False).

    Each round takes the tracker's lock for itself, so the workflow's own publish has its turn. Until scores exist runs
    are published without them; the publish that finds scores supersedes those runs. A tracker that fails in the first
    round is an error, later it is tried again.
    """
    import time

    from nap_bench.store import result_path
    from nap_bench.tracking import TrackerError

    def stamps(name: str) -> dict[Path, tuple[int, int]]:
        files = _exhibit_files(arguments, name)
        paths = [result_path(arguments.results, run_id) for run_id in exhibits[name]]
        paths += [files["claims"], files["scores"], *files["figures"]]
        paths.append(arguments.reports / arguments.scale / "index.html")
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.exists()}

    planned = {run_id for run_ids in exhibits.values() for run_id in run_ids}
    published: dict[str, dict] = {}
    spoken, worked = time.monotonic(), False
    try:
        while True:
            done = {run_id for run_id in planned if result_path(arguments.results, run_id).exists()}
            found = {name: stamps(name) for name, run_ids in exhibits.items() if done & set(run_ids)}
            new = {name: exhibits[name] for name in found if found[name] != published.get(name)}
            failed = ""
            if new:
                try:
                    _publish_exhibits(arguments, lines, new)
                    published |= {name: found[name] for name in new}
                    worked = True
                except TrackerError as error:
                    if not worked:
                        raise
                    failed = f"{error} Trying again in {FOLLOW_SECONDS:.0f} s. "
            if new or time.monotonic() - spoken >= SILENT_SECONDS:
                spoken = time.monotonic()
                print(f"publish: {failed}{len(done)} of {len(planned)} runs are done", file=sys.stderr, flush=True)
            if done == planned and not failed:
                return True
            time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        print("publish: stopped following; `nap-bench publish` completes what is missing", file=sys.stderr)
        return False


def _dashboard(arguments: argparse.Namespace) -> int:
    from nap_bench.tracking.dashboard import serve

    return serve(arguments.tracking_uri, arguments.port)


def _data(arguments: argparse.Namespace) -> int:
    import importlib

    from nap_bench.benchmarks.base import DATASETS
    from nap_bench.store import as_json, write_whole

    downloaded = [name for name, dataset in DATASETS.items() if dataset.downloaded]
    if arguments.dataset not in downloaded:
        raise ValueError(nearest(arguments.dataset, downloaded, "dataset to download"))
    files = importlib.import_module(f"nap_bench.data.{arguments.dataset}").download(arguments.data_dir)
    if arguments.done:
        write_whole(arguments.done, as_json({"dataset": arguments.dataset, "files": sorted(files)}))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from nap_bench import sharing

    run_ids = arguments.run_ids
    if arguments.scale:
        if run_ids:
            raise ValueError("Give ids of runs or --scale, not both.")
        place = sharing.Place(arguments.store, arguments.results)
        planned = plan.select(plan.load(arguments.plan), arguments.scale)
        run_ids = sharing.present([line["run_id"] for line in planned], place)
    account = sharing.export(
        arguments.archive, run_ids, sharing.Place(arguments.store, arguments.results), checkpoints=arguments.checkpoints
    )
    print(f"{arguments.archive}: {account} ({arguments.archive.stat().st_size / 1e6:.1f} MB).{account.left()}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from nap_bench import sharing

    account = sharing.import_(arguments.archive, sharing.Place(arguments.store, arguments.results))
    print(f"Imported {account}.{account.left()} The report follows with: snakemake")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from nap_bench import sharing

    other = sharing.Place(arguments.from_store, arguments.from_results)
    place = sharing.Place(arguments.store, arguments.results)
    account = sharing.merge(other, place, checkpoints=arguments.checkpoints)
    print(f"Merged {account}.{account.left()} The report follows with: snakemake")
    return 0


def _crate(arguments: argparse.Namespace) -> int:
    from nap_bench import crate

    path = crate.write(
        arguments.out or arguments.reports / arguments.scale / "nap_bench.crate.zip",
        plan.select(plan.load(arguments.plan), arguments.scale),
        scale=arguments.scale,
        plan_path=arguments.plan,
        results=arguments.results,
        reports=arguments.reports,
        agent=arguments.agent or crate.agent_of_git(),
    )
    print(f"Crate: {path.resolve()} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from nap_bench.doctor import examine

    return examine(
        plan_path=arguments.plan,
        store=arguments.store,
        data_dir=arguments.data_dir,
        tracking_uri=arguments.tracking_uri,
        images_dir=arguments.images_dir,
        say=lambda line: print(line, flush=True),
    )


def _list(arguments: argparse.Namespace) -> int:
    from nap_bench.catalogue import listed, methods_table, with_methods
    from nap_bench.store import write_whole

    if arguments.markdown is not None:
        if arguments.kind != "methods":
            raise ValueError(f"Methods alone have a table in Markdown; found {arguments.kind!r}.")
        if arguments.markdown:
            page = Path(arguments.markdown)
            write_whole(page, with_methods(page.read_text()))
        else:
            print(methods_table(), end="")
        return 0
    for line in listed(arguments.kind, arguments.plan):
        print(line)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from nap_bench import status

    lines = plan.load(arguments.plan)
    places = dict(plan_path=arguments.plan, store=arguments.store, results=arguments.results)
    if arguments.why:
        said = status.why(arguments.why, lines, **places)
    else:
        said = status.told(lines, arguments.scale, arguments.experiments, **places)
    for line in said:
        print(line)
    return 0


def _speeds(arguments: argparse.Namespace) -> int:
    from nap_bench import estimate, speeds

    lines = [line for line in plan.load(arguments.plan) if set(line["uses"]) & set(plan.SCALES)]
    speeds.renew(
        estimate.SPEEDS,
        lines,
        store=arguments.store,
        results=arguments.results,
        seconds=arguments.seconds,
        data_dir=arguments.data_dir,
        device=arguments.device,
    )
    print(f"{estimate.SPEEDS} is renewed.")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from nap_bench.catalogue import shown

    places = dict(plan_path=arguments.plan, store=arguments.store, results=arguments.results)
    for line in shown(arguments.name, scale=arguments.scale, **places):
        print(line)
    return 0

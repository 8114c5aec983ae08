"""A finished suite as one file for archives: a Workflow Run RO-Crate (profile 0.5, RO-Crate 1.1), zipped. Imports no torch.

In it: the workflow, what it was given (plan, configuration, tuned hyperparameters, lock), what it made (a result per run, scores,
claims, figures, report), and ro-crate-metadata.json, which says of every file its SHA-256 and of the whole who made it from what,
when, with what and in which image. Equal files of equal age give equal bytes.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import json
import mimetypes
import shutil
import subprocess
import zipfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from nap_bench import plan
from nap_bench.apptainer import FLAVOURS, LOCK_FILE
from nap_bench.store import read_result, result_path, write_whole

METADATA = "ro-crate-metadata.json"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
BASE = "https://w3id.org/ro/crate/1.1"
WORKFLOW_CRATE = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    WORKFLOW_CRATE: ("Workflow RO-Crate", "1.0"),
}
WORKFLOW_PROFILE = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
PARAMETER_PROFILE = "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"
SNAKEMAKE = "https://w3id.org/workflowhub/workflow-ro-crate#snakemake"
LICENSE = "https://spdx.org/licenses/Apache-2.0"
TYPES = {
    "": "text/x-python",  # the Snakefile
    ".smk": "text/x-python",
    ".cff": "application/yaml",
    ".jsonl": "application/jsonlines",
    ".yaml": "application/yaml",
    ".md": "text/markdown",
}
RUN = "#run"
SHOWN = 3
"""Missing runs that are named."""

Entity = dict[str, Any]


def write(
    path: Path | str,
    lines: Sequence[dict[str, Any]],
    *,
    scale: str,
    plan_path: Path | str,
    results: Path | str,
    reports: Path | str,
    agent: str,
    root: Path = plan.ROOT,
) -> Path:
    """Write the crate of the runs that `lines` of the plan name, at a scale.

    agent: who ran it, a person's name.  root: the repository.  Raises ValueError if a run has no result.
    """
    path, results = Path(path), Path(results)
    found = {line["run_id"]: result_path(results, line["run_id"]) for line in lines}
    if missing := sorted(run_id for run_id, file in found.items() if not file.exists()):
        named = ", ".join(missing[:SHOWN]) + (" ..." if len(missing) > SHOWN else "")
        raise ValueError(
            f"A crate is of a finished suite: wanted {len(found)} results, {len(missing)} are missing from {results}/runs "
            f"({named}). Make them with: snakemake --config scale={scale}"
        )
    given, made = (
        _given(root, Path(plan_path)),
        _made(results, found, plan.exhibits(list(lines), scale), scale, Path(reports)),
    )
    graph = _graph({**given, **made}, given, [read_result(file) for file in found.values()], scale, agent, root)
    graph = [{key: _compact(value) for key, value in entity.items() if value != []} for entity in graph]
    metadata = json.dumps({"@context": CONTEXT, "@graph": graph}, indent=1, ensure_ascii=False) + "\n"
    readme = _readme(scale, len(found))

    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in ((METADATA, metadata), ("README.md", readme)):
                archive.writestr(_member(name), text)
            for name, source in {**given, **made}.items():
                with open(source, "rb") as content, archive.open(_member(name), "w") as packed:
                    shutil.copyfileobj(content, packed)

    write_whole(path, fill)
    return path


def agent_of_git() -> str:
    """The name that git signs with here, else the login name."""
    try:
        found = subprocess.run(
            ["git", "config", "user.name"], capture_output=True, text=True, check=False
        ).stdout.strip()
    except FileNotFoundError:
        found = ""
    return found or getpass.getuser()


def _given(root: Path, plan_path: Path) -> dict[str, Path]:
    """Name in the crate -> file: the workflow, and what it was given."""
    names = ["Snakefile", *sorted(f"workflows/{path.name}" for path in (root / "workflows").glob("*.smk"))]
    names += [
        "config/config.yaml",
        "config/schema.yaml",
        "config/tuned.json",
        "requirements/constraints.txt",
        "CITATION.cff",
    ]
    return {**{name: root / name for name in names}, "config/plan.jsonl": plan_path}


def _made(results: Path, found: dict[str, Path], exhibits: Iterable[str], scale: str, reports: Path) -> dict[str, Path]:
    """Name in the crate -> file: what the workflow made, as far as it is there."""
    files = {f"results/runs/{run_id}.json": file for run_id, file in sorted(found.items())}
    for exhibit in exhibits:
        for name in (f"scores/{exhibit}.csv", f"claims/{exhibit}.json", f"figures/{exhibit}.svg"):
            files[f"results/{scale}/{name}"] = results / scale / name
    files[_report(scale)] = reports / scale / "index.html"
    return {name: file for name, file in files.items() if file.exists()}


def _report(scale: str) -> str:
    return f"reports/{scale}/index.html"


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)  # dated 1980, whenever it is packed
    member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    return member


def _readme(scale: str, num_runs: int) -> str:
    return f"""# nap_bench, {scale} scale

{num_runs} runs of the suite, its scores, claims, figures and report, and the workflow that made them. `{METADATA}` describes
every file and the run (Workflow Run RO-Crate 0.5).

Made again, with nap_bench at the commit that `{METADATA}` names as the version of `Snakefile`:

```sh
snakemake --cores all --config scale={scale}
```
"""


def _graph(
    files: dict[str, Path], given: dict[str, Path], results: list[dict[str, Any]], scale: str, agent: str, root: Path
) -> list[Entity]:
    made = [name for name in files if name not in given]
    environments = [result["environment"] for result in results]
    ages = {name: files[name].stat().st_mtime for name in made}
    ended = max(ages.values())
    started = min(ages[f"results/runs/{r['run_id']}.json"] - r["cost"]["wall_seconds"] for r in results)
    images = _images(environments, root)
    scale_given = {"@id": "#scale-given", "@type": "PropertyValue", "name": "scale", "value": scale}
    inputs = [name for name in given if name.startswith(("config/", "requirements/"))]
    parameters = {"#scale": ("scale", "Text", "#scale-given"), "#plan": ("plan", "File", "config/plan.jsonl")}
    outputs = {"#report": ("report", "File", _report(scale))} if _report(scale) in made else {}
    run: Entity = {
        "@id": RUN,
        "@type": "CreateAction",
        "name": f"nap_bench at {scale} scale: {len(results)} runs",
        "description": f"snakemake --cores all --config scale={scale}. Times are those of the files that it made; what each run "
        f"cost and where it ran is in its result.",
        "instrument": _to("Snakefile"),
        "agent": _to("#agent"),
        "object": [*map(_to, inputs), _to("#scale-given")],
        "result": [_to(name) for name in made],
        "startTime": _time(started),
        "endTime": _time(ended),
        "actionStatus": "http://schema.org/CompletedActionStatus",
        "containerImage": [_to(image["@id"]) for image in images],
    }
    realised = {example: _to(at) for at, (_, _, example) in {**parameters, **outputs}.items()}
    return [
        {
            "@id": METADATA,
            "@type": "CreativeWork",
            "conformsTo": [_to(BASE), _to(WORKFLOW_CRATE)],
            "about": _to("./"),
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"nap_bench, {scale} scale",
            "description": f"{len(results)} runs that test the claims of Lyle et al., Normalization and effective learning rates "
            f"in reinforcement learning (NeurIPS 2024), with scores, claims, figures and report.",
            "datePublished": _time(ended),
            "license": _to(LICENSE),
            "author": _to("#agent"),
            "conformsTo": [_to(profile) for profile in PROFILES],
            "mainEntity": _to("Snakefile"),
            "mentions": _to(RUN),
            "hasPart": [_to(name) for name in ("README.md", *files)],
        },
        *({"@id": at, "@type": "CreativeWork", "name": n, "version": v} for at, (n, v) in PROFILES.items()),
        {"@id": LICENSE, "@type": "CreativeWork", "name": "Apache License 2.0"},
        {"@id": "#agent", "@type": "Person", "name": agent},
        {"@id": "README.md", "@type": "File", "name": "README", "about": _to("./"), "encodingFormat": "text/markdown"},
        {
            "@id": SNAKEMAKE,
            "@type": "ComputerLanguage",
            "name": "Snakemake",
            "version": importlib.metadata.version("snakemake"),
            "identifier": _to("https://doi.org/10.1093/bioinformatics/bts480"),
            "url": _to("https://snakemake.readthedocs.io"),
        },
        *_software(environments),
        run,
        *images,
        {**scale_given, "exampleOfWork": _to("#scale")},
        *(_parameter(at, *about) for at, about in {**parameters, **outputs}.items()),
        {
            **_file("Snakefile", files["Snakefile"]),
            "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
            "name": "nap_bench",
            "description": "From the plan to the report: runs, scores, claims, figures, report, tracker",
            "programmingLanguage": _to(SNAKEMAKE),
            "conformsTo": _to(WORKFLOW_PROFILE),
            "license": _to(LICENSE),
            "version": ", ".join(_distinct(environments, _commit)),
            "input": [_to(at) for at in parameters],
            "output": [_to(at) for at in outputs],
            "softwareRequirements": [_to(software["@id"]) for software in _software(environments)],
        },
        *(
            {**_file(name, file), **({"exampleOfWork": realised[name]} if name in realised else {})}
            for name, file in files.items()
            if name != "Snakefile"
        ),
    ]


def _compact(value: Any) -> Any:
    """A list of one as what is in it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _to(at: str) -> Entity:
    return {"@id": at}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _file(name: str, path: Path) -> Entity:
    kind = TYPES.get(path.suffix) or mimetypes.guess_type(name)[0]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"@id": name, "@type": "File", "name": name, "contentSize": str(path.stat().st_size), "sha256": digest}
    return {**about, **({"encodingFormat": kind} if kind else {})}


def _parameter(at: str, name: str, kind: str, example: str) -> Entity:
    about = {"@id": at, "@type": "FormalParameter", "name": name, "additionalType": kind, "workExample": _to(example)}
    return {**about, "conformsTo": _to(PARAMETER_PROFILE)}


def _commit(environment: dict[str, Any]) -> str:
    return f"{environment['commit'] or 'unknown'}{'+changes' if environment['dirty'] else ''}"


def _distinct(environments: list[dict[str, Any]], of: Any) -> list[str]:
    return sorted({of(environment) for environment in environments})


def _software(environments: list[dict[str, Any]]) -> list[Entity]:
    """Python and the packages that numbers depend on, in every version that a result was made with."""
    homes = {"python": "https://www.python.org/", "torch": "https://pytorch.org/", "numpy": "https://numpy.org/"}
    return [
        {
            "@id": f"{home}#{version}",
            "@type": "SoftwareApplication",
            "name": name,
            "url": _to(home),
            "softwareVersion": version,
        }
        for name, home in homes.items()
        for version in _distinct(environments, lambda environment, name=name: str(environment[name]))
    ]


def _images(environments: list[dict[str, Any]], root: Path) -> list[Entity]:
    """The container images that results were made in."""
    recorded = json.loads((root / LOCK_FILE).read_text()) if (root / LOCK_FILE).exists() else {}
    files = {recorded[flavour]["sha256"]: recorded[flavour]["file"] for flavour in FLAVOURS if flavour in recorded}
    digests = {str(e["container"]).removeprefix("sha256:") for e in environments if e["container"]}
    return [
        {
            "@id": f"#image-{digest[:12]}",
            "@type": "ContainerImage",
            "additionalType": _to("https://w3id.org/ro/terms/workflow-run#SIFImage"),
            "name": files.get(digest, f"nap-bench-{digest[:12]}.sif"),
            "sha256": digest,
        }
        for digest in sorted(digests)
    ]

# What every rule refers to. Four modules are loaded by path: neither torch nor the package is imported here.
import importlib.util
import os
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

ROOT = Path(workflow.basedir)


def load(name):
    found = importlib.util.spec_from_file_location(f"nap_bench_{name}", ROOT / "nap_bench" / f"{name}.py")
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    return loaded


plan, estimate, cluster, apptainer = map(load, ("plan", "estimate", "cluster", "apptainer"))
IMAGE, INSIDE = None, []  # the image that jobs run in, if any, and the command that runs another in it

try:
    plan.check_config(config, yaml.safe_load((ROOT / "config" / "schema.yaml").read_text()))
    SCALE, RESULTS = config["scale"], config["results_dir"]
    if not os.path.exists(config["plan"]) and (ROOT / config["plan"]).exists():  # started elsewhere, as in an image
        config["plan"] = str(ROOT / config["plan"])
    ALL_LINES = plan.load(config["plan"], ROOT)
    LINES = plan.select(ALL_LINES, SCALE, config["experiments"], config["methods"])
    KINDS, SLOTS = {line["resources"] for line in LINES}, config["pack_slots"]
    CLASSES = {kind: cluster.resources(kind, config["device"], SLOTS) for kind in KINDS}
    if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
        IMAGE = apptainer.recorded(ROOT, apptainer.flavour_of(config["device"]), config["images_dir"])
        INSIDE = apptainer.inside(IMAGE, workflow.deployment_settings.apptainer_args)
        os.environ.update(apptainer.told(IMAGE, ROOT))
except ValueError as error:
    raise WorkflowError(str(error)) from None

EXHIBITS = plan.exhibits(LINES, SCALE, config["experiments"])
PACKS = plan.packs([line for line in ALL_LINES if SCALE in line["uses"]], config["pack_size"], LINES)
DATASETS = {line["run_id"]: line["data"] for line in LINES if "data" in line}
AT = ["--scale", SCALE, "--plan", config["plan"], "--results", RESULTS]
STORE = ["--store", config["store_dir"]]
ONLY = ["--experiments", *config["experiments"]] if config["experiments"] else []
REPORT = f"{config['reports_dir']}/{SCALE}/index.html"
PUBLISHED = f"{RESULTS}/{SCALE}/published.json"
QUICK = next((name for name in ("fig1_dead_units", *EXHIBITS) if name in EXHIBITS), "nothing_selected")
QUICK_REPORT = f"{config['reports_dir']}/quick/{SCALE}/index.html"
FOLDERS = [ROOT, *(config[f"{kind}_dir"] for kind in ("store", "results", "reports"))]
FOLDERS += [config["data_dir"]] if DATASETS else []  # what jobs read and write
HELD = []
ASKED = f"{config['store_dir']}/.asked.json"  # the runs that this invocation wants, for progress to count


def result(run_id):
    return f"{RESULTS}/runs/{run_id}.json"


def of_exhibit(kind, suffix):
    return [f"{RESULTS}/{SCALE}/{kind}/{exhibit}.{suffix}" for exhibit in EXHIBITS]


container: str(IMAGE.path) if IMAGE else None


wildcard_constraints:
    exhibit="[a-z0-9_]+",
    dataset="[a-z0-9_]+",


localrules:
    all,
    quick,
    data,
    score,
    claims,
    figure,
    report,
    quick_report,
    publish,

# nap_bench: from the plan to the report. `snakemake` runs the laptop scale; `--config scale=paper` the paper's.
import sys

from snakemake.utils import min_version

min_version("9.14")


configfile: f"{workflow.basedir}/config/config.yaml"


include: "workflows/common.smk"
include: "workflows/data.smk"
include: "workflows/run.smk"
include: "workflows/analyse.smk"
include: "workflows/report.smk"
include: "workflows/publish.smk"


rule all:
    default_target: True
    input:
        REPORT,
        PUBLISHED,


rule quick:
    input:
        QUICK_REPORT,


onstart:
    try:
        HELD.append(plan.hold("store", config["store_dir"]))
        if demand := plan.demand(estimate.begin(workflow, config, LINES, Path(ASKED))):
            print(demand, file=sys.stderr)
        if IMAGE:
            apptainer.check(IMAGE, workflow.deployment_settings.apptainer_args, FOLDERS)
        cluster.prepare(workflow, config)
    except ValueError as error:
        raise WorkflowError(str(error)) from None


onerror:
    shell("{INSIDE:q} nap-bench report --partial {AT:q} {STORE:q} --reports {config[reports_dir]:q} {ONLY:q} >&2")

# Runs, a few to a job, pack_slots of them at a time. Outputs are only the small results; the store that makes them resumable is not
# Snakemake's.
# How they run (device, folders) is not among the params: changing it must not delete finished results.
# A job asked to stop is signalled as a whole: no shell stands between, and tee stays until the last line is written.
# --set-resources run_small:runtime=60 is for every rule of class small.
SET_RESOURCES = workflow.resource_settings.overwrite_resources or {}
for pack, members in PACKS.items():

    rule:
        name:
            f"run_{pack}"
        input:
            ancient(sorted({f"{RESULTS}/data/{DATASETS[m]}.json" for m in members if m in DATASETS})),
        output:
            [result(member) for member in members],
        log:
            f"logs/run/{pack}.log",
        threads: min(SLOTS, len(members))
        resources:
            **CLASSES[pack.partition(".")[0]],
        shell:
            "exec nap-bench run --pack --scale {config[scale]} --plan {config[plan]:q} --results {config[results_dir]:q}"
            " --store {config[store_dir]:q} --device {config[device]} --data-dir {config[data_dir]:q}"
            " --checkpoint-seconds {config[checkpoint_seconds]} --slots {config[pack_slots]} --suite {ASKED:q} {output:q}"
            " 2> >(trap '' TERM INT; exec tee -a {log:q} >&2)"

    workflow.get_rule(f"run_{pack}").resources.update(SET_RESOURCES.get(f"run_{pack.partition('.')[0]}", {}))

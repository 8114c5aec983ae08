# Runs, a few to a process. Outputs are only the small results; the store that makes them resumable is not Snakemake's.
# How they run (device, folders) is not among the params: changing it must not delete finished results.
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
        threads: 1
        shell:
            "nap-bench run --pack --scale {config[scale]} --plan {config[plan]:q} --results {config[results_dir]:q}"
            " --store {config[store_dir]:q} --device {config[device]} --data-dir {config[data_dir]:q}"
            " --checkpoint-seconds {config[checkpoint_seconds]} {output:q} 2> >(tee -a {log:q} >&2)"

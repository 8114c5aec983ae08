# Runs, a few to a process. Outputs are only the small results; the store that makes them resumable is not Snakemake's.
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
        params:
            ids=members,
            at=AT,
            how=[*STORE, "--device", config["device"], "--data-dir", config["data_dir"]],
            seconds=config["checkpoint_seconds"],
        shell:
            "nap-bench run --pack {params.at:q} {params.how:q} --checkpoint-seconds {params.seconds} {params.ids:q}"
            " 2> >(tee -a {log:q} >&2)"

# Datasets that have to be on disk: verified where they are, downloaded with checksums where they are not.
rule data:
    output:
        f"{RESULTS}/data/{{dataset}}.json",
    log:
        "logs/data/{dataset}.log",
    retries: 2
    shell:
        "nap-bench data {wildcards.dataset} --data-dir {config[data_dir]:q} --done {output:q} 2>&1 | tee {log:q} >&2"

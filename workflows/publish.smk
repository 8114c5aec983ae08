# Results to MLflow: one writer, and publishing twice adds nothing.
rule publish:
    input:
        of_exhibit("claims", "json"),
        of_exhibit("figures", "svg"),
        report=REPORT,
    output:
        PUBLISHED,
    log:
        f"logs/{SCALE}/publish.log",
    params:
        at=AT,
        how=[*STORE, "--reports", config["reports_dir"], "--tracking-uri", config["tracking_uri"], *ONLY],
    shell:
        "nap-bench publish {params.at:q} {params.how:q} --done {output:q} 2> >(tee {log:q} >&2)"

# Scores, claims and figures of an exhibit; from results alone, without torch.
rule score:
    input:
        lambda wildcards: [result(run_id) for run_id in EXHIBITS[wildcards.exhibit]],
    output:
        f"{RESULTS}/{SCALE}/scores/{{exhibit}}.csv",
    log:
        f"logs/{SCALE}/score/{{exhibit}}.log",
    params:
        at=AT,
    shell:
        "nap-bench score {params.at:q} --exhibit {wildcards.exhibit} 2> {log:q}"


rule claims:
    input:
        f"{RESULTS}/{SCALE}/scores/{{exhibit}}.csv",
    output:
        f"{RESULTS}/{SCALE}/claims/{{exhibit}}.json",
    log:
        f"logs/{SCALE}/claims/{{exhibit}}.log",
    params:
        at=AT,
    shell:
        "nap-bench claims {params.at:q} --exhibit {wildcards.exhibit} 2> {log:q}"


rule figure:
    input:
        f"{RESULTS}/{SCALE}/scores/{{exhibit}}.csv",
    output:
        report(
            f"{RESULTS}/{SCALE}/figures/{{exhibit}}.svg",
            caption="report/figure.rst",
            category="Figures",
            labels={"exhibit": "{exhibit}", "scale": SCALE},
        ),
        f"{RESULTS}/{SCALE}/figures/{{exhibit}}.png",
        f"{RESULTS}/{SCALE}/figures/{{exhibit}}.pdf",
    log:
        f"logs/{SCALE}/figure/{{exhibit}}.log",
    params:
        at=AT,
    shell:
        "nap-bench figure {params.at:q} --exhibit {wildcards.exhibit} 2> {log:q}"

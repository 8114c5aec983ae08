# One self-contained page per scale, with the same as Markdown and files of every table and figure beside it.
rule report:
    input:
        of_exhibit("scores", "csv"),
        of_exhibit("claims", "json"),
        of_exhibit("figures", "svg"),
    output:
        report(REPORT, caption="report/page.rst", category="Report", labels={"page": "Verdicts", "scale": SCALE}),
        f"{config['reports_dir']}/{SCALE}/comparison.md",
    log:
        f"logs/{SCALE}/report.log",
    params:
        at=AT,
        how=[*STORE, "--reports", config["reports_dir"], *ONLY],
    shell:
        "nap-bench report {params.at:q} {params.how:q} 2> {log:q}"


rule quick_report:
    input:
        f"{RESULTS}/{SCALE}/scores/{QUICK}.csv",
        f"{RESULTS}/{SCALE}/claims/{QUICK}.json",
        f"{RESULTS}/{SCALE}/figures/{QUICK}.svg",
    output:
        QUICK_REPORT,
    log:
        f"logs/{SCALE}/quick_report.log",
    params:
        at=AT,
        how=[*STORE, "--reports", f"{config['reports_dir']}/quick", "--experiments", QUICK],
    shell:
        "nap-bench report {params.at:q} {params.how:q} 2> {log:q}"

"""What every method costs: a step with it over a step of the baseline, alone and with NaP. 784-100-100-10 MLP, 8 seeds, one thread.

    python bench/methods.py [--device cuda] [--tiny]
    python bench/methods.py > docs/method-costs.txt && python bench/methods.py --pages

The second puts what was measured on the pages of the methods.

At their default settings, between task switches: what acts at a switch or every thousand updates is seldom in a block or never.
So those that reset units are measured once more as they are when they do: at a period of ten, and replacing units all the time.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import textwrap
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import goal, header, interleaved, ratios, spread
from seeds import stacked

from nap_bench.experiments.arms import entry
from nap_bench.methods import METHODS, parse_stack, stack_of

DRAWS = ("noisy_updates", "shrink_perturb", "upgd")
"""Methods that draw a number per parameter at every update: a higher goal."""
ACTING = ("redo(period=10)", "continual_backprop(rate=0.01)", "regrama(period=10)", "snr(start=1)")
"""Settings at which a block of updates holds resets."""
DOCS = Path(__file__).parents[1] / "docs"
TABLE = DOCS / "method-costs.txt"
"""What this program printed in one run, committed; the pages of the methods quote it."""
PARAGRAPH = re.compile(r"^Measured over the baseline's update.*\Z", re.MULTILINE | re.DOTALL)
ALONE = {"implicit_schedule": "nap+implicit_schedule"}
"""Methods that exist only in a stack."""


def stacks() -> dict[str, tuple[str, str | None]]:
    """Method -> (alone, with NaP; None where that cannot be). Beside another norm, NaP is its projection."""
    some_run = entry("laptop", "baseline", {}, seeds=(0,)).run
    found = {}
    for name in (*METHODS, *ACTING):
        alone = ALONE.get(name, name)
        beside = (f"{alone}+{nap}" for nap in ("nap", "nap(norm='none')"))
        found[name] = (alone, next((s for s in beside if stack_of(parse_stack(s)).why_not(some_run) is None), None))
    return found


def paragraph(name: str, text: str) -> str:
    """What the page of a method says of its cost: its rows of a printed table, on what they were measured, and n."""
    title, hardware, versions, load, n = text.splitlines()[:5]
    number = r"(\d+\.\d\d \[.*?\]|-)"
    rows = re.findall(rf"^({name}(?:\(.*?\))?) +{number} +{number}$", text, re.MULTILINE)
    found = []
    for row, alone, beside in rows:
        found.append(f"{alone}{'' if beside == '-' else f', with NaP {beside}'}")
        if row != name:
            found[-1] = f"as `{row}` {found[-1]}"
        elif name in ALONE:
            found[-1] = f"as `{ALONE[name]}` {found[-1]}"
    network = title.partition(": ")[2]
    hardware, versions, n = (line.partition(": ")[2] for line in (hardware, versions, n))
    said = (
        f"Measured over the baseline's update ({network}; {hardware}; {versions}; {load}; {n}; [table](../method-costs.txt)): "
        f"{'; '.join(found)}."
    )
    return textwrap.fill(said, 118, break_long_words=False, break_on_hyphens=False) + "\n"


def write_pages() -> None:
    text = TABLE.read_text()
    for name in METHODS:
        page = DOCS / "methods" / f"{name}.md"
        page.write_text(PARAGRAPH.sub(lambda _, name=name: paragraph(name, text), page.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pages", action="store_true", help="measure nothing; quote docs/method-costs.txt on the pages"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="seconds; numbers mean nothing")
    arguments = parser.parse_args()
    if arguments.pages:
        write_pages()
        return
    torch.set_num_threads(1)
    blocks, num_steps = (2, 1) if arguments.tiny else (15, 20)
    header(
        "Methods, at their defaults, over the baseline: 784-100-100-10 MLP, 8 seeds, batch 16, Adam",
        arguments.device,
        f"{blocks} interleaved blocks of {num_steps} updates; median [min, max] of the ratios of a round",
    )
    table = stacks()
    names = ["baseline", *dict.fromkeys(stack for pair in table.values() for stack in pair if stack)]
    subjects = {stack: stacked(stack, 8, 100, 16, num_steps, arguments.device) for stack in names}
    times = interleaved(subjects, blocks=blocks, device=arguments.device)
    each = [1e6 * s / num_steps for s in times["baseline"]]
    print(f"baseline, us a step: {spread(each).strip()}\n")
    print(f"{'method':30}{'over the baseline':>32}{'with NaP, over the baseline':>32}")
    for name, (alone, beside) in table.items():
        cells = [spread(ratios(times, stack, "baseline")) if stack else "-" for stack in (alone, beside)]
        print(f"{name:30}{cells[0]:>32}{cells[1]:>32}")
    print()
    for name, (alone, _) in table.items():
        limit = 3.0 if name in DRAWS else 1.5
        ratio = statistics.median(ratios(times, alone, "baseline"))
        goal(f"{alone} over the baseline", ratio, limit, at_most=True, unit="x", tiny=arguments.tiny)


if __name__ == "__main__":
    main()

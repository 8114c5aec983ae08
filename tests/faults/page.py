"""docs/reliability.md, from the tests that inject faults: what goes wrong, what happens then, and which test shows it.

Such a test is marked, wherever it stands: `@pytest.mark.fault("disk: full while a checkpoint is written", outcome="...")`. What
stands before the colon is the section. `pytest --record-faults` runs them all, and writes the page if none failed; rows of tests
that did not run keep what was recorded last.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
SECTIONS = {
    "killed": "Killed at any moment",
    "checkpoint": "Checkpoints that are no good",
    "disk": "A full disk, a read-only one",
    "download": "Downloads",
    "divergence": "Divergence",
    "memory": "Out of memory",
    "two": "Two at once",
    "clock": "Stale leases and clocks that jump",
    "configuration": "Bad configurations",
    "edited": "Edited in the middle of a campaign",
    "tracker": "The tracker",
    "slurm": "SLURM",
    "image": "Images",
    "paths": "Paths",
    "pack": "Packs",
    "sharing": "Shared results",
    "untrusted": "Files from others",
    "server": "Servers",
}
HEAD = """# Faults, and what becomes of them

Each row is a fault and the test that injects it. The page is made by `pytest --record-faults` from the results of these tests and
is not written if one fails; a test of the tests says whether it lists exactly those that there are. What could not be tried
where the page was made says why.

Three rules hold throughout. A result appears whole or not at all, and follows from its run's content alone. What was interrupted
goes on from its last checkpoint, or starts again; what cannot is named in the exit code and in the report. Nothing is guessed: a
file that is not what it should be is refused with one line that says what was wanted, what was found, where, and what to do.
"""
NEW = "not tried yet"
REAL = "by `make test-cluster`, where its programs are"
"""Of tests that build an image or start a SLURM: minutes, and what few machines have."""


class Row(NamedTuple):
    """A fault, what happens, and the test that shows it."""

    section: str
    fault: str
    outcome: str
    test: str


@functools.cache
def rows() -> list[Row]:
    """The marks of all tests, as written: nothing is imported."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text()
        for node in ast.parse(source).body if "pytest.mark.fault" in source else ():
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    (what,) = (ast.literal_eval(argument) for argument in mark.args)
                    (outcome,) = (ast.literal_eval(keyword.value) for keyword in mark.keywords)
                    section, _, fault = what.partition(": ")
                    test = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                    found.append(Row(section, fault, outcome, test))
    order = {section: number for number, section in enumerate(SECTIONS)}
    return sorted(found, key=lambda row: (order[row.section], row.test, row.fault))


def text(rows: list[Row], notes: dict[str, str]) -> str:
    """The page. notes: test -> why it was not tried; tried and passed without one."""
    parts = [HEAD]
    for section, title in SECTIONS.items():
        lines = [_line(row, notes.get(row.test, "")) for row in rows if row.section == section]
        if lines:
            parts.append(f"\n## {title}\n\n| fault | what happens | shown by |\n|---|---|---|\n" + "".join(lines))
    return "".join(parts)


def _line(row: Row, note: str) -> str:
    folder, _, name = row.test.removeprefix("tests/").partition("::")
    return f"| {row.fault} | {row.outcome} | `{folder}` `{name}`{f' ({note})' if note else ''} |\n"


def notes(page: str) -> dict[str, str]:
    """Test -> note ("" if it passed) of a page."""
    found = re.findall(r"\| `([\w/.]+)` `(\w+)`(?: \((.+)\))? \|$", page, re.MULTILINE)
    return {f"tests/{path}::{name}": note for path, name, note in found}


class Recorder:
    """Collects what became of the tests of a session, and writes the page at its end."""

    def __init__(self) -> None:
        self.outcomes: dict[str, set[str]] = {}
        self.reasons: dict[str, str] = {}

    def add(self, report) -> None:
        """report: pytest's, of a phase of a test."""
        test = report.nodeid.partition("[")[0]
        outcome = report.outcome
        if outcome == "passed" and report.when != "call":
            return
        self.outcomes.setdefault(test, set()).add(outcome)
        if outcome == "skipped":
            self.reasons[test] = report.longrepr[2].removeprefix("Skipped: ").replace("|", "/")

    def write(self, path: Path = PAGE) -> str:
        """Write the page; returns what to say."""
        marked = rows()
        if failed := sorted(t for row in marked if "failed" in self.outcomes.get(t := row.test, ())):
            return f"{path.name} was not written, because of {', '.join(failed)}"
        before = notes(path.read_text()) if path.exists() else {}
        now = {row.test: self._note(row.test, before) for row in marked}
        path.write_text(text(marked, now))
        num_run = sum(row.test in self.outcomes for row in marked)
        return f"{path.name}: {len(marked)} faults, {num_run} of them tried now"

    def _note(self, test: str, before: dict[str, str]) -> str:
        if test not in self.outcomes:
            return REAL if "_real.py::" in test else before.get(test, NEW)
        return "" if "passed" in self.outcomes[test] else f"not tried where this was made: {self.reasons[test]}"

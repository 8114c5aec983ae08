"""The scores of an exhibit: one long table, results/<scale>/scores/<exhibit>.csv, read by claims, figures and tables.

Columns: arm, setting, measure, x, seed, value. `x` is empty for a scalar measure (what claims read) and a number for
a curve (what figures draw). An empty `value` is NaN: the seed diverged, and it is kept as a row. Floats are written
by repr, so nothing is lost.

Shape suffixes: T points of x, S seeds.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nap_bench.store import write_whole

COLUMNS = ("arm", "setting", "measure", "x", "seed", "value")


class Score(NamedTuple):
    """One value of one seed. x is None for a scalar measure; value may be NaN."""

    arm: str
    setting: str
    measure: str
    x: float | None
    seed: int
    value: float


class Scores:
    """A table of scores, asked by measure, arm and setting. Nothing it returns shares memory with it."""

    def __init__(self, rows: Iterable[Score | tuple], source: str = "these scores"):
        self.source = source
        self._values: dict[tuple[str, str, str], dict[float | None, dict[int, float]]] = {}
        for arm, setting, measure, x, seed, value in rows:
            by_x = self._values.setdefault((measure, arm, setting), {})
            by_seed = by_x.setdefault(x, {})
            if seed in by_seed:
                raise ValueError(
                    f"{source} give two values for arm {arm!r}, setting {setting!r}, measure {measure!r}, x {x}, seed {seed}."
                )
            by_seed[seed] = value
        for key, by_x in self._values.items():
            if None in by_x and len(by_x) > 1:
                raise ValueError(f"{source}: {_named(*key)} is a scalar (x empty) in some rows and a curve in others.")

    def rows(self) -> Iterator[Score]:
        """Every score, in order of arm, setting, measure, x and seed."""
        for measure, arm, setting in sorted(self._values, key=lambda key: (key[1], key[2], key[0])):
            by_x = self._values[measure, arm, setting]
            for x in sorted(by_x) if len(by_x) > 1 else by_x:
                for seed, value in sorted(by_x[x].items()):
                    yield Score(arm, setting, measure, x, seed, value)

    def measures(self) -> tuple[str, ...]:
        return self._names(0)

    def arms(self) -> tuple[str, ...]:
        return self._names(1)

    def settings(self) -> tuple[str, ...]:
        return self._names(2)

    def has(self, measure: str, arm: str, setting: str = "") -> bool:
        """Whether there is any row, so that `values` or `curve` can be asked: an arm without results has none."""
        return (measure, arm, setting) in self._values

    def has_cell(self, arm: str, setting: str = "") -> bool:
        """Whether there is any measure of this arm at this setting."""
        return any(key[1:] == (arm, setting) for key in self._values)

    def values(self, measure: str, arm: str, setting: str = "") -> dict[int, float]:
        """A scalar measure: seed -> value, in order of seeds; NaN for a diverged seed."""
        by_x = self._lookup(measure, arm, setting)
        if None not in by_x:
            raise ValueError(f"{self.source}: {_named(measure, arm, setting)} is a curve; ask for .curve(...).")
        return dict(sorted(by_x[None].items()))

    def curve(self, measure: str, arm: str, setting: str = "") -> tuple[NDArray, NDArray, NDArray]:
        """A curve: x [T] rising, seeds [S] rising, values [T, S] with NaN where a seed had diverged."""
        by_x = self._lookup(measure, arm, setting)
        if None in by_x:
            raise ValueError(f"{self.source}: {_named(measure, arm, setting)} is a scalar; ask for .values(...).")
        x_T = sorted(by_x)
        seeds = sorted(by_x[x_T[0]])
        for x in x_T:
            if sorted(by_x[x]) != seeds:
                raise ValueError(
                    f"{self.source}: {_named(measure, arm, setting)} has seeds {seeds} at x = {x_T[0]} but "
                    f"{sorted(by_x[x])} at x = {x}. A diverged seed keeps its rows, with an empty value."
                )
        values_TS = np.array([[by_x[x][seed] for seed in seeds] for x in x_T], dtype=np.float64)
        return np.array(x_T, dtype=np.float64), np.array(seeds, dtype=np.int64), values_TS

    def _names(self, position: int) -> tuple[str, ...]:
        return tuple(sorted({key[position] for key in self._values}))

    def _lookup(self, measure: str, arm: str, setting: str) -> dict[float | None, dict[int, float]]:
        if (measure, arm, setting) in self._values:
            return self._values[measure, arm, setting]
        found = f"{self.source} have no {_named(measure, arm, setting)}."
        for position, (wanted, what) in enumerate([(measure, "measures"), (arm, "arms"), (setting, "settings")]):
            if wanted not in self._names(position):
                raise ValueError(f"{found} Known {what}: {', '.join(map(repr, self._names(position))) or 'none'}.")
        pairs = sorted(key[1:] for key in self._values if key[0] == measure)
        raise ValueError(f"{found} {measure!r} exists for (arm, setting): {', '.join(map(str, pairs))}.")


def _named(measure: str, arm: str, setting: str) -> str:
    return f"measure {measure!r} of arm {arm!r} at setting {setting!r}"


def write(path: Path, rows: Iterable[Score]) -> None:
    """Write a table of scores, whole or not at all; the same rows in any order give the same bytes."""
    ordered = sorted(map(_checked, rows), key=lambda row: (*row[:3], row.x is not None, row.x or 0.0, row.seed))
    Scores(ordered, source=str(path))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in ordered:
        x = "" if row.x is None else repr(row.x)
        value = "" if math.isnan(row.value) else repr(row.value)
        table.writerow([row.arm, row.setting, row.measure, x, row.seed, value])
    write_whole(Path(path), text.getvalue())


def read(path: Path) -> Scores:
    """The scores in a file; refuses one that is not such a table."""
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.reader(file)
        header = next(table, [])
        if tuple(header) != COLUMNS:
            raise ValueError(
                f"{path} is not a table of scores: wanted columns {','.join(COLUMNS)}; found {','.join(header)}."
            )
        return Scores(_parsed(table, path), source=str(path))


def _parsed(table: Any, path: Path) -> Iterator[tuple[str, str, str, float | None, int, float]]:
    """The rows of a file as plain tuples: there may be millions."""
    for fields in table:
        try:
            arm, setting, measure, x, seed, value = fields
            row = arm, setting, measure, float(x) if x else None, int(seed), float(value) if value else math.nan
        except ValueError as error:
            raise ValueError(
                f"{path}, line {table.line_num}: wanted {','.join(COLUMNS)}; found {','.join(fields)!r}. "
                "Delete the file and make it anew with `nap-bench score`."
            ) from error
        yield row


def _checked(row: Score) -> Score:
    """The row with plain Python numbers."""
    row = Score(*row[:3], None if row.x is None else float(row.x), int(row.seed), float(row.value))
    if row.x is not None and not math.isfinite(row.x):
        raise ValueError(f"x must be finite or None; found {row}.")
    return row

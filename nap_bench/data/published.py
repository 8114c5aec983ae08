"""The files of a published dataset: where they may lie, and whether they are what they should be. Standard library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from nap_bench.data.download import Content


class Published(NamedTuple):
    """A dataset as its authors published it.

    title: for people.  command: its name in `nap-bench data NAME`.  folders: where below data_dir to look, in
    this order.  files: name -> the forms it may have there, file name -> content, the preferred form first.
    """

    title: str
    command: str
    folders: tuple[str, ...]
    files: Mapping[str, Mapping[str, Content]]

    def find(self, root: Path, name: str) -> tuple[Path, Content] | None:
        """The file that stands for `name` and what it must hold; None if there is none."""
        forms = self.files[name].items()
        places = ((root / folder / form, content) for folder in self.folders for form, content in forms)
        return next(((path, content) for path, content in places if path.is_file()), None)

    def problem(self, root: Path, name: str) -> str | None:
        """What is wrong with the file that stands for `name`, or None."""
        found = self.find(root, name)
        if found is None:
            return f"{' or '.join(reversed(self.files[name]))} is missing"
        path, content = found
        problem = content.problem(path)
        return problem and f"{path} is {problem}"

    def verify(self, data_dir: str | Path | None) -> dict[str, Path]:
        """Name -> file, for all files.

        Raises ValueError naming every one that is missing or wrong, what was wanted and found, where, and what to do.
        """
        advice = f"`nap-bench data {self.command}`"
        if data_dir is None:
            raise ValueError(f"{self.title} wants a data_dir: set it in the config; {advice} downloads it there.")
        root = Path(data_dir)
        problems = [f"  {problem}" for name in self.files if (problem := self.problem(root, name))]
        if problems:
            raise ValueError(
                f"{self.title}: {len(problems)} of {len(self.files)} files cannot be used.\n"
                + "\n".join(problems)
                + f"\nLooked in {', '.join(str(root / folder) for folder in self.folders)}. "
                + f"Run {advice} to download what is missing or wrong, or name another data_dir."
            )
        return {name: self.find(root, name)[0] for name in self.files}

"""An Apptainer of one file: builds a few bytes, and runs commands on the host as if in an image. Standard library only.

It writes down every call in DIR/calls, takes APPTAINERENV_* as the real one does, and shows a command only the folders that
the real one would: the home it was given, what is bound, and the system's.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

VALUED = ("--home", "--bind", "--pwd", "--env", "--build-arg")
KEPT = ("PATH", "HOME", "USER", "LANG")
"""What --cleanenv leaves."""
SYSTEM = ("/tmp", "/usr", "/bin", "/proc", "/dev")


def install(folder: Path, version: str = "1.4.5") -> Path:
    """Make the program; returns what goes on the PATH."""
    (folder / "bin").mkdir(parents=True)
    words = shlex.join([sys.executable, "-I", __file__, str(folder), version])
    (folder / "bin" / "apptainer").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    (folder / "bin" / "apptainer").chmod(0o755)
    return folder / "bin"


def calls(folder: Path, verb: str) -> list[dict]:
    """What was asked of it: {"options": [...], "image": ..., "command": [...], "bound": {...}}."""
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return [call for call in map(json.loads, lines) if call["verb"] == verb]


def main(folder: Path, version: str, verb: str, *words: str) -> int:
    if verb == "--version":
        print(f"apptainer version {version}")
        return 0
    options, values, rest = [], {}, list(words)
    while rest and rest[0].startswith("-"):
        name, given, value = rest.pop(0).partition("=")
        options.append(name)
        if name in VALUED:
            values.setdefault(name, []).append(value if given else rest.pop(0))
    image, *command = rest
    with open(folder / "calls", "a") as file:
        call = {"verb": verb, "options": options, "values": values, "image": image, "command": command}
        file.write(json.dumps({**call, "cuda": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\n")
    if verb == "build":
        if (folder / "fails").exists():
            print("FATAL: While performing build", file=sys.stderr)
            return 255
        Path(image).write_bytes(b"an image of " + " ".join(values["--build-arg"][2:6]).encode())
        return 0
    if not Path(image).exists():
        print(f"FATAL: could not open image {image}", file=sys.stderr)
        return 255
    inside = {k.removeprefix("APPTAINERENV_"): v for k, v in os.environ.items() if k.startswith("APPTAINERENV_")}
    outside = {k: v for k, v in os.environ.items() if "--cleanenv" not in options or k in KEPT}
    environment = {**outside, **inside}
    seen = [*values.get("--home", []), *(bind.split(":")[0] for bind in values.get("--bind", []))]
    if (folder / "hides_tmp").exists():
        seen += [place for place in SYSTEM if place != "/tmp"]
    else:
        seen += SYSTEM
    shown = [word if "look" not in command[:4] or _is_seen(word, seen) else "/not/there" for word in command]
    os.execvpe(shown[0], shown, environment)


def _is_seen(word: str, seen: list[str]) -> bool:
    return not word.startswith("/") or any(Path(word).is_relative_to(place) for place in seen)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))

"""Build the image of a flavour, name it by its content, and write it down in containers/images.lock.json.

    python3 containers/build.py cpu
    python3 containers/build.py gpu --images /shared/images
    python3 containers/build.py cpu --base docker-archive:base.tar      (no image registry: containers/base_archive.py)

Wants git, Apptainer 1.2 or newer, and what this machine's pip installs from. Standard library only; the syntax is Python 3.6's,
so that it runs on a bare login node. What follows -- goes to `apptainer build`, such as --fakeroot where a machine wants it said.
"""

import argparse
import ast
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK_FILE = "containers/images.lock.json"
FLAVOURS = {"cpu": "requirements/lock-cpu.txt", "gpu": "requirements/lock-cuda.txt"}
"""Flavour -> the lock that it is installed from."""
OLDEST = (1, 2)
"""The Apptainer that brought {{ arguments }} to definition files."""
GIGABYTES = {"cpu": 6, "gpu": 22}
"""Room wanted to build in: the unpacked image, its packages a second time while they are downloaded, and the packed file.
cpu was measured (2.3 GB unpacked, 0.4 GB downloaded); gpu is scaled up from the sizes in requirements/install.py."""
PINNED = r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}"
INSIDE = "/mnt"
"""Where the build sees this machine's pip settings. Every base has this folder, empty."""


class Refusal(Exception):
    """Something a person has to put right; its text is all she is shown."""


def sha256(path):
    hasher = hashlib.sha256()
    with open(str(path), "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            hasher.update(block)
    return hasher.hexdigest()


def output_of(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise Refusal("%s failed: %s" % (" ".join(command), done.stderr.decode().strip() or "no reason given"))
    return done.stdout.decode()


def apptainer_version():
    """Such as "1.4.5"."""
    if shutil.which("apptainer") is None:
        raise Refusal("Wanted Apptainer, found no apptainer on the PATH. On a cluster try: module load apptainer")
    said = output_of("apptainer", "--version")
    found = re.search(r"(\d+)\.(\d+)\S*", said)
    if found is None or tuple(map(int, found.groups())) < OLDEST:
        raise Refusal("Wanted Apptainer %d.%d or newer, found %r." % (OLDEST + (said.strip(),)))
    return found.group()


def default_base(definition):
    return re.search(r"^ *FROM=(\S+)$", definition, re.MULTILINE).group(1)


def base_of(reference):
    """(bootstrap agent, what it is to fetch, how the lock names it). Refuses what could be another image tomorrow."""
    agent, _, where = reference.partition(":") if reference.startswith("docker-archive:") else ("docker", "", reference)
    if agent == "docker-archive":
        path = Path(where).resolve()
        if not path.is_file():
            raise Refusal(
                "Wanted a base archive at %s, found none. Make it: python3 containers/base_archive.py %s"
                % (path, where)
            )
        return agent, str(path), "docker-archive@sha256:%s" % sha256(path)
    if not re.fullmatch(PINNED, where):
        raise Refusal(
            "Wanted a base by digest (name@sha256:64 hex digits), found %r: a tag can be another image tomorrow."
            % where
        )
    return agent, where, where


def source(folder):
    """Copy the repository's files, as they are now, to a folder. Returns the commit, with "+changes" if they differ from it."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        raise Refusal("Wanted git and a clone of the repository: images carry their commit. Found none at %s." % ROOT)
    git = ("git", "-C", str(ROOT))
    commit = output_of(*git + ("rev-parse", "HEAD")).strip()
    changed = output_of(*git + ("status", "--porcelain", "--", ".", ":(exclude)" + LOCK_FILE)).strip()
    for name in output_of(*git + ("ls-files", "-z", "--cached", "--others", "--exclude-standard")).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(ROOT / name), str(folder / name))
    return commit + ("+changes" if changed else "")


def pip_settings():
    """What this machine's pip is configured with: option -> value. Nothing where Python has no pip."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    rows = [line.partition("=") for line in done.stdout.decode().splitlines() if "=" in line]
    rows.sort(key=lambda row: row[0].startswith(":env:"))  # variables win over files
    return {
        key.split(".", 1)[1]: ast.literal_eval(value)
        for key, _, value in rows
        if re.match(r"(:env:|global|install)\.", key)
        and key.split(".", 1)[1] not in ("target", "prefix", "user", "root")
    }


def bound(settings, folder):
    """Write the settings to folder/pip.conf as the build sees them. Returns the binds: the folder and local ones they name."""
    binds = ["%s:%s" % (folder, INSIDE)]
    lines = ["[global]"]

    def moved(word):
        local = word[len("file://") :] if word.startswith("file://") else word
        if not local.startswith("/") or not os.path.exists(local):
            return word
        if os.path.isfile(local):  # certificates
            shutil.copy(local, str(folder))
            return "%s/%s" % (INSIDE, os.path.basename(local))
        # The pages of an index name files beside it.
        outer = os.path.dirname(local.rstrip("/")) if word.startswith("file://") else local
        number = str(len(binds))
        (folder / number).mkdir()
        binds.append("%s:%s/%s" % (outer, INSIDE, number))
        return word[: -len(local)] + INSIDE + "/" + number + local[len(outer) :]

    for option in sorted(settings):
        lines.append("%s = %s" % (option, " ".join(map(moved, settings[option].split()))))
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")
    return binds


def refuse_short_disk(folder, flavour):
    free = shutil.disk_usage(str(folder)).free // 10**9
    if free < GIGABYTES[flavour]:
        raise Refusal(
            "Wanted %d GB to build the %s image in, found %d GB free at %s. Name another folder: APPTAINER_TMPDIR=..."
            % (GIGABYTES[flavour], flavour, free, folder)
        )


def build(flavour, reference, images, options=()):
    version = apptainer_version()
    definition = ROOT / "containers" / "nap-bench.def"
    agent, where, base = base_of(reference or default_base(definition.read_text()))
    work = os.environ.get("APPTAINER_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    refuse_short_disk(work, flavour)
    if re.search(r"[\s:,]", str(images)):
        raise Refusal(
            "Apptainer and Snakemake want paths without spaces, colons and commas, found %s. Name another: --images"
            % images
        )
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=str(images), prefix=".building-") as folder:
        image = Path(folder) / "image.sif"
        tree, settings = Path(folder) / "nap_bench", Path(folder) / "settings"
        tree.mkdir()
        settings.mkdir()
        commit = source(tree)
        lock = sha256(tree / FLAVOURS[flavour])
        arguments = {
            "BOOTSTRAP": agent,
            "FROM": where,
            "BASE": base,
            "FLAVOUR": flavour,
            "LOCK": FLAVOURS[flavour],
            "LOCK_SHA256": lock,
            "COMMIT": commit,
            "SOURCE": tree,
        }
        command = ["apptainer", "build"] + list(options)
        for bind in bound(pip_settings(), settings):
            command += ["--bind", bind]
        for name, value in arguments.items():
            command += ["--build-arg", "%s=%s" % (name, value)]
        print("Building the %s image of %s from %s: minutes." % (flavour, commit, base), flush=True)
        done = subprocess.run(command + [str(image), str(definition)])
        if done.returncode != 0 or not image.exists():
            raise Refusal(
                "apptainer build failed (exit code %d); the reason is above. Nothing was changed." % done.returncode
            )
        digest = sha256(image)
        name = "nap-bench-%s-%s.sif" % (flavour, digest[:12])
        os.chmod(str(image), 0o755)
        os.replace(str(image), str(images / name))
    entry = {
        "file": name,
        "sha256": digest,
        "bytes": (images / name).stat().st_size,
        "commit": commit,
        "lock": FLAVOURS[flavour],
        "lock_sha256": lock,
        "base": base,
        "definition_sha256": sha256(definition),
        "apptainer": version,
        "built": datetime.date.today().isoformat(),
    }
    write_down(flavour, entry)
    print("%s\nIt is the %s image of %s from now on." % (images / name, flavour, LOCK_FILE))


def write_down(flavour, entry):
    path = ROOT / LOCK_FILE
    known = json.loads(path.read_text()) if path.exists() else {}
    known[flavour] = entry
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    os.replace(str(temporary), str(path))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What follows -- goes to apptainer build."
    )
    parser.add_argument("flavour", choices=sorted(FLAVOURS))
    parser.add_argument(
        "--base", help="name@sha256:... of a registry, or docker-archive:FILE (default: the definition's)"
    )
    parser.add_argument(
        "--images", type=Path, default=ROOT / "containers" / "images", help="where images lie (images_dir)"
    )
    words = sys.argv[1:] if argv is None else list(argv)
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:cut])
    try:
        build(arguments.flavour, arguments.base, arguments.images.resolve(), words[cut + 1 :])
    except (Refusal, OSError) as error:
        sys.exit("build.py: %s" % error)
    except KeyboardInterrupt:
        sys.exit("build.py: stopped; nothing was changed.")


if __name__ == "__main__":
    main()

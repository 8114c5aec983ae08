"""A base image for machines that reach Debian's packages but no image registry: a docker-archive of Debian 12 with its Python 3.11.

    python3 containers/base_archive.py base.tar
    python3 containers/build.py cpu --base docker-archive:base.tar

Wants mmdebstrap (Debian: apt-get install mmdebstrap). Packages come from where this machine's own apt gets them. Standard library
only; the syntax is Python 3.6's. Where a registry can be reached none of this is needed.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

CODENAME = "bookworm"
"""The release whose Python is 3.11, the one that the locks are made for."""
PACKAGES = "python3,python3-venv,ca-certificates"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def sources():
    """Lines of a sources.list: what this machine's apt is configured with, of CODENAME and from Debian alone."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"]
    found = subprocess.run(command + ["Created-By: Packages"], stdout=subprocess.PIPE, check=True).stdout.decode()
    rows = [line.split("|") for line in found.splitlines()]
    lines = ["deb %s %s %s" % tuple(row[1:]) for row in rows if row[0] == "Debian" and row[2].startswith(CODENAME)]
    if not lines:
        raise ValueError(
            "Wanted Debian's %s among apt's sources, found none. Run this on Debian 12 after apt-get update, and copy the "
            "archive to where images are built." % CODENAME
        )
    return "\n".join(lines) + "\n"


def bootstrap(tar):
    """A minimal Debian with Python, as a tar file."""
    if shutil.which("mmdebstrap") is None:
        raise ValueError("Wanted mmdebstrap, found none on the PATH. Install it: apt-get install mmdebstrap")
    command = ["mmdebstrap", "--variant=minbase", "--include=" + PACKAGES, CODENAME, tar, "-"]
    done = subprocess.run(command, input=sources().encode(), stdout=sys.stderr)
    if done.returncode != 0:
        raise ValueError("mmdebstrap failed (exit code %d); the reason is above." % done.returncode)


def without_devices(source, target):
    """The same tar file without device nodes, which an unprivileged build may not make."""
    with tarfile.open(source) as read, tarfile.open(target, "w") as written:
        for member in read:
            if not (member.ischr() or member.isblk()):
                written.addfile(member, read.extractfile(member) if member.isreg() else None)


def sha256(path):
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            hasher.update(block)
    return hasher.hexdigest()


def pack(layer, archive):
    """One layer as a docker-archive: the layer, a configuration that names it, a manifest that names both."""
    identity = sha256(layer)
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=" + PATH]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + identity]},
    }
    configured = json.dumps(configuration).encode()
    name = hashlib.sha256(configured).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": ["nap-bench-base:" + CODENAME], "Layers": [identity + "/layer.tar"]}]
    with tarfile.open(archive, "w") as file:
        for member, content in ((name, configured), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
        file.add(layer, identity + "/layer.tar")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", help="the file to write")
    archive = os.path.abspath(parser.parse_args(argv).archive)
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(archive)) as scratch:
            whole, layer, packed = (os.path.join(scratch, name) for name in ("whole.tar", "layer.tar", "packed.tar"))
            bootstrap(whole)
            without_devices(whole, layer)
            pack(layer, packed)
            os.replace(packed, archive)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit("base_archive.py: %s" % error)
    print("%s: %d MB, sha256 %s" % (archive, os.path.getsize(archive) // 10**6, sha256(archive)))


if __name__ == "__main__":
    main()

"""Make .venv and install the suite into it from the lock. `make env` calls it.

Standard library only. The syntax is Python 3.6's, so that an old Python can say that it is too old.
What pip says goes to .venv/install.log; what a person needs goes to the terminal, a line every five seconds.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTED = (3, 11)
NEWEST = (3, 14)  # pyproject.toml: requires-python

# Megabytes (1e6 bytes) to download and in .venv when finished, by build of torch: the wheels' sizes and the disk blocks
# of one installation of each, measured 2026-11-21 with that day's lock, pip 26.3, Python 3.11, x86-64 Linux, ext4.
MEGABYTES = {"CPU": (441, 1945), "CUDA": (2977, 5974)}

HEARTBEAT_SECONDS = 5.0

# Lines of pip's that tell a waiting person nothing.
NOISE = "is ignored: it is neither|already satisfied|Looking in |notice|Attempting|Found existing|[Uu]ninstall(ing|ed) "

# pip does not count it as an error, and ends with "no matching distribution".
UNREACHABLE = "Retrying (Retry("


class Refusal(Exception):
    """Something a person has to put right; its text is all she is shown."""


def python_to_use(version=sys.version_info[:2], executable=sys.executable, which=shutil.which):
    """The interpreter to make .venv with: the tested Python where there is one, else this one if it is new enough."""
    if version == TESTED:
        return executable
    tested = which("python%d.%d" % TESTED)
    if tested and subprocess.call([tested, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
        return tested
    if TESTED < version <= NEWEST:
        return executable
    raise Refusal(
        "Wanted Python %d.%d (up to %d.%d should do), found %d.%d at %s and no python3.11 on the PATH. Install it "
        "(Debian: apt-get install python3.11 python3.11-venv), or name one: make env PYTHON=/path/to/python3.11"
        % (TESTED + NEWEST + tuple(version) + (executable,))
    )


def refuse_without_venv(find=importlib.util.find_spec):
    """Debian splits both out of Python."""
    for module in ("venv", "ensurepip"):
        if find(module) is None:
            raise Refusal(
                "Wanted the modules venv and ensurepip, but %s has no %s. Install them (Debian: apt-get install "
                "python%d.%d-venv) and repeat the command." % ((sys.executable, module) + sys.version_info[:2])
            )


def refuse_short_disk(folder, build, stored=0, free=None):
    """What the installation still needs: .venv, and every download twice, as a temporary file and in pip's cache."""
    download, installed = MEGABYTES[build]
    wanted = max(0, installed + 2 * download - stored)
    free = free_megabytes(folder) if free is None else free
    if free < wanted:
        raise Refusal(
            "Wanted %s MB for the environment, found %s MB free on the disk of %s. Free some space there, or put the "
            "repository on a larger disk, and repeat the command." % (thousands(wanted), thousands(free), folder)
        )


def free_megabytes(folder):
    return shutil.disk_usage(str(folder)).free // 10**6


def thousands(number):
    return format(int(number), ",")


def megabytes(folder, patience_seconds=2.0):
    """What a folder takes on the disk, or None where counting takes too long (a cluster's shared disk)."""
    total, deadline = 0, time.monotonic() + patience_seconds
    for path, _, files in os.walk(str(folder)):
        for file in files:
            try:
                total += os.lstat(os.path.join(path, file)).st_blocks * 512
            except FileNotFoundError:  # pip moved it
                pass
        if time.monotonic() > deadline:
            return None
    return total // 10**6


def identity(root):
    """A venv holds absolute paths and one Python: in another folder or for another version it is of no use."""
    return "%s, Python %d.%d" % ((root,) + sys.version_info[:2])


def digest(root):
    """Of everything that decides what is installed."""
    files = ("requirements/requirements.in", "requirements/constraints.txt", "pyproject.toml")
    return hashlib.sha256(b"\0".join((root / file).read_bytes() for file in files)).hexdigest()


def read_stamp(venv):
    """Whom .venv is for, and the digest it was finished with: two lines, the second missing until it is finished."""
    try:
        lines = (venv / "nap_bench.stamp").read_text().splitlines()
    except FileNotFoundError:
        return None, None
    return (lines + [None, None])[0], (lines + [None, None])[1]


def write_stamp(venv, *lines):
    temporary = venv / "nap_bench.stamp.tmp"
    temporary.write_text("\n".join(lines) + "\n")
    os.replace(str(temporary), str(venv / "nap_bench.stamp"))


class Installation:
    """One .venv, and the processes that fill it, with a line about them every five seconds."""

    def __init__(self, root):
        self.root = root
        self.venv = root / ".venv"
        self.python = str(self.venv / "bin" / "python")
        self.log_path = self.venv / "install.log"
        self.log = None
        self.command_at = 0  # where in the log the running command began
        self.started = self.next_line = time.monotonic()
        self.environment = dict(os.environ, PIP_NO_INPUT="1", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1")
        self.environment.update(PIP_PROGRESS_BAR="off", PYTHONUNBUFFERED="1")
        # /tmp is often a small disk of its own; here what is downloaded is counted too.
        self.environment["TMPDIR"] = str(self.venv / "tmp")
        for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PIP_TARGET", "PIP_PREFIX"):
            self.environment.pop(name, None)

    def say(self, text):
        print(text, flush=True)
        self.next_line = time.monotonic() + HEARTBEAT_SECONDS

    def words(self):
        """What the running command has written to the log, without noise."""
        with open(str(self.log_path), "rb") as log:
            log.seek(self.command_at)
            lines = log.read().decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip() and not re.search(NOISE, line)]

    def heartbeat(self, name):
        stored = megabytes(self.venv)
        size = "" if stored is None else " %s MB in .venv," % thousands(stored)
        words = (self.words() or [""])[-1].split(" (from ")[0]
        if words.startswith("Installing collected packages"):
            words = "Installing %d packages" % len(words.split(", "))
        self.say("  %3d s,%s %s %s" % (time.monotonic() - self.started, size, name, words[:70]))

    def lock(self):
        """One installation at a time. The lock is the log's, which pip holds too: it outlives a killed parent."""
        self.log = open(str(self.log_path), "a")
        while True:
            try:
                return fcntl.flock(self.log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.heartbeat("waiting for another installation:")
                time.sleep(HEARTBEAT_SECONDS)

    def run(self, name, *command, check=True):
        """Run a command into the log. A failure is a Refusal with what pip said."""
        self.log.write("\n$ %s\n" % " ".join(command))
        self.log.flush()
        self.command_at = self.log.tell()
        streams = dict(stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        process = subprocess.Popen(command, cwd=str(self.root), env=self.environment, **streams)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() >= self.next_line:
                    self.heartbeat(name)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
        if check and process.returncode != 0:
            words = self.words()
            reasons = [line for line in words if re.match("ERROR|OSError", line)] or words[-8:]
            if any(UNREACHABLE in line for line in words):
                reasons.append("The package index was not reached: is there a network, and are pip's settings right?")
            raise Refusal(
                "%s failed (exit code %d):\n  %s\nAll that was said is in %s. Repeat the command to go on from here."
                % (name.rstrip(":"), process.returncode, "\n  ".join(reasons), self.log_path)
            )
        return process.returncode

    def pip(self, name, *arguments):
        self.run(name, self.python, "-m", "pip", *arguments)

    def make_venv(self):
        self.run("making .venv", sys.executable, "-m", "venv", str(self.venv))
        if self.run("checking pip", self.python, "-m", "pip", "--version", check=False) != 0:
            # Killed while pip replaced itself.
            for broken in self.venv.glob("lib/python*/site-packages/pip*"):
                shutil.rmtree(str(broken))
            self.run("making .venv", sys.executable, "-m", "venv", str(self.venv))
        for record in self.venv.glob("lib/python*/site-packages/*.dist-info"):
            # pip writes RECORD last: without it a package is in part on the disk, and pip would take it for whole.
            if not (record / "RECORD").exists():
                shutil.rmtree(str(record))

    def build_of_torch(self, torch):
        """ "CPU" or "CUDA": the build that this machine's pip would choose. Downloads nothing."""
        report = self.venv / "tmp" / "torch.json"
        # An installed torch would be "already satisfied" without --ignore-installed, and the report empty.
        options = ("--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", str(report))
        self.pip("asking pip for its build of torch", "install", *(options + (torch,)))
        metadata = json.loads(report.read_text())["install"][0]["metadata"]
        needs_cuda = any(re.match("nvidia|cuda", need) for need in metadata.get("requires_dist", []))
        return "CUDA" if needs_cuda and sys.platform == "linux" else "CPU"

    def install(self):
        requirements, constraints = "requirements/requirements.in", "requirements/constraints.txt"
        owner, finished = read_stamp(self.venv)
        wanted = digest(self.root)
        if (owner, finished) == (identity(self.root), wanted):
            self.say("The environment .venv is complete.")
            return
        if self.venv.exists() and owner is None and any(self.venv.glob("*")):
            raise Refusal(
                "Wanted to make %s, found one that `make env` did not make. Move it or remove it, and repeat "
                "the command." % self.venv
            )
        if owner not in (None, identity(self.root)):
            self.say("The environment .venv was made for %s; making it again." % owner)
            shutil.rmtree(str(self.venv))
            owner = finished = None

        stored = megabytes(self.venv, patience_seconds=8) or 0
        refuse_short_disk(self.root, "CPU", stored)
        verb = "Updating" if finished else "Going on with" if owner else "Making"
        self.say("%s .venv, Python %s." % (verb, sys.version.split()[0]))
        self.venv.mkdir(exist_ok=True)
        write_stamp(self.venv, identity(self.root))
        self.lock()
        if read_stamp(self.venv)[1] == wanted:
            self.say("The environment .venv is complete.")
            return
        shutil.rmtree(str(self.venv / "tmp"), ignore_errors=True)
        (self.venv / "tmp").mkdir()

        self.make_venv()
        pip, torch = re.findall(r"^(?:pip|torch)==[^\s;]+", (self.root / constraints).read_text(), re.MULTILINE)
        self.pip("installing pip", "install", pip)
        build = self.build_of_torch(torch)
        refuse_short_disk(self.root, build, stored)
        download, installed = MEGABYTES[build]
        self.say(
            "Installing %s for %s and what else the suite needs: about %s MB to download (less what is at hand), "
            "%s MB in .venv; %s MB are free."
            % ((torch, build) + tuple(map(thousands, (download, installed, free_megabytes(self.root)))))
        )
        self.pip("pip:", "install", "-c", constraints, "-r", requirements)
        self.pip("installing nap_bench", "install", "--no-deps", "--no-build-isolation", "-e", ".")
        self.pip("checking", "check")
        shutil.rmtree(str(self.venv / "tmp"))
        write_stamp(self.venv, identity(self.root), wanted)
        size = megabytes(self.venv, patience_seconds=8)
        self.say(
            "The environment .venv is complete: %d s%s."
            % (time.monotonic() - self.started, "" if size is None else ", %s MB" % thousands(size))
        )


def interrupt(*_):
    raise KeyboardInterrupt


def main(root=ROOT):
    signal.signal(signal.SIGTERM, interrupt)
    try:
        python = python_to_use()
        if Path(sys.prefix) == root / ".venv":  # called from inside: make it with the Python it was made with
            python = sys._base_executable
        if python != sys.executable:
            os.execv(python, [python, str(Path(__file__).resolve())])
        refuse_without_venv()
        Installation(root).install()
    except Refusal as refusal:
        sys.exit("make env: %s" % refusal)
    except OSError as error:  # a full or read-only disk
        sys.exit("make env: %s. Put that right, and repeat the command." % error)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

"""Fetch a file from the first mirror that has it: retried, checksummed, whole or absent, never silent.

Standard library only.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

ATTEMPTS = 3
"""Rounds over all mirrors, one second longer apart each time."""

TIMEOUT_SECONDS = 20
"""Without a byte, before a mirror is given up."""

NOTICE_SECONDS = 5
"""Between two lines about a download under way."""

NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class Content(NamedTuple):
    """What a file must hold. num_bytes: None where it was not published."""

    num_bytes: int | None
    md5: str

    def problem(self, path: Path) -> str | None:
        """What is wrong with the file there, or None."""
        num_bytes = path.stat().st_size
        if self.num_bytes is not None and num_bytes != self.num_bytes:
            how = "truncated" if num_bytes < self.num_bytes else "too long"
            return f"{how}: wanted {self.num_bytes} bytes, found {num_bytes}"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        return None if found == self.md5 else f"other content: wanted md5 {self.md5}, found {found}"


def fetch(path: Path, urls: Sequence[str], content: Content, say: Callable[[str], object]) -> None:
    """Put the file at `path`, in place of whatever is there, from the first URL that delivers `content`.

    `say` receives a line for every try that ends, and every five seconds while one goes on. Raises ValueError, in one
    line, if no URL delivers or the file cannot be written; `path` is then as it was. Hosts whose names do not resolve
    are not tried again.
    """
    reasons: dict[str, str] = {}
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)
        resolved = False
        for url in urls:
            try:
                _fetch_once(path, url, content, say)
            except NETWORK_ERRORS as error:
                reason = getattr(error, "reason", None) or error
                resolved = resolved or not isinstance(reason, socket.gaierror)
                reasons[url] = str(reason) or type(reason).__name__
                say(f"{path.name}: {url}: {reasons[url]}")
            else:
                say(f"{path}: {path.stat().st_size / 1e6:.1f} MB from {url}, checksum as published")
                return
        if not resolved:
            break
    tried = "; ".join(f"{url} ({reason})" for url, reason in reasons.items())
    raise ValueError(
        f"Cannot download {path.name}: tried {tried}. Run it again with a network, or copy the file to {path.parent}."
    )


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` once the block ends without an error; else `path` is as it was.

    Raises ValueError if it cannot be written; network errors of the block pass.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = dict(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with tempfile.NamedTemporaryFile(**hidden, delete=False) as file:
            part = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    except NETWORK_ERRORS:
        raise
    except OSError as error:
        raise ValueError(f"Cannot write {path}: {error.strerror}. Make room there or name another folder.") from error
    finally:
        if part:
            part.unlink(missing_ok=True)


def say_line(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def _fetch_once(path: Path, url: str, content: Content, say: Callable[[str], object]) -> None:
    with whole(path) as file, _Notices(url, Path(file.name), content.num_bytes, say):
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            while piece := answer.read(1 << 16):
                file.write(piece)
        file.flush()
        if problem := content.problem(Path(file.name)):
            raise ConnectionError(problem)


class _Notices:
    """Says every few seconds how much has arrived, also while a connection is being made and nothing has."""

    def __init__(self, url: str, part: Path, num_bytes: int | None, say: Callable[[str], object]):
        self.url, self.part, self.say = url, part, say
        self.whole = "" if num_bytes is None else f" of {num_bytes / 1e6:.1f}"
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while not self.done.wait(NOTICE_SECONDS):
            arrived, elapsed = self.part.stat().st_size / 1e6, time.monotonic() - start
            self.say(f"{self.url}: {arrived:.1f}{self.whole} MB after {elapsed:.0f} s")

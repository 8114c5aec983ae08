"""Files that are not what they should be: checkpoints, downloads, and what would run code if it were opened."""

from __future__ import annotations

import ast
import hashlib
import http.server
import pickle
import re
import threading
from pathlib import Path

import pytest
import torch
from faults import toy
from faults.test_faults_disk import complaints
from faults.test_faults_kill import killed_at
from workflow import small

from nap_bench import checkpoint
from nap_bench.data.download import Content, fetch


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two runs: the first, whole, and its checkpoint; a checkpoint of the second."""
    one, two = toy.lines(2)
    folder = tmp_path_factory.mktemp("begun")
    checkpoints = []
    for line in (one, two):
        assert killed_at(folder, line, "env.json", after=False) < 0
        checkpoints.append((folder / "store" / line["run_id"] / "checkpoint").read_bytes())
    return one, toy.whole(tmp_path_factory.mktemp("whole"), one), *checkpoints


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


SPOILT = {
    "empty": lambda own, other: b"",
    "half": lambda own, other: own[: len(own) // 2],
    "without its last byte": lambda own, other: own[:-1],
    "one bit flipped": lambda own, other: flipped(own),
    "zeros": lambda own, other: bytes(len(own)),
    "another file": lambda own, other: b"step,seed,metric,value\n" * 9,
    "another run's": lambda own, other: other,
}


@pytest.mark.fault(
    "checkpoint: empty, half, cut by a byte, one bit flipped, zeros, another file, another run's",
    outcome="the run fails in one line that names it; deleted, the run starts from its beginning: the same bytes",
)
@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_checkpoint_is_refused_by_name_and_without_it_the_run_is_made_anew(how, begun, tmp_path, capsys):
    line, expected, own, other = begun
    path = tmp_path / "store" / line["run_id"] / "checkpoint"
    path.parent.mkdir(parents=True)
    path.write_bytes(SPOILT[how](own, other))
    assert toy.do(tmp_path, [line]) == 1
    (said,) = complaints(capsys.readouterr().err)
    assert str(path) in said and "elete it" in said and "from its beginning" in said
    assert not list(tmp_path.glob("results/runs/*"))
    path.unlink()
    assert toy.do(tmp_path, [line]) == 0
    assert toy.left(tmp_path, line) == expected


class Evil:
    """What runs a command as it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.fault(
    "untrusted: a checkpoint that would run a command as it is opened, its checksum right",
    outcome="refused in one line; nothing in it is run",
)
def test_nothing_in_a_checkpoint_is_run(tmp_path, capsys):
    (line,) = toy.lines()
    path, sign = tmp_path / "store" / line["run_id"] / "checkpoint", tmp_path / "it ran"
    path.parent.mkdir(parents=True)
    torch.save({"run_id": line["run_id"], "device": "cpu", "offset": 0, "evil": Evil(sign)}, path)
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())
    assert torch.load(path, weights_only=False)["run_id"] == line["run_id"] and sign.exists(), "it would run"
    sign.unlink()
    assert toy.do(tmp_path, [line]) == 1
    (said,) = complaints(capsys.readouterr().err)
    assert "holds something else than tensors and numbers" in said and str(path) in said
    assert not sign.exists()
    with pytest.raises(ValueError, match="was not opened"):
        checkpoint.load(path, line["run_id"], "cpu")


RUNS_CODE = {
    "pickle.load",
    "pickle.loads",
    "joblib.load",
    "yaml.load",
    "marshal.loads",
    "eval",
    "exec",
    "os.system",
    "pandas.read_pickle",
}


@pytest.mark.fault(
    "untrusted: any other file that could run code as it is opened",
    outcome="nothing in the package opens such files: no pickle, no eval, YAML by its safe loader, torch's weights alone",
)
def test_nothing_in_the_package_opens_what_could_run_code():
    found = {}
    for path in [*sorted((small.ROOT / "nap_bench").rglob("*.py")), *sorted((small.ROOT / "containers").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                if name in RUNS_CODE or given.get("allow_pickle") == "True" or given.get("shell") == "True":
                    found[f"{path.name}:{node.lineno}"] = name
                if name.endswith("torch.load") and given.get("weights_only") != "True":
                    found[f"{path.name}:{node.lineno}"] = "torch.load without weights_only=True"
    assert found == {}
    assert pickle.loads(pickle.dumps(1)) == 1 and "pickle.loads" in RUNS_CODE


@pytest.mark.fault(
    "server: any other that the package starts",
    outcome="there is none, and no address but loopback's is bound anywhere in it",
)
def test_no_address_but_loopbacks_is_bound_anywhere():
    bound = set()
    for path in sorted((small.ROOT / "nap_bench").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, (ast.Call, ast.List)) else ""
            if re.match(r"\[.*'--host'", text):
                bound |= set(re.findall(r"'--host', '?([^',]+)'?", text))
            elif isinstance(node, ast.Call) and re.search(
                r"(\.bind|create_server|HTTPServer|TCPServer)$", ast.unparse(node.func)
            ):
                bound |= {ast.unparse(node.args[0].elts[0]).strip("'") if node.args else ""}
    assert bound == {"127.0.0.1"}


@pytest.fixture
def server():
    """A mirror that is slow enough for two downloads to overlap, on loopback."""
    content = bytes(range(256)) * 4000

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for start in range(0, len(content), 2**16):
                both.wait(10)
                self.wfile.write(content[start : start + 2**16])

        def log_message(self, *words):
            pass

    both = threading.Barrier(2)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/file", content
    made.shutdown()
    made.server_close()


@pytest.mark.fault(
    "download: two of one file at once, piece by piece in turn", outcome="both succeed, and the file is whole"
)
def test_two_downloads_of_one_file_at_once_leave_it_whole(server, tmp_path):
    url, content = server
    wanted = Content(len(content), hashlib.md5(content).hexdigest())
    said: list[str] = []
    threads = [threading.Thread(target=fetch, args=(tmp_path / "file", [url], wanted, said.append)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(said) == 2 and all("checksum as published" in line for line in said)
    assert (tmp_path / "file").read_bytes() == content and [path.name for path in tmp_path.iterdir()] == ["file"]

"""Downloads against a local server that misbehaves in every way that was reported by users."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from streams import transfer
from streams.errors import StreamError
from streams.fetch import Options, fetch

CONTENT = np.random.default_rng(0).bytes(700_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
PAGE = b"\n<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>"
QUICK = Options(retries=3, pause=0.001, timeout=5)


class Server(ThreadingHTTPServer):
    """Answers each request by the next word of ``script``; well where there is none."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.seen: list[tuple[str, str | None, str | None]] = []
        self.broken: set[str] = set()

    def url(self, path: str = "/data.bin") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address) -> None:
        pass  # a client that went away is part of the tests


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        given, guard = self.headers.get("Range"), self.headers.get("If-Range")
        server.seen.append((self.path, given, guard))
        word, _, value = (server.script.pop(0) if server.script else "ok").partition(":")
        body, first, status = server.content, 0, 200
        if self.path in server.broken:
            word, value = "status", "404"
        if word == "status":
            return self.reply(int(value.split("/")[0]), b"no", retry=value.partition("/")[2])
        if word in ("html", "html-unsaid"):
            kind = "text/html; charset=utf-8" if word == "html" else "application/octet-stream"
            return self.reply(200, PAGE, kind=kind)
        if given and word != "ignore-range" and guard in (None, server.etag):
            first, status = int(given.removeprefix("bytes=").rstrip("-")), 206
            if first >= len(body):
                return self.reply(416, b"", extra={"Content-Range": f"bytes */{len(body)}"})
        if word == "bad-range":
            first = int(value)
        part = body[first:]
        range_ = f"bytes {first}-{len(body) - 1}/{len(body)}"
        extra = {"Content-Range": range_} if status == 206 else {}
        if word == "corrupt":
            part = part[:1000] + bytes([part[1000] ^ 1]) + part[1001:]
        if word == "length":
            return self.reply(200, part[: int(value)], extra=extra)
        if word == "encoded":
            extra["Content-Encoding"] = "gzip"
        if word == "gone":
            extra["Content-Length"] = ""
        self.head(status, len(part), extra=extra)
        if word in ("reset", "cut", "stall"):
            self.wfile.write(part[: int(value)])
            self.wfile.flush()
            if word == "stall":
                time.sleep(0.6)
            if word == "reset":
                time.sleep(0.05)  # let the bytes arrive before the reset
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(os.dup(self.connection.fileno()))
                self.rfile.close()
                self.connection.close()
            return None
        pieces = int(value) if word == "slow" else 1
        size = -(-len(part) // pieces)
        for at in range(0, len(part), size):
            self.wfile.write(part[at : at + size])
            self.wfile.flush()
            if pieces > 1:
                time.sleep(0.02)
        return None

    def head(self, status: int, length: int, *, kind: str = "", extra: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        for key, value in ({"Content-Length": str(length)} | extra).items():
            if value:
                self.send_header(key, value)
        self.end_headers()

    def reply(self, status: int, body: bytes, *, kind="", retry="", extra=None) -> None:
        self.head(status, len(body), kind=kind, extra={"Retry-After": retry} | (extra or {}))
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "below" / "data.bin"


def left(target: Path) -> list[str]:
    """Names beside the target, without the lock file."""
    return sorted(p.name for p in target.parent.iterdir() if not p.name.endswith(".lock"))


def refused(urls: list[str], target: Path, **options) -> str:
    with pytest.raises(StreamError) as caught:
        fetch(urls, target, **{"options": QUICK, **options})
    line = str(caught.value)
    assert "\n" not in line
    assert not target.exists() or target.read_bytes() != CONTENT
    return line


def test_a_plain_fetch(server: Server, target: Path) -> None:
    told: list[tuple[int, int | None]] = []
    got = fetch(
        [server.url()],
        target,
        size=len(CONTENT),
        checksum=MD5,
        progress=lambda done, total: told.append((done, total)),
    )
    assert target.read_bytes() == CONTENT
    assert left(target) == ["data.bin"]
    assert (got.url, got.size, f"md5:{got.md5}") == (server.url(), len(CONTENT), MD5)
    assert got.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [d for d, _ in told] == sorted({d for d, _ in told})
    again = fetch([server.url()], target, size=len(CONTENT), checksum=MD5)
    assert (again.url, len(server.seen)) == ("", 1)


RECOVERS = {
    "reset": ["reset:200000", "reset:100000"],
    "cut": ["cut:200000"],
    "page": ["html"],
    "page unsaid": ["html-unsaid"],
    "corrupt": ["corrupt"],
    "403": ["status:403"],
    "404": ["status:404"],
    "500": ["status:500", "status:503/0"],
    "range ignored": ["cut:200000", "ignore-range"],
    "another range": ["cut:200000", "bad-range:7"],
    "another length": ["length:1000"],
    "slow": ["slow:20"],
}


# Without a checksum nobody can tell damaged bytes or another length.
CASES = [(case, True) for case in RECOVERS]
CASES += [(case, False) for case in RECOVERS if case not in ("corrupt", "another length")]


@pytest.mark.parametrize(("case", "known"), CASES)
def test_it_recovers(server: Server, target: Path, case: str, known: bool) -> None:
    """With a published checksum, and with nothing but what the server says."""
    server.script = list(RECOVERS[case])
    facts = {"size": len(CONTENT), "checksum": MD5} if known else {}
    fetch([server.url()], target, options=QUICK, **facts)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["data.bin"]
    assert not server.script
    resumed = [given for _, given, _ in server.seen if given]
    if case in ("reset", "cut"):
        assert resumed
        assert all(0 < int(r[6:-1]) <= 300_000 for r in resumed)
    if case == "corrupt":
        assert not resumed  # damaged bytes are not built upon


SAYS = {
    "reset": ("reset:0", "the connection broke"),
    "cut": ("cut:0", "the connection broke"),
    "page": ("html", "sent a web page instead of the file (Quota exceeded)"),
    "page unsaid": ("html-unsaid", "sent a web page instead of the file (Quota exceeded)"),
    "corrupt": ("corrupt", "expected is " + MD5[4:]),
    "403": ("status:403", "HTTP 403 Forbidden"),
    "404": ("status:404", "HTTP 404 Not Found"),
    "500": ("status:500", "HTTP 500 Internal Server Error"),
    "length": ("length:1000", "announces 1,000 bytes, expected are 700,000"),
}


@pytest.mark.parametrize("case", SAYS)
def test_it_gives_up_and_says_why(server: Server, target: Path, case: str) -> None:
    word, message = SAYS[case]
    server.script = [word] * 50
    line = refused([server.url()], target, size=len(CONTENT), checksum=MD5)
    assert message in line
    by_hand = f"by hand: download {server.url()} and put it at {target} (700,000 bytes, {MD5})"
    assert line.endswith(by_hand)
    # Bounded: a first round and three more; a wrong file is not loaded more than twice.
    assert len(server.seen) == (2 if case == "corrupt" else 4)


def test_a_stalled_connection(server: Server, target: Path) -> None:
    server.script = ["stall:200000"]
    options = Options(retries=1, pause=0.001, timeout=0.2)
    fetch([server.url()], target, size=len(CONTENT), checksum=MD5, options=options)
    assert target.read_bytes() == CONTENT
    assert server.seen[1][1] is not None
    server.script = ["stall:10"]
    line = refused([server.url()], target.with_name("b"), options=Options(retries=0, timeout=0.2))
    assert "the transfer stalled for 0.2 s" in line


def test_nobody_answers(target: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
    assert "the connection failed (Connection refused)" in refused([url], target)
    assert "the request failed" in refused(["no-scheme/x"], target)


def test_mirrors_in_turn(server: Server, target: Path) -> None:
    server.broken = {"/first"}
    server.script = ["ok", "cut:300000", "ok", "ok"]
    urls = [server.url("/first"), server.url("/second")]
    got = fetch(urls, target, size=len(CONTENT), checksum=MD5, options=QUICK)
    assert got.url == urls[1]
    assert [path for path, *_ in server.seen] == ["/first", "/second", "/first", "/second"]
    assert server.seen[-1][1] is not None


def test_a_part_of_another_mirror_needs_a_checksum(server: Server, target: Path) -> None:
    server.script = ["cut:300000", "ok"]
    fetch([server.url("/a"), server.url("/b")], target, options=QUICK)
    assert [given for _, given, _ in server.seen] == [None, None]
    assert target.read_bytes() == CONTENT
    server.script, server.seen = ["cut:300000", "ok"], []
    urls = [server.url("/a"), server.url("/b")]
    fetch(urls, target.with_name("b"), checksum=MD5, options=QUICK)
    assert [bool(given) for _, given, _ in server.seen] == [False, True]


def test_the_file_changes_between_two_attempts(server: Server, target: Path) -> None:
    """``If-Range`` makes the server send the new file whole; halves are never joined."""
    server.script = ["cut:300000"]
    refused([server.url()], target, options=Options(retries=0))
    server.content, server.etag = CONTENT[::-1], '"two"'
    fetch([server.url()], target, options=QUICK)
    assert target.read_bytes() == CONTENT[::-1]
    assert server.seen[-1][1:] == (server.seen[-1][1], '"one"')
    assert server.seen[-1][1] is not None


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_no_way_to_tell_that_it_is_the_same(server: Server, target: Path, etag) -> None:
    server.etag, server.script = etag, ["cut:300000"]
    fetch([server.url()], target, options=QUICK)
    assert [given for _, given, _ in server.seen] == [None, None]


def test_a_page_does_not_cost_the_part(server: Server, target: Path) -> None:
    server.script = ["cut:300000", "html-unsaid", "html", "status:500"]
    refused([server.url()], target, size=len(CONTENT), checksum=MD5)
    assert target.with_name("data.bin.part").stat().st_size == 300_000
    fetch([server.url()], target, size=len(CONTENT), checksum=MD5, options=QUICK)
    assert server.seen[-1][1] == "bytes=300000-"
    assert target.read_bytes() == CONTENT


def test_a_part_that_is_whole_or_too_long(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part = target.with_name("data.bin.part")
    part.write_bytes(CONTENT)
    fetch([server.url()], target, checksum=MD5, options=QUICK)  # told so by a 416
    part.write_bytes(CONTENT + b"more")
    target.unlink()
    fetch([server.url()], target, checksum=MD5, size=len(CONTENT), options=QUICK)
    part.write_bytes(CONTENT)
    target.unlink()
    server.seen = []
    fetch([server.url()], target, checksum=MD5, size=len(CONTENT), options=QUICK)
    assert server.seen == []
    assert target.read_bytes() == CONTENT


def test_bounds(server: Server, target: Path) -> None:
    line = refused([server.url()], target, options=Options(retries=0, max_bytes=1000))
    assert "the limit is 1,000" in line
    server.script = ["gone"]
    assert "neither length nor checksum" in refused(
        [server.url()], target, options=Options(retries=0)
    )
    server.script = ["gone"]
    line = refused([server.url()], target, options=Options(retries=0), size=1000, checksum=MD5)
    assert "sends more than 1,000 bytes" in line


def test_compressed_on_the_way(server: Server, target: Path) -> None:
    server.script = ["encoded"] * 4
    assert "sends the file encoded as gzip" in refused([server.url()], target)
    fetch([server.url()], target, checksum=MD5, options=QUICK)  # here the checksum decides
    assert target.read_bytes() == CONTENT


def test_a_folder_in_the_way(server: Server, target: Path) -> None:
    target.mkdir(parents=True)
    with pytest.raises(StreamError, match=r"cannot be read \(Is a directory\)"):
        fetch([server.url()], target)


def test_what_is_there_already(server: Server, target: Path, monkeypatch) -> None:
    target.parent.mkdir()
    target.write_bytes(PAGE)
    line = refused([server.url()], target, checksum=MD5)
    assert "move it away" in line
    assert "has md5" in line
    assert f"has {len(PAGE)} bytes, expected are 5" in refused([server.url()], target, size=5)
    assert target.read_bytes() == PAGE
    target.write_bytes(CONTENT)
    offline = Options(offline=True)
    assert fetch([server.url()], target, checksum=MD5, options=offline).url == ""
    target.unlink()
    assert "the network is off" in refused([server.url()], target, options=offline)
    monkeypatch.setenv("TTA_BENCH_OFFLINE", "1")
    assert "the network is off" in refused([server.url()], target, options=None)
    assert server.seen == []


def test_a_full_disk(server: Server, target: Path, monkeypatch) -> None:
    def append(file, chunk: bytes) -> None:
        if file.tell() >= 300_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write(chunk)

    monkeypatch.setattr(transfer, "_append", append)
    line = refused([server.url()], target, checksum=MD5)
    assert "is full; what arrived is kept in data.bin.part" in line
    assert len(server.seen) == 1  # no retries
    monkeypatch.undo()
    fetch([server.url()], target, checksum=MD5, options=QUICK)
    assert int(server.seen[-1][1][6:-1]) >= 300_000
    assert target.read_bytes() == CONTENT


def test_a_disk_that_is_known_to_be_too_small(server: Server, target: Path, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage)
    assert "700,000 bytes are needed, the disk has 1,000" in refused([server.url()], target)


def test_wrong_arguments(target: Path) -> None:
    for checksum in ("md5:12", "crc:00", "x"):
        assert "expected 'md5:HEX' or 'sha256:HEX'" in refused(
            ["http://x"], target, checksum=checksum
        )
    assert "has no address" in refused([], target)
    with pytest.raises(StreamError, match="retries=-1"):
        Options(retries=-1)
    with pytest.raises(StreamError, match="timeout=0"):
        Options(timeout=0)
    (target.parent.parent / "file").touch()
    assert "cannot be written" in refused(["http://x"], target.parent.parent / "file" / "x")


PROCESS = """
import sys
from pathlib import Path
from streams.fetch import Options, fetch
url, target, checksum = sys.argv[1:]
fetch([url], Path(target), checksum=checksum or None, options=Options(retries=3, pause=0.01))
"""


def start(server: Server, target: Path, checksum: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, server.url(), str(target), checksum],
        stderr=subprocess.PIPE,
        cwd=Path(transfer.__file__).parents[1],
    )


def test_two_processes_fetch_one_file(server: Server, target: Path) -> None:
    server.script = ["slow:30"]
    processes = [start(server, target, "") for _ in range(2)]
    for process in processes:
        assert process.wait(timeout=20) == 0, process.stderr.read()
    assert target.read_bytes() == CONTENT
    assert len(server.seen) == 1
    assert left(target) == ["data.bin"]


def test_another_process_never_ends(server: Server, target: Path) -> None:
    server.script = ["slow:200"]
    process = start(server, target, "")
    while not server.seen:
        time.sleep(0.01)
    line = refused([server.url()], target, options=Options(lock_timeout=0.1))
    assert "another process has been at work" in line
    process.kill()
    process.wait()
    fetch([server.url()], target, options=QUICK)  # a dead holder frees the lock
    assert target.read_bytes() == CONTENT


def test_the_facts_beside_a_part(server: Server, target: Path) -> None:
    server.script = ["cut:300000"]
    refused([server.url()], target, options=Options(retries=0))
    facts = json.loads(target.with_name("data.bin.part.json").read_text())
    assert facts == {"url": server.url(), "validator": '"one"'}
    target.with_name("data.bin.part.json").write_text("[broken")
    fetch([server.url()], target, options=QUICK)
    assert server.seen[-1][1] is None
    assert target.read_bytes() == CONTENT

"""Download of one file: resumed, checked before it gets its name, from several addresses in turn.

What arrives is kept in ``NAME.part``. It becomes ``NAME`` only when size and checksum agree, so a
file under its own name is whole. A killed download goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streams.errors import StreamError
from streams.secrets import masked
from streams.transfer import Transfer, TransferError, out_of_space

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes there are and the bytes there will be, where that is known."""

OFFLINE = "TTA_BENCH_OFFLINE"
_CHUNK = 1 << 20
_LONGEST_PAUSE = 60.0
# A damaged transfer may heal; an address that gives the wrong file twice has another file.
_WRONG_CHECKSUMS = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to fetch.

    Attributes:
        retries: Further rounds over all addresses after the first one.
        pause: Seconds before the second round; doubled for each one after, at most 60.
        timeout: Seconds without a byte after which a connection counts as stalled.
        offline: Whether the network is left alone.
        lock_timeout: Seconds to wait for another process that fetches the same file.
        max_bytes: Most bytes taken where no size is published.
    """

    retries: int = 5
    pause: float = 1.0
    timeout: float = 30.0
    offline: bool = False
    lock_timeout: float = 12 * 3600.0
    max_bytes: int = 200 * 10**9

    def __post_init__(self) -> None:
        for name in ("retries", "pause"):
            if getattr(self, name) < 0:
                raise StreamError(f"{name}={getattr(self, name)} must be 0 or more")
        if self.timeout <= 0:
            raise StreamError(f"timeout={self.timeout} must be above 0 seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What ``fetch`` leaves behind.

    Attributes:
        path: The file.
        url: Address it came from, without a login; empty where it was there already.
        size: Bytes.
        md5: Hex MD5 of its bytes.
        sha256: Hex SHA-256 of its bytes.
    """

    path: Path
    url: str
    size: int
    md5: str
    sha256: str


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Download one file, or find it there.

    Args:
        urls: Addresses of the same file, tried in turn in every round.
        target: Where it goes; ``NAME.part`` and a lock file lie beside it meanwhile.
        size: Bytes it must have; by default what the server announces.
        checksum: ``"md5:HEX"`` or ``"sha256:HEX"`` that it must have.
        options: Retries, time limits, offline.
        progress: Told how far the download is.

    Raises:
        StreamError: If no address gives the file, the disk is full, the network is off, or another
            file is at ``target``; nothing is left under the name of the file then.
    """
    options = options or Options(offline=bool(os.environ.get(OFFLINE)))
    algorithm, digest = _parse(checksum)
    by_hand = _by_hand(urls, target, size, checksum)
    if target.exists():  # no lock: a file under its own name is whole
        return _accept(target, size, algorithm, digest)
    if options.offline:
        raise StreamError(f"{target} is missing and the network is off (offline); {by_hand}")
    if not urls:
        raise StreamError(f"{target} is missing and has no address; {by_hand}")
    with alone(target, options.lock_timeout):
        if target.exists():  # another process was quicker
            return _accept(target, size, algorithm, digest)
        part = target.with_name(f"{target.name}.part")
        transfer = Transfer(
            part=part,
            size=size,
            trusted=digest is not None,
            timeout=options.timeout,
            max_bytes=options.max_bytes,
            progress=progress or (lambda done, total: None),
        )
        faults: dict[str, str] = {}
        wrong = dict.fromkeys(urls, 0)
        for attempt in range(options.retries + 1):
            longest = 0.0
            for url in (u for u in urls if wrong[u] < _WRONG_CHECKSUMS):
                try:
                    transfer.run(url)
                    made = _describe(part, url=url)
                    if digest is not None and getattr(made, algorithm) != digest:
                        wrong[url] += 1
                        transfer.discard()
                        have = getattr(made, algorithm)
                        raise TransferError(f"{algorithm} is {have}, expected is {digest}")
                except TransferError as fault:
                    faults[url] = str(fault)
                    longest = max(longest, fault.retry_after)
                    continue
                _finish(transfer, target)
                return Fetched(
                    path=target, url=masked(url), size=made.size, md5=made.md5, sha256=made.sha256
                )
            if all(count >= _WRONG_CHECKSUMS for count in wrong.values()):
                break
            if attempt < options.retries:
                time.sleep(min(max(options.pause * 2**attempt, longest), _LONGEST_PAUSE))
        told = "; ".join(f"{masked(url)}: {words}" for url, words in faults.items())
        raise StreamError(
            f"{target.name} could not be fetched after {attempt + 1} round(s): {told}; {by_hand}"
        )


def hashes(path: Path, progress: Progress | None = None) -> tuple[str, str]:
    """Hex MD5 and SHA-256 of a file, read once in bounded pieces.

    Raises:
        StreamError: If it cannot be read.
    """
    md5, sha256, done = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                md5.update(chunk)
                sha256.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    except OSError as error:
        raise StreamError(f"{path} cannot be read ({error.strerror or error})") from error
    return md5.hexdigest(), sha256.hexdigest()


def _parse(checksum: str | None) -> tuple[str, str | None]:
    if checksum is None:
        return "sha256", None
    algorithm, _, digest = checksum.partition(":")
    lengths = {"md5": 32, "sha256": 64}
    if algorithm not in lengths or len(digest) != lengths[algorithm]:
        raise StreamError(f"checksum={checksum!r}: expected 'md5:HEX' or 'sha256:HEX'")
    return algorithm, digest.lower()


def _by_hand(urls: Sequence[str], target: Path, size: int | None, checksum: str | None) -> str:
    facts = [f"{size:,} bytes" if size else "", checksum or "no published checksum"]
    origin = f"download {masked(urls[0])}" if urls else "get the file"
    return f"by hand: {origin} and put it at {target} ({', '.join(filter(None, facts))})"


def _describe(path: Path, *, url: str) -> Fetched:
    md5, sha256 = hashes(path)
    return Fetched(path=path, url=url, size=path.stat().st_size, md5=md5, sha256=sha256)


def _accept(target: Path, size: int | None, algorithm: str, digest: str | None) -> Fetched:
    """Take a file that is there, unless it is not the published one."""
    found = _describe(target, url="")
    wrong = ""
    if size is not None and found.size != size:
        wrong = f"has {found.size:,} bytes, expected are {size:,}"
    elif digest is not None and getattr(found, algorithm) != digest:
        wrong = f"has {algorithm} {getattr(found, algorithm)}, expected is {digest}"
    if wrong:
        raise StreamError(
            f"{target} {wrong}: it is damaged or another file; move it away and fetch again"
        )
    return found


def _finish(transfer: Transfer, target: Path) -> None:
    """Give the checked file its name."""
    try:
        with transfer.part.open("rb+") as file:
            os.fsync(file.fileno())
        transfer.part.replace(target)
    except OSError as error:
        raise out_of_space(error, transfer.part) from error
    transfer.facts.unlink(missing_ok=True)


@contextmanager
def alone(target: Path, timeout: float) -> Iterator[None]:
    """Hold the lock of one file; the system frees it when its holder dies."""
    from filelock import FileLock, Timeout

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        lock.acquire(timeout=timeout)
    except Timeout:
        raise StreamError(
            f"another process has been at work on {target} for {timeout:g} s; wait for it or end it"
        ) from None
    except OSError as error:
        raise StreamError(
            f"{target.parent} cannot be written ({error.strerror}); name another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()

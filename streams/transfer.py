"""One HTTP transfer into a ``.part`` file, resumed where that is sound."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from streams.errors import StreamError
from streams.jsonfiles import load_json
from streams.secrets import masked

if TYPE_CHECKING:
    from requests import Response

_CHUNK = 1 << 16
_HEAD = 512
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml|<!--)", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_FULL = {errno.ENOSPC, errno.EDQUOT}


class TransferError(Exception):
    """Why one attempt at one address failed; another may do better."""

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Transfers into one ``.part`` file.

    Attributes:
        part: The file that grows.
        size: Bytes of the whole, where they are published.
        trusted: Whether a published checksum will decide in the end. Without one, a part is only
            continued from the address it came from, and only if the server can tell (``ETag`` or
            ``Last-Modified``) that the file is still the same.
        timeout: Seconds without a byte before the connection counts as stalled.
        max_bytes: Most bytes taken where no size is known.
        progress: Told the bytes there are and will be.
    """

    part: Path
    size: int | None
    trusted: bool
    timeout: float
    max_bytes: int
    progress: Callable[[int, int | None], None]

    @property
    def facts(self) -> Path:
        """File that says where the part came from."""
        return self.part.with_name(f"{self.part.name}.json")

    def discard(self) -> None:
        """Forget what arrived so far."""
        self.part.unlink(missing_ok=True)
        self.facts.unlink(missing_ok=True)

    def run(self, url: str) -> None:
        """Fetch what is missing of the part.

        Raises:
            TransferError: If this address did not give the whole file now.
            StreamError: If the disk is full or cannot be written.
        """
        import requests

        # Compressed on the way, lengths and offsets would mean nothing.
        headers = {"Accept-Encoding": "identity", "User-Agent": "tta-bench"}
        offset, validator = self._resume_point(url)
        if self.size is not None and offset == self.size:
            return
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator:
                headers["If-Range"] = validator
        try:
            with requests.Session() as session:
                session.max_redirects = 10
                with session.get(url, headers=headers, stream=True, timeout=self.timeout) as reply:
                    self._take(url, reply, offset)
        except requests.exceptions.ConnectTimeout:
            raise TransferError(f"no connection within {self.timeout:g} s") from None
        except requests.exceptions.ReadTimeout:
            raise TransferError(f"no answer within {self.timeout:g} s") from None
        except requests.exceptions.ConnectionError as error:
            raise TransferError(f"the connection failed ({_reason(error)})") from None
        except (requests.exceptions.RequestException, UnicodeError) as error:
            raise TransferError(f"the request failed ({_reason(error)})") from None

    def _resume_point(self, url: str) -> tuple[int, str | None]:
        """Bytes that may be kept, and the ``If-Range`` value that guards them."""
        if not self.part.is_file():
            return 0, None
        offset = self.part.stat().st_size
        facts: dict[str, Any] = {}
        try:
            facts = load_json(self.facts)
            same = facts.get("url") == masked(url)
        except (OSError, ValueError, AttributeError):
            same = False
        validator = facts.get("validator") if same else None
        too_long = self.size is not None and offset > self.size
        if too_long or not offset or not (self.trusted or validator):
            self.discard()
            return 0, None
        return offset, validator

    def _take(self, url: str, reply: Response, offset: int) -> None:
        status = reply.status_code
        if status == 416:
            # Nothing after our last byte: the part is whole or of another file.
            total = _total(reply)
            if total is not None and total == offset and self.size in (None, total):
                return
            self.discard()
            raise TransferError("the server has fewer bytes than the .part file; it was dropped")
        if status not in (200, 206) or (status == 206 and not offset):
            raise TransferError(
                f"HTTP {status} {reply.reason or ''}".strip(), retry_after=_retry_after(reply)
            )
        _refuse_downgrade(url, reply, self.trusted)
        if (
            reply.headers.get("Content-Type", "")
            .lower()
            .startswith(("text/html", "application/xhtml"))
        ):
            raise TransferError(_page(reply.raw.read(_HEAD * 8, decode_content=False)))
        if status == 200:
            offset = 0  # the server ignores ranges, or has a newer file
        chunk = _read(reply, self.timeout)
        if not offset and _PAGE.match(chunk.removeprefix(b"\xef\xbb\xbf")):
            raise TransferError(_page(chunk[: _HEAD * 8]))
        self._write(url, reply, offset, self._announced(reply, offset), chunk)

    def _announced(self, reply: Response, offset: int) -> int | None:
        """Bytes of the whole file.

        Raises:
            TransferError: If they are not the published ones, or cannot be known.
        """
        headers = reply.headers
        if reply.status_code == 206:
            match = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if match is None or int(match[1]) != offset:
                self.discard()
                got = headers.get("Content-Range")
                raise TransferError(f"asked for bytes from {offset:,}, the server answers {got!r}")
            total = None if match[3] == "*" else int(match[3])
        else:
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        if total is not None and self.size is not None and total != self.size:
            raise TransferError(
                f"the server announces {total:,} bytes, expected are {self.size:,}: another file"
            )
        total = self.size if total is None else total
        chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        encoding = headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity" and not self.trusted:
            # What is stored is what is sent: with a checksum that decides, here nothing would.
            raise TransferError(f"the server sends the file encoded as {encoding}, against request")
        if total is None and not chunked and not self.trusted:
            raise TransferError(
                "neither length nor checksum is known: whole and cut cannot be told apart"
            )
        if total is not None and total > self.max_bytes:
            raise TransferError(
                f"the server announces {total:,} bytes, the limit is {self.max_bytes:,}"
            )
        return total

    def _write(
        self, url: str, reply: Response, offset: int, total: int | None, chunk: bytes
    ) -> None:
        if total is not None:
            check_space(self.part.parent, total - offset)
        limit = self.max_bytes if total is None else total
        done = offset
        try:
            if not offset:
                self.discard()  # not before something better than a web page is there
            with self.part.open("ab") as file:
                self._note(url, reply)
                while chunk:
                    if done + len(chunk) > limit:
                        raise TransferError(f"the server sends more than {limit:,} bytes; stopped")
                    _append(file, chunk)
                    done += len(chunk)
                    self.progress(done, total)
                    chunk = _read(reply, self.timeout)
        except OSError as error:
            kept = f"what arrived is kept in {self.part.name}: "
            raise out_of_space(error, self.part, kept) from error
        if total is not None and done < total:
            raise TransferError(f"the connection ended after {done:,} of {total:,} bytes")
        if not done:
            raise TransferError("the server sent an empty file")

    def _note(self, url: str, reply: Response) -> None:
        """Write beside the part where it came from, and how to tell that the file changed."""
        etag = reply.headers.get("ETag")
        # A weak ETag does not promise equal bytes (RFC 9110, 13.1.5).
        strong = etag if etag and not etag.startswith("W/") else None
        facts = {"url": masked(url), "validator": strong or reply.headers.get("Last-Modified")}
        if facts["validator"] or not self.facts.is_file():
            self.facts.write_text(json.dumps(facts) + "\n", "utf-8")


def check_space(folder: Path, needed: int) -> None:
    """Raise ``StreamError`` if the disk of ``folder`` has less than ``needed`` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StreamError(
            f"{folder}: {needed:,} bytes are needed, the disk has {free:,}; free some space, or "
            "name a folder on another disk with --data-dir"
        )


def out_of_space(error: OSError, path: Path, kept: str = "") -> StreamError:
    """The one line for a disk that is full or cannot be written."""
    if error.errno in _FULL:
        return StreamError(
            f"the disk of {path.parent} is full; {kept}free some space and run the same command "
            "again, it goes on from there"
        )
    return StreamError(f"{path} cannot be written ({error.strerror or error})")


def _append(file: IO[bytes], chunk: bytes) -> None:
    file.write(chunk)


def _read(reply: Response, timeout: float) -> bytes:
    """The next piece, at most 64 KiB; empty at the end.

    Raises:
        TransferError: If the connection breaks or stalls; what came before is kept.
    """
    from urllib3 import exceptions

    try:
        return bytes(reply.raw.read(_CHUNK, decode_content=False))
    except exceptions.ReadTimeoutError:
        raise TransferError(f"the transfer stalled for {timeout:g} s") from None
    except (exceptions.HTTPError, OSError) as error:
        raise TransferError(f"the connection broke ({_reason(error)})") from None


def _total(reply: Response) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d+)", reply.headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None


def _retry_after(reply: Response) -> float:
    value = reply.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _refuse_downgrade(url: str, reply: Response, trusted: bool) -> None:
    if url.startswith("https:") and not reply.url.startswith("https:") and not trusted:
        raise TransferError("redirected from https to http, and no checksum is published")


def _page(text: bytes) -> str:
    """What to say of a web page; its title often names the reason (quota, sign-in, rate limit)."""
    match = _TITLE.search(text)
    title = " ".join(match[1].decode("utf-8", "replace").split())[:80] if match else ""
    return "the server sent a web page instead of the file" + (f" ({title})" if title else "")


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words."""
    while True:
        inner = (
            error.__cause__
            or error.__context__
            or next((a for a in error.args if isinstance(a, BaseException)), None)
        )
        if inner is None or inner is error:
            break
        error = inner
    words = " ".join(str(getattr(error, "strerror", None) or error).split())
    return (words or type(error).__name__)[:120]

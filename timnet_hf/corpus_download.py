# SPDX-License-Identifier: Apache-2.0
"""Fetch the corpora that everybody may fetch, and unpack them without trusting the archive.

A download goes on where it stopped, within a run and after a kill: the bytes so far lie beside the
target in a ``.part`` file, and the server is asked for the rest of *the same* file (``Range`` with
``If-Range``). Nothing half-done ever bears a final name: archive and folder are renamed into place
when they are whole.

The code is tested against a server of its own; the owners' servers could not be reached where it
was written, so their addresses come from what they publish.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import stat
import struct
import time
import urllib.error
import urllib.request
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from .corpus_table import CorpusError, Download, find_corpus
from .output_folder import sole_use

__all__ = ["download_corpus", "fetch", "unpack"]

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the bytes in all, None while the server does not tell."""

_CHUNK = 2**18
_TIMEOUT = 60.0  # seconds without a byte
_ATTEMPTS = 6  # in a row that bring nothing new

# What a damaged archive raises, or one whose members stand in each other's way.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,  # an encrypted member; one packed in a way that zipfile does not know
    UnicodeError,
    struct.error,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)


def download_corpus(
    name: str,
    data_dir: str | os.PathLike[str],
    *,
    download: Download | None = None,
    progress: Progress | None = None,
    pause: float = 2.0,
) -> Path:
    """Download a corpus, unpack it into ``data_dir/<name>``, and check what came.

    A corpus that is already there, whole, is left alone. The archive is removed at the end.

    Args:
        name: Name of the corpus, see `timnet_hf.corpora.CORPORA`.
        data_dir: Folder for corpora; made if need be.
        download: Another place to fetch the same archive from.
        progress: Told how far the download is.
        pause: Seconds before a second attempt; doubled with each further one.

    Returns:
        The folder ``data_dir/<name>``.

    Raises:
        CorpusError: The corpus has no public archive (the message says whom to ask), the server
            fails, the archive is not the published one or not safe to unpack, or what it holds is
            not the corpus.
    """
    from .corpora import check_corpus  # that module offers this one's function to its readers

    corpus = find_corpus(name)
    download = download or corpus.download
    if download is None:
        raise CorpusError(f"{corpus.title} cannot be downloaded by everybody. {corpus.obtain}")
    folder = Path(data_dir) / corpus.name
    archive = Path(data_dir) / f".{corpus.name}.zip"  # ours alone: it is removed in the end
    try:
        if not folder.exists():
            with sole_use(Path(data_dir) / f".{corpus.name}.download", CorpusError):
                for stale in Path(data_dir).glob(f".{corpus.name}-*"):  # of one that was killed
                    shutil.rmtree(stale, ignore_errors=True)
                if archive.exists():  # of one that was killed
                    _verify(download, archive)
                else:
                    fetch(download, archive, progress=progress, pause=pause)
                unpack(archive, folder, max_bytes=download.max_bytes, max_files=download.max_files)
    except OSError as error:
        raise CorpusError(
            f"{error.filename or data_dir}: {error.strerror or error}; {corpus.title} could not be "
            "stored"
        ) from error
    report = check_corpus(corpus.name, folder)
    if report.faults:
        raise CorpusError(
            f"{folder}: this is not {corpus.title} as published. Move the folder away and start "
            f"again, or inspect it:\n{report}"
        )
    archive.unlink(missing_ok=True)
    return folder


def fetch(
    download: Download, target: Path, *, progress: Progress | None = None, pause: float = 2.0
) -> None:
    """Download a file, going on where an earlier attempt stopped.

    Args:
        download: What to fetch.
        target: Where the whole file goes; its folder exists.
        progress: Told how far the download is.
        pause: Seconds before a second attempt; doubled with each further one.

    Raises:
        CorpusError: The server refuses, keeps failing, or sends something else than was published.
    """
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch_rest(download, part, progress)
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing there behind our last byte: start anew
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 425, 429):
                raise CorpusError(
                    f"{download.url}: the server answers {error.code} {error.reason}; the corpus "
                    "may have moved, see its homepage"
                ) from error
            problem: Exception = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # our disk, not their server
            problem = error
        failures = 0 if _size(part) > before else failures + 1
        if failures >= _ATTEMPTS:
            raise CorpusError(
                f"{download.url}: {problem or type(problem).__name__}; {_size(part)} bytes are in "
                f"{part}: start again later to go on from there"
            ) from problem
        time.sleep(pause * 2 ** max(0, failures - 1))
    _verify(download, part)
    os.replace(part, target)
    _validator_file(part).unlink(missing_ok=True)


def unpack(
    archive: Path, folder: Path, *, max_bytes: int = 2 * 1024**3, max_files: int = 20_000
) -> None:
    """Unpack a zip file into a new folder, or do nothing at all.

    Args:
        archive: The zip file.
        folder: Where its members go; must not exist.
        max_bytes: What the members may come to, unpacked.
        max_files: How many members there may be.

    Raises:
        CorpusError: Not a whole zip file, more in it than allowed, or a member that would leave
            the folder, is a link or device, is encrypted, or bears another member's name.
    """
    if folder.exists():
        raise CorpusError(f"{folder}: exists already; move it away")
    staging = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        with zipfile.ZipFile(archive) as members:
            infos = members.infolist()
            _refuse_unsafe(archive, infos, max_bytes, max_files)
            staging.mkdir()
            for info in infos:
                place = staging.joinpath(*PurePosixPath(info.filename).parts)
                if info.is_dir():
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                # The size in the directory was checked; reading stops there, whatever follows.
                with members.open(info) as source, open(place, "xb") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
        os.replace(staging, folder)
    except (*_DAMAGED, OSError) as error:
        # zipfile also seeks to wherever a damaged archive sends it, which the system refuses.
        if isinstance(error, OSError) and not isinstance(error, _DAMAGED):
            if error.errno not in (None, errno.EINVAL):
                raise
        archive.unlink(missing_ok=True)
        raise CorpusError(
            f"{archive}: not a whole zip file ({error}); it was removed, start the download again"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch_rest(download: Download, part: Path, progress: Progress | None) -> None:
    """Append what is missing; raise when the connection ends before the file does."""
    if not download.url.startswith(("http://", "https://")):
        raise CorpusError(f"{download.url}: not an http or https address")
    request = urllib.request.Request(download.url, headers={"User-Agent": "timnet-hf"})
    validator = _validator_file(part)
    have = _size(part)
    # The rest of a file that changed meanwhile must not be glued to its old head: the server sees
    # to that when it named its version, the checksum does otherwise.
    if have and (validator.exists() or download.checksum):
        request.add_header("Range", f"bytes={have}-")
        if validator.exists():
            request.add_header("If-Range", validator.read_text("ascii"))
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        span = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
        )
        resumed = response.status == 206 and span is not None and int(span[1]) == have
        if response.status == 206 and not resumed:
            part.unlink(missing_ok=True)
            raise http.client.HTTPException("the server sent another range than was asked for")
        length = response.headers.get("Content-Length")
        have = have if resumed else 0
        total = have + int(length) if length and length.isdecimal() else None
        if not resumed:
            _note_validator(response.headers, validator)
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total)
        if total is not None and have < total:
            raise http.client.HTTPException(f"connection lost after {have} of {total} bytes")


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _note_validator(headers: http.client.HTTPMessage, validator: Path) -> None:
    """Keep what identifies this version of the file; a weak tag does not, byte for byte."""
    tag = headers.get("ETag") or ""
    mark = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    if mark and mark.isascii() and mark.isprintable():
        validator.write_text(mark, "ascii")
    else:
        validator.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _verify(download: Download, part: Path) -> None:
    if download.checksum is None:
        return
    algorithm, _, expected = download.checksum.partition(":")
    with open(part, "rb") as file:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        part.unlink()
        _validator_file(part).unlink(missing_ok=True)
        raise CorpusError(
            f"{download.url}: the {algorithm} checksum is {digest.hexdigest()}, but {expected} was "
            "published; the download was removed, start it again"
        )


def _refuse_unsafe(
    archive: Path, infos: list[zipfile.ZipInfo], max_bytes: int, max_files: int
) -> None:
    """Look at every member before the first byte is written."""
    if len(infos) > max_files or sum(info.file_size for info in infos) > max_bytes:
        raise CorpusError(
            f"{archive}: unpacks to more than {max_files} files or {max_bytes} bytes; refused"
        )
    seen: set[str] = set()
    for info in infos:
        name, kind = info.filename, stat.S_IFMT(info.external_attr >> 16)
        reason = None
        if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
            reason = "leads out of the folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            reason = "is a link or a device"
        elif info.flag_bits & 0x1:
            reason = "is encrypted"
        elif name.rstrip("/").casefold() in seen:
            reason = "occurs twice"
        if reason:
            raise CorpusError(f"{archive}: member {name!r} {reason}; nothing was unpacked")
        seen.add(name.rstrip("/").casefold())

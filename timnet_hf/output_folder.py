# SPDX-License-Identifier: Apache-2.0
"""Folders that long work writes into: one process at a time, plain words when a disk is full."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = [
    "in_one_step",
    "remove_stale",
    "replace_durably",
    "sole_use",
    "told_when_full",
    "write_json",
]

#: Held by the process at work; gone with it, however it ends.
_LOCK = ".lock"
#: What libraries say of a file that could not be written to its end; the first three are torch's.
_SAYINGS = (
    "PytorchStreamWriter failed writing",
    "iostream error",
    ". unexpected pos",
    "No space left on device",
)


@contextmanager
def sole_use(folder: Path, refusal: type[ValueError]) -> Iterator[None]:
    """Make a folder, and be the only process at work in it.

    The lock is the operating system's, so a process that was killed holds none. A folder that
    stays empty is removed again.

    Args:
        folder: The folder.
        refusal: What is raised where another process, or this one, is at work there already.

    Raises:
        OSError: The folder cannot be made or written to; the message names it.
    """
    from filelock import FileLock, Timeout

    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise refusal(
            f"{folder}: another process is at work there. Wait until it is done, or choose another "
            "output folder."
        ) from None
    except OSError as error:
        reason = f"{error.strerror or error}; choose another output folder"
        raise type(error)(error.errno, reason, str(folder)) from error
    try:
        yield
    finally:
        # Unlinked before it is released: whoever had it open already sees that, and tries again.
        with suppress(PermissionError):  # Windows removes no file that is open
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        if made and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def in_one_step(path: Path) -> Iterator[Path]:
    """Lend a hidden name beside a file; what was written there becomes the file, whole or not.

    Where the block fails, a file that was there stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove what `tempfile.mkdtemp` made beside a folder for a process that was then killed."""
    for stale in folder.parent.glob(f".{glob.escape(folder.name)}.????????.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, and the folders above it, so that nobody ever sees half of it.

    Raises:
        ValueError: A number is not finite, which JSON does not know.
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, allow_nan=False, default=list)
    with in_one_step(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def replace_durably(temporary: Path, path: Path) -> None:
    """Give a file its final name once it is on the disk: a power cut leaves all of it, or none."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def told_when_full(folder: Path, remedy: str) -> Iterator[None]:
    """Name the folder and the remedy where what was to be stored in it does not fit.

    Libraries that write from compiled code report a full disk in ways of their own.

    Raises:
        OSError: With the number of the system's own error.
    """
    try:
        yield
    except Exception as error:
        number = _full(error)
        if number is None:
            raise
        told = f"the disk is full or the quota used up; {remedy}"
        raise OSError(number, told, str(folder)) from error


def _full(error: BaseException) -> int | None:
    """The system's number where an error, or one that led to it, means that no space is left."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in numbers:
            return cause.errno
        text = str(cause)
        for number in numbers:
            if f"os error {number}" in text or f"code: {number}," in text:
                return number  # safetensors, which is written in Rust
        if any(saying in text for saying in _SAYINGS):
            return errno.ENOSPC
        cause = cause.__cause__ or cause.__context__
    return None

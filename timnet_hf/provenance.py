# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: the versions of everything that had a hand in it."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

#: Packages whose version can change a result.
_PACKAGES = (
    "timnet-hf",
    "torch",
    "torchaudio",
    "transformers",
    "datasets",
    "accelerate",
    "numpy",
    "numba",
    "scipy",
    "scikit-learn",
    "soundfile",
    "soxr",
)


def versions(*more: str) -> dict[str, str]:
    """Version of Python, of each package that is installed, and of ``more`` packages."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_checksum() -> str:
    """Of the package's own modules, short: what tells two states of one version apart."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


__all__ = ["code_checksum", "versions"]

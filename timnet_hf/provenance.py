# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: the versions of everything that had a hand in it."""

from __future__ import annotations

import platform
from importlib import metadata

#: Packages whose version can change a result.
_PACKAGES = (
    "timnet-hf",
    "torch",
    "torchaudio",
    "transformers",
    "datasets",
    "accelerate",
    "numpy",
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


__all__ = ["versions"]

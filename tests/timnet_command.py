# SPDX-License-Identifier: Apache-2.0
"""The `timnet` command, run in the process of the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from timnet_hf import cli


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What was said of an error, on one line."""
        return " ".join(self.err.split())


Timnet = Callable[..., Ended]


def in_this_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Timnet:
    """Make a function that takes the command's arguments and runs it to its end."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["timnet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run

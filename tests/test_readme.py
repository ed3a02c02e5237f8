# SPDX-License-Identifier: Apache-2.0
"""The table in `README.md` beside this file: every test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
#: Short name in the table → file.
FILES = dict(re.findall(r"\*(\w+)\*(?:\s+is)?\s+`(test_\w+\.py)`", TEXT))


def rows() -> list[tuple[str, str]]:
    """(check, test) of every row."""
    found = re.findall(r"^\| (.+?) \| (.+) \|$", TEXT, re.MULTILINE)
    return [row for row in found if row[0] not in ("check", "---")]


def test_every_test_that_the_table_names_exists() -> None:
    named = 0
    for check, test in rows():
        file = ""
        for short, name in re.findall(r"(?:\*(\w+)\* )?`(test_\w+)`", test):
            file = FILES[short] if short else file
            source = (FOLDER / file).read_text(encoding="utf-8")
            assert re.search(rf"def {name}\(", source), f"{check}: no {name} in {file}"
            named += 1
    assert named > 60


def test_every_check_has_a_test_or_a_reason() -> None:
    for check, test in rows():
        assert "`test_" in test or "does not apply: " in test, check


def test_no_check_stands_there_twice() -> None:
    checks = [name for check, _ in rows() for name in re.findall(r"\btest_\w+\b", check)]
    assert len(checks) == len(set(checks)) and len(checks) > 80

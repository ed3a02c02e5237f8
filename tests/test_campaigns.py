# SPDX-License-Identifier: Apache-2.0
"""The long campaigns of `scripts/`, in little; and what the long runs left in `results/`."""

from __future__ import annotations

import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
FUZZ = runpy.run_path(str(SCRIPTS / "fuzz.py"))
LOAD = runpy.run_path(str(SCRIPTS / "load_test.py"))
CRASH = runpy.run_path(str(SCRIPTS / "crash_campaign.py"))


def damaged(data: bytes, chance: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(content)) if content else 0
        what = chance.randrange(4)
        if what == 0:
            content[at : at + 1] = bytes([chance.randrange(256)])
        elif what == 1:
            del content[at : at + chance.randrange(40)]
        elif what == 2:
            content[at:at] = chance.choice([b"\xff" * 4, b"\0" * 9, b"1e999", b'"', b"-1", b","])
        else:
            content = content[: at + 1]
    return bytes(content)


@pytest.mark.parametrize("name", [name for name in FUZZ["READERS"] if name != "ffmpeg"])
def test_damaged_files_end_well_or_as_promised(name: str, tmp_path: Path) -> None:
    """What `fuzz.py` does for hours, for some dozen inputs of every reader."""
    which = FUZZ["shutil"].which
    try:
        reader, promised, seeds = FUZZ["make_reader"](name, tmp_path)
        chance = random.Random(name)
        accepted = 0
        for seed in seeds:
            try:
                reader(seed)
                accepted += 1
            except promised:  # the page reads fewer formats than the command
                assert name == "space"
        assert accepted
        for _ in range(40):
            try:
                reader(damaged(chance.choice(seeds), chance))
            except promised as error:
                assert str(error).strip()
    finally:
        FUZZ["shutil"].which = which


@pytest.mark.parametrize("name", ["config", "preprocessor", "record", "report", "speaker"])
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"mean": [1' + b"0" * 400 + b'], "std": [1], "frames": 1, "features": {}, "name": "", '
        b'"recordings": 1}',
        b"null",
        b"\xff\xfe",
        b'{"num_labels": 1e9, "hidden_size": 1e9, "sampling_rate": 1e9}',
    ],
    ids=range(6),
)
def test_json_that_is_made_to_harm_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    reader, promised, _ = FUZZ["make_reader"](name, tmp_path)
    with pytest.raises(promised):
        reader(data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_recordings_that_lie_go_through_everything(tmp_path: Path, ffmpeg: str) -> None:
    command = [sys.executable, str(SCRIPTS / "audio_campaign.py"), "--inputs", "40", "--seed", "7"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "result.json")]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["findings"] == [] and result["inputs"] == 40
    assert result["stages"]["command"] == {"ok": 1}
    for stage in ("decode", "network", "pipeline", "prediction", "space"):
        assert result["stages"][stage]["ok"] > 5, "most of it would be refused otherwise"


def test_the_same_number_gives_the_same_recording() -> None:
    campaign = runpy.run_path(str(SCRIPTS / "audio_campaign.py"))
    assert campaign["make_input"](3, 1) == campaign["make_input"](3, 1)
    assert campaign["make_input"](3, 1) != campaign["make_input"](4, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"half": '),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{"),
        ("out.parquet", b"PAR1"),
        ("corpus.zip", b"PK\3\4"),
        ("plot.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_the_crash_campaign_sees_a_torn_file(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / f".{name}").write_bytes(content)
    assert [what.partition(":")[0] for what in CRASH["complaints"](tmp_path)] == [name]


def test_the_load_test_sees_what_does_not_hold() -> None:
    good: dict[str, Any] = {
        "errors_of_good_recordings": [],
        "outcomes": {"good: ok": 1},
        "stuck_visitors": 0,
        "memory_mib": {"growth": 0, "peak": 1},
        "files_when_idle": 0,
        "files_after_the_end": 0,
    }
    assert LOAD["failures"](good) == []
    for change in (
        {"errors_of_good_recordings": ["x"]},
        {"outcomes": {}},
        {"stuck_visitors": 1},
        {"memory_mib": {"growth": 10**4, "peak": 1}},
        {"memory_mib": {"growth": 0, "peak": 10**6}},
        {"files_when_idle": 1},
        {"files_after_the_end": 1},
    ):
        assert len(LOAD["failures"]({**good, **change})) == 1


# --- the long runs ------------------------------------------------------------------------------


def result_of(name: str) -> dict[str, Any]:
    path = REPOSITORY / "results" / name
    if not path.exists():
        pytest.skip(f"{path} is not there: its campaign was not run")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_half_an_hour_of_fuzzing_found_nothing_that_is_still_there() -> None:
    result = result_of("fuzz.json")
    assert result["findings"] == [] and result["minutes"] >= 30
    assert set(result["readers"]) == set(FUZZ["READERS"])
    assert all(reader["inputs"] for reader in result["readers"].values())


def test_ten_thousand_recordings_found_nothing_that_is_still_there() -> None:
    result = result_of("audio_campaign.json")
    assert result["findings"] == [] and result["inputs"] >= 10_000


def test_fifty_kills_tore_nothing() -> None:
    result = result_of("crashes.json")
    assert result["kills"] >= 50 and result["findings"] == 0
    assert all(job["kills"] >= 5 for job in result["jobs"].values())


def test_fifty_visitors_for_ten_minutes_broke_nothing() -> None:
    result = result_of("load.json")
    assert result["failures"] == [] and result["visitors"] >= 50 and result["minutes"] >= 10

# SPDX-License-Identifier: Apache-2.0
"""The demo clips are small, decodable, synthetic, and what their script makes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    """The script that makes the clips, imported without being run."""
    path = repository / "scripts" / "make_demo_clips.py"
    spec = importlib.util.spec_from_file_location("make_demo_clips", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "timnet_hf" / "demo_clips"


def test_the_folder_holds_the_clips_of_the_script_and_nothing_else(
    script: ModuleType, folder: Path
) -> None:
    clips = {f"{clip.name}.flac" for clip in script.CLIPS}

    assert {path.name for path in folder.iterdir()} == {"README.md", *clips}
    assert 4 <= len(clips) <= 6


def test_clips_are_short_small_and_neither_silent_nor_clipped(folder: Path) -> None:
    for path in folder.glob("*.flac"):
        waveform, rate = soundfile.read(path, dtype="float32")
        assert (rate, waveform.ndim) == (16_000, 1), path.name
        assert 1.5 < waveform.size / rate < 5, path.name
        assert path.stat().st_size < 60_000, path.name
        assert 0.01 < np.sqrt(np.mean(waveform**2)) < 0.3, path.name
        assert np.abs(waveform).max() < 0.999, path.name


def test_the_readme_names_every_clip_and_says_that_the_voice_feels_nothing(
    script: ModuleType, folder: Path
) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")

    assert "synthetic voice" in readme and "no feelings" in readme
    assert f"espeak-ng {script.ESPEAK_VERSION}" in readme
    for clip in script.CLIPS:
        assert f"`{clip.name}.flac`" in readme
        assert clip.text in readme


def test_the_script_makes_the_committed_clips_sample_for_sample(
    script: ModuleType, folder: Path, tmp_path: Path
) -> None:
    version = script.espeak_version()
    if version != script.ESPEAK_VERSION:
        pytest.skip(f"needs espeak-ng {script.ESPEAK_VERSION}, here is {version}")

    for path in script.make_clips(tmp_path / "new"):
        made, _ = soundfile.read(path, dtype="int16")
        committed, _ = soundfile.read(folder / path.name, dtype="int16")
        np.testing.assert_array_equal(made, committed, err_msg=path.name)


def test_without_espeak_the_script_says_what_to_install(repository: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, repository / "scripts" / "make_demo_clips.py", "--output-dir", tmp_path],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 2
    assert "espeak-ng is not installed" in run.stderr
    assert not list(tmp_path.iterdir())

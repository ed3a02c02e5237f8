# SPDX-License-Identifier: Apache-2.0
"""``scripts/channels.py`` compares what a recording and its versions are answered."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))

import channels  # noqa: E402


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Two recordings of half a second: a loud one and a soft one."""
    made = []
    for number, level in enumerate((0.2, 0.01)):
        samples = level * np.random.default_rng(number).standard_normal(8_000)
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, samples, 16_000)
        made.append(str(path))
    return made


class Loudness:
    """A scorer that takes what is loud for anger: a change of level changes its answer."""

    sampling_rate, num_samples, labels = 16_000, None, ("angry", "calm")

    def score(self, waveforms: Any) -> tuple[np.ndarray, np.ndarray]:
        shares = [float(np.clip(one.std() / 0.15, 0, 1)) for one in waveforms]
        return np.array([[share, 1 - share] for share in shares]), np.ones(len(shares))


def test_a_change_of_level_shows_in_a_scorer_that_hears_it(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"flac": channels.VERSIONS["flac"], "12 dB softer": channels.VERSIONS["12 dB softer"]}
    monkeypatch.setattr(channels, "VERSIONS", chosen)

    told = channels.measure(paths, Loudness(), say=lambda _: None)

    assert told["flac"]["same_label_percent"] == 100
    assert told["flac"]["mean_difference"] < 1e-3
    # At a quarter of its level the loud one is no longer angry.
    assert told["12 dB softer"]["same_label_percent"] == 50
    assert told["12 dB softer"]["mean_difference"] > 0.2
    assert channels.short_of(told) == ["12 dB softer"]


@pytest.mark.parametrize(
    "name", [n for n in channels.VERSIONS if "ffmpeg" not in n and n[0] != "m"]
)
def test_every_version_is_a_file_with_the_sound_in_it(
    name: str, paths: list[str], tmp_path: Path
) -> None:
    samples, rate = soundfile.read(paths[0], dtype="float32")

    made = channels.VERSIONS[name](Path(paths[0]), samples, rate, tmp_path)

    info = soundfile.info(made)
    heard, _ = soundfile.read(made)
    assert heard.std() > 0.03  # of 0.2; a quarter of that 12 dB softer
    silence = {"before": 0.3, "after": 0.3, "ends": 0.6}.get(name.split()[-1], 0.0)
    assert info.duration == pytest.approx(0.5 + silence, abs=0.01)
    if " Hz by" in name:
        assert info.samplerate == int(name.split()[0])


def test_eight_kilohertz_is_reported_and_not_held_to_it() -> None:
    far = {"same_label_percent": 50.0, "mean_difference": 0.3}
    assert channels.short_of({"8000 Hz by soxr": far, "22050 Hz by soxr": far}) == [
        "22050 Hz by soxr"
    ]


def test_a_recording_that_cannot_be_read_ends_the_measurement(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"1 recordings could not be scored: .*gone\.wav"):
        channels.measure([str(tmp_path / "gone.wav")], Loudness(), say=lambda _: None)

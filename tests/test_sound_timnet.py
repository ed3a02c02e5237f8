# SPDX-License-Identifier: Apache-2.0
"""Sound in: files in blocks, any rate to the model's, and speech told from silence."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from timnet_hf.audio import load_audio, resample
from timnet_hf.sound_timnet import EnergyDetector, SileroDetector, StreamResampler, decode_blocks


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make modules look as if they were not installed."""

    def hide(*names: str) -> None:
        real = builtins.__import__

        def importing(name: str, *args: Any, **kwargs: Any) -> Any:
            if name in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", importing)

    return hide


def in_pieces(resampler: StreamResampler, sound: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    pieces, position = [], 0
    while position < len(sound):
        size = int(rng.integers(0, 5_000))
        pieces.append(resampler.feed(sound[position : position + size]))
        position += size
    return np.concatenate([*pieces, resampler.finish()])


# --- rates ------------------------------------------------------------------------------------

RATES = [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (16_000, 22_050), (22_050, 16_000)]


@pytest.mark.parametrize(("orig", "target"), RATES)
def test_block_by_block_equals_the_whole_in_one_piece(
    make_speech: Callable[..., np.ndarray], orig: int, target: int
) -> None:
    sound = make_speech(1.3, orig)
    done = in_pieces(StreamResampler(orig, target), sound, seed=1)
    np.testing.assert_array_equal(done, resample(sound, orig, target))


@pytest.mark.parametrize(("orig", "target"), RATES)
def test_torchaudio_stands_in_for_soxr(
    make_speech: Callable[..., np.ndarray],
    without: Callable[..., None],
    orig: int,
    target: int,
) -> None:
    sound = make_speech(1.3, orig)
    expected = resample(sound, orig, target)
    without("soxr")
    done = in_pieces(StreamResampler(orig, target), sound, seed=1)
    again = in_pieces(StreamResampler(orig, target), sound, seed=2)
    assert done.shape == expected.shape
    np.testing.assert_allclose(done, again, atol=1e-6)
    # They differ only in the transition band of the two filters.
    assert np.sqrt(np.mean((done - expected) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize(("orig", "target"), [*RATES, (192_000, 16_000), (1_000, 16_000)])
def test_no_more_is_held_back_than_stated(orig: int, target: int) -> None:
    resampler = StreamResampler(orig, target)
    given = 0
    for block in range(1, 301):
        given += len(resampler.feed(np.zeros(orig // 100, dtype=np.float32)))
        assert block / 100 - given / target <= resampler.delay


def test_a_rate_that_no_recording_has_is_refused() -> None:
    with pytest.raises(ValueError, match="999 Hz is under 1,000 Hz"):
        StreamResampler(999, 16_000)


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def stereo_file(tmp_path: Path, make_speech: Callable[..., np.ndarray]) -> Path:
    left, right = make_speech(2.5, 44_100, seed=1), make_speech(2.5, 44_100, seed=2)
    path = tmp_path / "stereo.flac"
    soundfile.write(path, np.stack((left, right), axis=1), 44_100)
    return path


def test_with_the_package_its_decoder_decodes(stereo_file: Path) -> None:
    expected = load_audio(stereo_file, 16_000)
    for source in (stereo_file, str(stereo_file), stereo_file.read_bytes()):
        np.testing.assert_array_equal(np.concatenate([*decode_blocks(source, 16_000)]), expected)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_without_the_package_the_samples_are_the_same(
    stereo_file: Path, without: Callable[..., None], rate: int
) -> None:
    expected = load_audio(stereo_file, rate)
    without("timnet_hf.audio")
    for source in (stereo_file, stereo_file.read_bytes()):
        blocks = list(decode_blocks(source, rate))
        assert max(map(len, blocks)) <= 1.1 * rate
        np.testing.assert_array_equal(np.concatenate(blocks), expected)


def test_without_any_decoder_the_error_says_what_to_install(
    stereo_file: Path, without: Callable[..., None]
) -> None:
    without("timnet_hf.audio", "soundfile")
    with pytest.raises(ImportError, match="pip install soundfile"):
        next(decode_blocks(stereo_file, 16_000))


@pytest.mark.parametrize("package", [True, False])
def test_what_is_no_recording_is_an_error_that_names_it(
    tmp_path: Path, without: Callable[..., None], package: bool
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"this is no sound" * 100)
    if not package:
        without("timnet_hf.audio")
    for path in (broken, tmp_path / "absent.wav"):
        with pytest.raises(ValueError, match=path.name):
            next(decode_blocks(path, 16_000))


def test_bytes_are_a_file_and_not_samples() -> None:
    wav = io.BytesIO()
    soundfile.write(wav, np.full(800, 0.5), 8_000, format="WAV")
    assert len(np.concatenate([*decode_blocks(wav.getvalue(), 16_000)])) == 1_600


# --- speech or silence ------------------------------------------------------------------------


def heard(detector: EnergyDetector | SileroDetector, sound: np.ndarray) -> np.ndarray:
    """Decision for each frame."""
    whole = len(sound) // detector.frame_length
    frames = sound[: whole * detector.frame_length].reshape(whole, -1)
    decisions = [*detector.feed(frames[: whole // 3]), *detector.feed(frames[whole // 3 :])]
    return np.array([*decisions, *detector.finish()])


def noise(level: float, seconds: float, seed: int = 0) -> np.ndarray:
    """White noise at a level in dBFS."""
    samples = np.random.default_rng(seed).standard_normal(round(16_000 * seconds))
    return (10 ** (level / 20) * samples).astype(np.float32)


@pytest.mark.parametrize("level", [-120, -80, -60, -50])
def test_a_pause_is_silence_whatever_the_room_sounds_like(
    make_speech: Callable[..., np.ndarray], level: float
) -> None:
    sound = np.concatenate([np.zeros(16_000), make_speech(2.0), np.zeros(16_000)])
    decisions = heard(EnergyDetector(16_000), sound.astype(np.float32) + noise(level, 4))
    assert decisions.shape == (200,)
    assert not decisions[:49].any()
    assert decisions[50:150].mean() > 0.5
    assert not decisions[151:].any()


@pytest.mark.parametrize("gain", [0.3, 0.1, 0.02])
def test_a_soft_recording_is_heard_like_a_loud_one(
    make_speech: Callable[..., np.ndarray], gain: float
) -> None:
    sound = np.concatenate([make_speech(2.0), np.zeros(16_000, dtype=np.float32)])
    loud, soft = (heard(EnergyDetector(16_000), sound * level) for level in (1.0, gain))
    assert (loud == soft).mean() > 0.8


def test_steady_sound_is_sound_and_the_hiss_of_a_room_is_not() -> None:
    tone = np.sin(np.arange(32_000) / 20).astype(np.float32)
    assert heard(EnergyDetector(16_000), 0.5 * tone).all()
    assert heard(EnergyDetector(16_000), noise(-20, 2)).all()
    assert not heard(EnergyDetector(16_000), noise(-60, 2)).any()


def test_an_offset_of_the_converter_is_no_sound() -> None:
    assert not heard(EnergyDetector(16_000), np.full(32_000, 0.3, dtype=np.float32)).any()


def test_silero_not_installed_is_an_error_that_says_what_to_do(
    without: Callable[..., None],
) -> None:
    without("silero_vad")
    with pytest.raises(ImportError, match='pip install silero-vad, or use vad="energy"'):
        SileroDetector(16_000)

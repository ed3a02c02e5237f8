# SPDX-License-Identifier: Apache-2.0
"""From a recording to a waveform: what librosa gives, in one piece, in a stream, of any length."""

from __future__ import annotations

import io
import math
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from timnet_hf import audio, decoding
from timnet_hf.audio import (
    AudioError,
    audio_info,
    find_audio_files,
    load_audio,
    natural_key,
    resample,
    stream_audio,
)

RATES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000]


def encode(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    shape = (samples, channels)
    return np.random.default_rng(seed).uniform(-0.9, 0.9, shape).astype(np.float32)


@pytest.fixture(scope="module")
def librosa() -> ModuleType:
    return pytest.importorskip("librosa")


def same_as_librosa(librosa: ModuleType, path: Path, rate: int) -> None:
    expected, _ = librosa.load(path, sr=rate)
    actual = load_audio(path, rate)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)


# --- equal to librosa --------------------------------------------------------------------------


@pytest.mark.parametrize("target", [16_000, 22_050])
@pytest.mark.parametrize("rate", RATES)
def test_equals_librosa_at_every_rate(
    librosa: ModuleType, rate: int, target: int, tmp_path: Path
) -> None:
    for samples in (1, 2, 999, rate // 2 + 1, 3 * rate):
        (tmp_path / "a.wav").write_bytes(encode(noise(samples, 2), rate))
        same_as_librosa(librosa, tmp_path / "a.wav", target)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("CAF", "FLOAT")],
)
def test_equals_librosa_in_every_format(
    librosa: ModuleType, kind: str, subtype: str, channels: int, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(encode(noise(30_000, channels), 44_100, kind, subtype))
    same_as_librosa(librosa, path, 22_050)


def test_equals_librosa_on_mp3(librosa: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(encode(noise(100_000, 2), 44_100, "MP3", "MPEG_LAYER_III"))
    same_as_librosa(librosa, path, 22_050)


def test_equals_librosa_on_real_speech(librosa: ModuleType, shared_dir: Path) -> None:
    paths = sorted((shared_dir / "data" / "formats").glob("*.wav"))
    paths += sorted((shared_dir / "data" / "emodb" / "wav").glob("*.wav"))[::100]
    paths += sorted((shared_dir / "data" / "ravdess" / "Actor_01").glob("*.flac"))[:2]
    assert len(paths) > 8
    for path in paths:
        same_as_librosa(librosa, path, 22_050)


# --- load --------------------------------------------------------------------------------------


@given(
    samples=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 300), st.integers(1, 6)),
        elements=st.floats(-100, 100, width=32),
    ),
    rate=st.integers(1_000, 768_000),
    subtype=st.sampled_from(["FLOAT", "DOUBLE"]),
)
def test_a_float_recording_comes_back_as_the_mean_of_its_channels(
    samples: np.ndarray, rate: int, subtype: str
) -> None:
    waveform = load_audio(encode(samples, rate, subtype=subtype), rate)

    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, samples.mean(axis=1))


@given(
    samples=st.integers(1, 3_000),
    rate=st.integers(1_000, 100_000),
    target=st.integers(1_000, 100_000),
)
def test_the_length_is_rounded_up(samples: int, rate: int, target: int) -> None:
    waveform = load_audio(encode(noise(samples), rate), target)

    assert waveform.shape == (math.ceil(samples * (target / rate)),)
    assert np.isfinite(waveform).all()


def test_the_channels_are_averaged() -> None:
    left, right = noise(1_000, 2).T
    waveform = load_audio(encode(np.stack([left, right], axis=1), 16_000), 16_000)

    np.testing.assert_allclose(waveform, (left + right) / 2, atol=1e-7)


def test_too_long_a_recording_is_refused_whether_its_header_tells_or_not() -> None:
    samples = noise(16_000 * 3 + 1)
    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")):
        data = encode(samples, 16_000, kind, subtype)
        with pytest.raises(AudioError, match="talk: is longer than 3 seconds; .*stream_audio"):
            load_audio(data, 22_050, name="talk", max_duration=3)
        assert len(load_audio(data, 22_050, max_duration=3.001)) == 66_152
        assert len(load_audio(data, 22_050, max_duration=None)) == 66_152


def test_the_limit_is_four_hours_unless_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audio.MAX_DURATION == 4 * 3600
    path = tmp_path / "ten_hours.wav"
    with soundfile.SoundFile(path, "w", 1_000, 1, "PCM_U8") as file:
        for _ in range(10):
            file.write(np.zeros(3_600_000, dtype=np.int16))

    with pytest.raises(AudioError, match="ten_hours.wav: is longer than 14400 seconds"):
        load_audio(path, 16_000)
    assert audio_info(path).duration == 36_000


@pytest.mark.parametrize("rate", [0, 999, 768_001, -16_000])
def test_a_rate_out_of_range_is_refused_at_the_call(rate: int) -> None:
    for call in (load_audio, stream_audio):
        with pytest.raises(ValueError, match=f"sampling rate {rate} Hz is outside 1000 to 768000"):
            call(b"", rate)
    with pytest.raises(ValueError, match="sampling rate"):
        resample(np.zeros(9), 16_000, rate)
    with pytest.raises(TypeError):
        load_audio(b"", 22_050.5)  # type: ignore[arg-type]


def test_errors_of_decoding_pass_through() -> None:
    samples = noise(50_000)
    samples[40_000] = np.nan
    data = encode(samples, 16_000)
    for call in (
        lambda: load_audio(data, 22_050, name="a.wav"),
        lambda: list(stream_audio(data, 22_050, name="a.wav")),
    ):
        with pytest.raises(AudioError, match=r"^a.wav: sample 40000 of channel 1 \(2.500 s\)"):
            call()


# --- stream ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    samples=st.integers(1, 60_000),
    rate=st.sampled_from(RATES),
    target=st.sampled_from(RATES),
    block_duration=st.floats(0.01, 5),
    block_values=st.sampled_from([1_000, 7_777, 2**18]),
)
def test_a_stream_joined_is_the_recording(
    samples: int, rate: int, target: int, block_duration: float, block_values: int
) -> None:
    data = encode(noise(samples), rate)
    whole = load_audio(data, target)

    with pytest.MonkeyPatch.context() as patch:  # however the file is cut while it is decoded
        patch.setattr(decoding, "_BLOCK_VALUES", block_values)
        blocks = list(stream_audio(data, target, block_duration))

    size = max(1, round(block_duration * target))
    assert all(len(block) == size for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= size
    assert all(block.dtype == np.float32 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_a_stream_of_hours_takes_the_memory_of_seconds(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_U8") as file:
        for _ in range(5):
            file.write(np.zeros(8_000 * 3600, dtype=np.int16))

    tracemalloc.start()
    try:
        samples = sum(len(block) for block in stream_audio(path, 8_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert samples == 5 * 3600 * 8_000, "longer than load_audio takes"
    assert peak < 20e6, "where the waveform is 576 MB"


def test_a_stream_delivers_what_comes_before_a_bad_sample() -> None:
    samples = noise(16_000 * 60)
    samples[-1] = np.inf
    blocks = stream_audio(encode(samples, 16_000), 16_000, 1.0)

    np.testing.assert_array_equal(next(blocks), samples[:16_000, 0])
    with pytest.raises(AudioError, match="sample 959999 "):
        list(blocks)


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf])
def test_a_block_has_a_positive_duration(seconds: float) -> None:
    with pytest.raises(ValueError, match="block_duration"):
        stream_audio(b"", 16_000, seconds)


# --- info --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "ULAW")],
)
def test_info_tells_what_is_there(kind: str, subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "a b.bin"
    path.write_bytes(encode(noise(24_000, 2), 48_000, kind, subtype))

    assert audio_info(path) == audio.AudioInfo(str(path), 48_000, 2, 24_000, 0.5, kind)


def test_info_of_a_header_that_lies_is_the_truth() -> None:
    data = bytearray(encode(noise(24_000), 48_000, "WAV", "PCM_16"))
    data[data.index(b"data") + 4 :][:4] = b"\xff\xff\xff\x7f"
    assert audio_info(bytes(data)[:20_044], name="cut").frames == 10_000

    flac = bytearray(encode(noise(24_000), 48_000, "FLAC", "PCM_16"))
    flac[22:26] = b"\xff\xff\xff\xff"  # the length in STREAMINFO
    assert audio_info(bytes(flac)).frames == len(load_audio(bytes(flac), 48_000)) <= 24_000


def test_info_of_what_cannot_be_decoded_is_an_error() -> None:
    with pytest.raises(AudioError, match="holds no samples"):
        audio_info(encode(noise(0), 16_000))


# --- resample ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "target"), [(16_000, 22_050), (48_000, 16_000), (44_100, 44_101)])
def test_resampling_an_array_is_what_loading_does(rate: int, target: int) -> None:
    samples = noise(50_000)

    resampled = resample(samples[:, 0], rate, target)

    np.testing.assert_array_equal(resampled, load_audio(encode(samples, rate), target))


def test_resampling_to_the_same_rate_is_a_copy() -> None:
    waveform = noise(10)[:, 0]
    copy = resample(waveform, 16_000, 16_000)

    np.testing.assert_array_equal(copy, waveform)
    assert not np.shares_memory(copy, waveform)


def test_resampling_keeps_a_tone_and_removes_what_does_not_fit() -> None:
    time = np.arange(48_000) / 48_000
    tone = resample(np.sin(2 * np.pi * 1_000 * time), 48_000, 16_000)
    hiss = resample(np.sin(2 * np.pi * 12_000 * time), 48_000, 16_000)

    middle = slice(2_000, -2_000)
    expected = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(tone[middle], expected[middle], atol=1e-4)
    assert np.abs(hiss[middle]).max() < 1e-4


@pytest.mark.parametrize(
    ("waveform", "complaint"),
    [
        (np.zeros((10, 2)), r"shape \(10, 2\); give one channel"),
        (np.zeros(0), r"shape \(0,\)"),
        (np.float32(1), r"shape \(\)"),
        (np.zeros(10, dtype=np.int16), "holds int16; divide"),
        (np.array([0, np.nan]), "NaN or infinity"),
        (np.array([0, 1e300]), "NaN or infinity"),
    ],
)
def test_resample_refuses_what_is_no_waveform(waveform: np.ndarray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        resample(waveform, 16_000, 22_050)


# --- files and folders -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "10.wav", "9.WAV", "b/2.flac", "B/1.mp3", "a10/x.ogg", "a9/x.opus", "clip.m4a", "😀 -x.wav",
        "notes.txt", ".hidden.wav", "._9.wav", ".git/x.wav", "b/wav", "Thumbs.db",
    ):  # fmt: skip
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def test_a_folder_stands_for_its_recordings_in_natural_order(folder: Path) -> None:
    found = [path.relative_to(folder).as_posix() for path in find_audio_files([folder])]

    assert found == [
        "9.WAV", "10.wav", "a9/x.opus", "a10/x.ogg", "B/1.mp3", "b/2.flac", "clip.m4a", "😀 -x.wav",
    ]  # fmt: skip


def test_files_are_taken_as_given_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    found = find_audio_files(["notes.txt", "missing.wav", folder / "10.wav", "10.wav", "b", "b/"])

    assert [str(path) for path in found] == [
        "notes.txt", "missing.wav", str(folder / "10.wav"), "b/2.flac",
    ]  # fmt: skip
    assert find_audio_files([]) == []


def test_links_to_folders_cannot_make_a_loop(folder: Path) -> None:
    (folder / "loop").symlink_to(folder)

    assert len(find_audio_files([folder])) == 8


def test_a_folder_that_cannot_be_listed_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = audio.os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(audio.os, "scandir", refuse)

    assert len(find_audio_files([folder])) == 7
    assert "cannot be listed (Permission denied)" in caplog.text


@given(st.lists(st.text(st.characters(blacklist_characters="\0"), max_size=9)))
def test_natural_order_takes_any_names(names: list[str]) -> None:
    assert sorted(names[::-1], key=natural_key) == sorted(names, key=natural_key)
    assert sorted(["x10", "x9", "X1", "x²"], key=natural_key) == ["X1", "x9", "x10", "x²"]

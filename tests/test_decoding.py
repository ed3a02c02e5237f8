# SPDX-License-Identifier: Apache-2.0
"""Recordings that lie: what is decoded as far as it goes, and what is refused by name."""

from __future__ import annotations

import io
import logging
import shutil
import struct
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from timnet_hf import decoding
from timnet_hf.decoding import AudioError, open_recording

RATE = 16_000
TONE = (0.4 * np.sin(2 * np.pi * 300 / RATE * np.arange(RATE))).astype(np.float32)
PLAIN = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("NIST", "PCM_16"),
]
PACKED = [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]


def encode(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str = "") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype or None)
    return file.getvalue()


def wav(
    rate: int = RATE, channels: int = 1, claimed: int | None = None, data: bytes = b""
) -> bytes:
    """A 16-bit WAV by hand, which may claim any number of bytes of data."""
    claimed = len(data) if claimed is None else claimed
    form = struct.pack("<HHIIHH", 1, channels, rate, (2 * rate) % 2**32, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", min(36 + claimed, 2**32 - 1)) + b"WAVEfmt "
        + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", claimed) + data
    )  # fmt: skip


def decode(source: decoding.AudioSource, name: str | None = None) -> np.ndarray:
    with open_recording(source, name) as recording:
        return np.concatenate(list(recording.blocks))


def run_ffmpeg(program: str, *arguments: str | Path) -> None:
    command = [program, "-nostdin", "-loglevel", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def no_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)


# --- what is there is what is decoded ----------------------------------------------------------


@pytest.mark.parametrize(("kind", "subtype"), PLAIN + PACKED)
def test_decodes_every_format_in_blocks_as_libsndfile_does_in_one_go(
    kind: str, subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stereo = np.stack([TONE, TONE[::-1] / 2], axis=1)
    data = encode(stereo, kind=kind, subtype=subtype)
    monkeypatch.setattr(decoding, "_BLOCK_VALUES", 2_000)  # a thousand frames

    with open_recording(data) as recording:
        blocks = list(recording.blocks)

    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert len(blocks) > 10
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=0, atol=1e-7)
    assert (recording.format, recording.sampling_rate, recording.channels) == (kind, RATE, 2)


@pytest.mark.parametrize(("kind", "subtype"), [p for p in PLAIN if p[0] != "CAF"])  # ffmpeg's case
@pytest.mark.parametrize("part", [0.5, 0.77, 0.999])
def test_truncated_uncompressed_file_is_decoded_to_its_last_sample(
    kind: str, subtype: str, part: float
) -> None:
    data = encode(TONE, kind=kind, subtype=subtype)
    data = data[: round(part * len(data))]

    with open_recording(data) as recording:
        decoded = np.concatenate(list(recording.blocks))[:, 0]

    assert recording.frames is not None
    assert abs(recording.frames - len(decoded)) <= 1
    assert part - 0.2 < len(decoded) / len(TONE) <= part
    np.testing.assert_allclose(decoded, TONE[: len(decoded)], atol=0.02)


@pytest.mark.parametrize(("kind", "subtype"), PACKED)
def test_truncated_compressed_file_is_decoded_up_to_the_break(kind: str, subtype: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE).astype(np.float32)
    data = encode(noise, kind=kind, subtype=subtype)
    whole = decode(data)

    decoded = decode(data[: int(0.7 * len(data))])

    assert 0.5 < len(decoded) / len(whole) < 0.75
    sure = len(decoded) - 2_000  # the last frame may fade
    np.testing.assert_array_equal(decoded[:sure], whole[:sure])


def test_damaged_flac_is_decoded_up_to_the_damage_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE).astype(np.float32)
    data = bytearray(encode(noise, kind="FLAC"))
    data[len(data) // 2] ^= 0xFF

    with caplog.at_level(logging.WARNING, "timnet_hf.decoding"):
        decoded = decode(bytes(data), "bad.flac")[:, 0]

    assert 0.3 < len(decoded) / len(noise) < 0.6
    np.testing.assert_allclose(decoded, noise[: len(decoded)], atol=1e-4)
    assert caplog.messages[0].startswith(f"bad.flac: decoding stopped at sample {len(decoded)} (")


def test_bytes_behind_the_audio_are_ignored() -> None:
    data = encode(TONE)

    np.testing.assert_array_equal(decode(data + b"\xff\xfb junk" * 999), decode(data))


@pytest.mark.parametrize("claimed", [2**31, 2**32 - 1, 2**32 - 2, 2**31 - 1])
def test_a_header_that_claims_gigabytes_costs_only_what_is_there(claimed: int) -> None:
    data = wav(claimed=claimed, data=bytes(2_000))

    tracemalloc.start()
    try:
        with open_recording(data) as recording:
            decoded = np.concatenate(list(recording.blocks))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert decoded.shape == (1_000, 1)
    assert recording.frames in (None, 1_000)
    assert peak < 20e6


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "GSM610", "PCM_16", "ULAW"])
def test_a_header_cannot_make_libsndfile_decode_out_of_nothing(subtype: str) -> None:
    data = bytearray(encode(TONE, kind="W64", subtype=subtype))
    data[data.index(b"data") + 16 + 7] = 0x99  # a length of data beyond all bounds, or negative

    try:
        decoded = decode(bytes(data))
    except AudioError:
        return
    assert len(decoded) < len(TONE) + 3_000


def test_flac_header_that_claims_too_much_is_not_believed() -> None:
    data = bytearray(encode(TONE, kind="FLAC"))
    data[21] |= 0x0F  # "fLaC", block header, then STREAMINFO: its 36 bits of length start here
    data[22:26] = b"\xff\xff\xff\xff"

    with open_recording(bytes(data)) as recording:
        decoded = np.concatenate(list(recording.blocks))

    assert recording.frames is None
    np.testing.assert_allclose(decoded[:, 0], TONE[: len(decoded)], atol=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_shortest_recordings(samples: int) -> None:
    assert decode(encode(TONE[:samples])).shape == (samples, 1)


def test_variable_rate_mp3_without_a_length_header_is_read_to_its_end(
    ffmpeg: str, tmp_path: Path
) -> None:
    # Quiet, then loud: libsndfile takes the first frame's bit rate for all.
    source, mp3 = tmp_path / "in.wav", tmp_path / "vbr.mp3"
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 3 * RATE) * np.repeat([1, 1e-4, 1], RATE)
    source.write_bytes(encode(np.concatenate([noise, noise])))
    run_ffmpeg(ffmpeg, "-i", source, "-q:a", "0", "-write_xing", "0", mp3)

    for form in (mp3, mp3.read_bytes()):
        assert len(decode(form)) == pytest.approx(6 * RATE, rel=0.05)


def test_an_mp3_whose_header_tells_its_length_is_believed(
    no_ffmpeg: None, caplog: pytest.LogCaptureFixture
) -> None:
    mp3 = encode(TONE, kind="MP3")
    frames = mp3[mp3.index(b"\xff") :]  # without the tags before
    picture = b"ID3\3\0\0" + bytes([0, 0, 100, 5]) + bytes(100 * 128 + 5)  # 7 bits in a byte

    for data in (mp3, frames, picture + frames):
        assert len(decode(data)) == len(TONE)
    assert not caplog.messages


def test_joined_mp3s_are_read_to_the_end_of_the_last(
    ffmpeg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = encode(TONE, kind="MP3")
    monkeypatch.setattr(decoding, "_BLOCK_VALUES", 5_000)

    assert len(decode(one * 3)) == pytest.approx(3 * len(decode(one)), rel=0.1)


def test_short_mp3_without_ffmpeg_is_read_as_far_as_libsndfile_goes(
    no_ffmpeg: None, caplog: pytest.LogCaptureFixture
) -> None:
    one = encode(np.tile(TONE, 10), kind="MP3")

    assert len(decode(one * 2, "joined.mp3")) == len(decode(one))
    assert "joined.mp3: decoding stopped" in caplog.text
    assert "install ffmpeg" in caplog.text


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "holds no bytes"),
        (b"RIFF", "finds audio in it"),
        (b"This is a text.\n" * 100, "finds audio in it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(300), "finds audio in it"),
        (bytes(4096), "finds audio in it"),
        (wav(data=b""), "holds no samples"),
        (wav(channels=0, data=bytes(100)), "Channel count is zero"),
        (wav(channels=65_535, data=bytes(100)), "Too many channels"),
        (wav(rate=1, data=bytes(100)), "its sampling rate is 1 Hz, outside 1000 to 768000"),
        (wav(rate=999, data=bytes(100)), "its sampling rate is 999 Hz"),
        (wav(rate=10_000_000, data=bytes(100)), "its sampling rate is 10000000 Hz"),
        (wav(rate=768_001, data=bytes(100)), "its sampling rate is 768001 Hz"),
    ],
)
def test_refuses_what_is_no_recording(data: bytes, complaint: str, ffmpeg: str) -> None:
    with pytest.raises(AudioError, match=complaint) as caught:
        decode(data, "upload 7")

    assert str(caught.value).startswith("upload 7: ")
    assert "; " in str(caught.value), "an error says what to do"


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (np.nan, r"sample 70001 of channel 2 \(4.375 s\) is nan"),
        (np.inf, r"sample 70001 of channel 2 \(4.375 s\) is inf"),
        (-np.inf, r"sample 70001 of channel 2 \(4.375 s\) is -inf"),
        (1e30, r"sample 70001 of channel 2 \(4.375 s\) is 1e\+30, beyond ±100"),
        (-32768, r"sample 70001 of channel 2 \(4.375 s\) is -32768, beyond ±100; .*full scale"),
    ],
)
def test_refuses_impossible_samples_and_says_where(value: float, complaint: str) -> None:
    samples = np.zeros((80_000, 2), dtype=np.float32)
    samples[70_001, 1] = value

    with pytest.raises(AudioError, match=complaint):
        decode(encode(samples, subtype="FLOAT"))


def test_double_samples_too_large_for_float32_are_infinite() -> None:
    with pytest.raises(AudioError, match="sample 0 of channel 1 .* is inf"):
        decode(encode(np.full(10, 1e300), subtype="DOUBLE"))


@pytest.mark.parametrize("level", [1.0, -1.0, 99.0, 1e-30, 0.0])
def test_loud_clipped_constant_and_silent_audio_is_audio(level: float) -> None:
    samples = np.full(500, level, dtype=np.float32)

    np.testing.assert_array_equal(decode(encode(samples, subtype="FLOAT"))[:, 0], samples)


def test_formats_without_a_real_signature_are_not_guessed(no_ffmpeg: None) -> None:
    data = encode(TONE, kind="MAT5", subtype="DOUBLE")

    with pytest.raises(AudioError, match="cannot decode it .*Format not recognised"):
        decode(data)


@pytest.mark.parametrize("data", [None, 3, np.zeros(100)])
def test_a_source_of_the_wrong_type_is_a_type_error(data: object) -> None:
    with pytest.raises(TypeError, match="give a path, the content of a file as bytes, or"):
        decode(data)  # type: ignore[arg-type]


# --- anything at all ---------------------------------------------------------------------------

SEEDS = [encode(TONE[:3_000], kind=kind, subtype=subtype) for kind, subtype in PLAIN + PACKED]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A recording with bytes changed, taken out and put in, most of them in the header."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from([32, 64, 128, len(data)]))
        at = draw(st.integers(0, min(end, len(data))))
        cut = draw(st.integers(0, 8))
        data[at : at + cut] = draw(st.binary(max_size=8))
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


@given(damaged() | st.binary(max_size=200))
@example(b"\xff\xfb\x90\x00" * 50)
@example(b"RIFF\xff\xff\xff\xffWAVEdata")
@example(b"fLaC" + b"\xff" * 60)
@example(b"OggS" + bytes(60))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    which, shutil.which = shutil.which, lambda program: None  # libsndfile alone: a program a
    try:  # case would take minutes
        with open_recording(data) as recording:
            blocks = list(recording.blocks)
    except AudioError as error:
        assert str(error).startswith("<bytes>: ") and "; " in str(error)  # noqa: PT018
    else:
        assert all(block.shape[1] == recording.channels >= 1 for block in blocks)
        assert all(np.abs(block).max() <= decoding.MAX_AMPLITUDE for block in blocks)
        assert recording.frames is None or abs(recording.frames - sum(map(len, blocks))) <= 1
    finally:
        shutil.which = which

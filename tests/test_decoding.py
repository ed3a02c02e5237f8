# SPDX-License-Identifier: Apache-2.0
"""Recordings that lie: what is decoded as far as it goes, and what is refused by name."""

from __future__ import annotations

import io
import logging
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
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
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(encode(TONE))
    return path


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


# --- the file system ---------------------------------------------------------------------------


def test_refuses_what_is_not_a_regular_file(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.wav"
    os.mkfifo(fifo)

    with pytest.raises(AudioError, match="pipe.wav: is not a regular file"):  # and does not wait
        decode(fifo)
    with pytest.raises(AudioError, match="/dev/zero: is not a regular file"):
        decode("/dev/zero")
    with pytest.raises(AudioError, match="is a folder"):
        decode(tmp_path)


def test_a_file_swapped_for_a_fifo_while_it_is_opened_is_refused(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_stat = os.stat
    fifo = clip.with_name("pipe")
    os.mkfifo(fifo)
    monkeypatch.setattr(os, "stat", lambda path: real_stat(clip))

    with pytest.raises(AudioError, match="is not a regular file"):
        decode(fifo)


def test_missing_dangling_empty_looping_and_impossible_names(tmp_path: Path) -> None:
    dangling, loop, empty = tmp_path / "dangling", tmp_path / "loop", tmp_path / "empty.wav"
    dangling.symlink_to("nowhere")
    loop.symlink_to(loop)
    empty.touch()

    for path, complaint in [
        (tmp_path / "missing.wav", "missing.wav: no such file"),
        (dangling, "dangling: is a link to a missing file"),
        (loop, "loop: cannot be opened"),
        (empty, "empty.wav: is empty"),
        (tmp_path / ("x" * 300), "cannot be opened"),
        (f"{tmp_path}/nul\0.wav", "cannot be opened"),
        ("https://example.org/a.wav", "no such file"),
    ]:
        with pytest.raises(AudioError, match=complaint):
            decode(path)


def test_unreadable_file(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:  # root may read everything, so chmod would prove nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)

    with pytest.raises(AudioError, match="clip.wav: may not be read; check its permissions"):
        decode(clip)


NAMES = ["with space.wav", "-i.wav", "--help", "new\nline.wav", "😀 ñ.wav", "'\"$(x)`;.wav", "a:b"]


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"bad\xff.wav")])
@pytest.mark.parametrize("good", [True, False])
def test_any_name_will_do(
    name: str, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(encode(TONE) if good else b"no audio")

    if good:
        assert len(decode(name)) == len(TONE)
    else:
        with pytest.raises(AudioError, match="finds audio|not installed") as caught:
            decode(name)
        message = str(caught.value)
        assert message.isprintable(), "one line, whatever the name"
        assert message.startswith(name if name.isprintable() else repr(name))


@pytest.mark.parametrize("extension", [".raw", ".mp3", ".vox", ".gsm", ".txt", ".m4a", ""])
def test_the_content_decides_and_not_the_extension(extension: str, clip: Path) -> None:
    other = clip.rename(clip.with_suffix(extension))

    assert len(decode(other)) == len(TONE)


# --- bytes and file objects --------------------------------------------------------------------


def test_bytes_and_file_objects_are_decoded_like_the_file(clip: Path) -> None:
    data, expected = clip.read_bytes(), decode(clip)

    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data)):
        np.testing.assert_array_equal(decode(source), expected)
    with clip.open("rb") as file:
        np.testing.assert_array_equal(decode(file), expected)
        assert not file.closed


def test_a_stream_that_cannot_seek_will_do(clip: Path) -> None:
    copy = [
        sys.executable,
        "-c",
        f"import sys; sys.stdout.buffer.write(open({str(clip)!r},'rb').read())",
    ]
    with subprocess.Popen(copy, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert len(decode(process.stdout)) == len(TONE)


def test_file_objects_are_named_in_errors(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with clip.open("rb") as file, pytest.raises(AudioError, match="clip.wav: holds no bytes"):
        file.read()
        decode(file)
    with pytest.raises(AudioError, match="clip.wav: cannot be read"):
        decode(file)  # closed
    with clip.open(encoding="latin-1") as text, pytest.raises(TypeError, match="clip.wav.*'rb'"):
        decode(text)  # type: ignore[arg-type]
    monkeypatch.setattr(decoding, "_MAX_STREAM_BYTES", 2**20)
    with open("/dev/zero", "rb") as endless, pytest.raises(AudioError, match="save it"):
        decode(endless)


def test_nothing_is_left_open_or_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = os.listdir("/dev/fd")

    for source in (clip, clip.read_bytes(), b"no audio"):
        try:
            with open_recording(source) as recording:
                next(recording.blocks)
        except AudioError:
            pass

    assert os.listdir("/dev/fd") == before
    assert not list(temporary.iterdir())


# --- the ffmpeg program ------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["m4a", "wma", "mka", "wv", "aac"])
def test_ffmpeg_decodes_what_libsndfile_cannot(
    extension: str, ffmpeg: str, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = clip.with_suffix(f".{extension}")
    codec = {"mka": ["-c:a", "pcm_s24le"]}.get(extension, [])
    run_ffmpeg(ffmpeg, "-i", clip, *codec, "-ac", "2", other)
    other = other.rename(clip.with_name("-y"))  # a name that would be an option

    for source in (other, other.read_bytes()):
        with open_recording(source) as recording:
            decoded = np.concatenate(list(recording.blocks))

        assert (recording.format, recording.sampling_rate) == ("ffmpeg", RATE)
        assert decoded.shape[1] == recording.channels == 2
        assert len(decoded) == pytest.approx(len(TONE), rel=0.2)
        strongest = np.abs(np.fft.rfft(decoded[:8_000, 0])).argmax() * RATE / 8_000
        assert strongest == pytest.approx(300, abs=2)
    assert not caplog.messages


def test_six_channels_through_ffmpeg(ffmpeg: str, tmp_path: Path) -> None:
    surround = np.stack([TONE * factor for factor in (1, 0.5, 0.2, 0.4, 0.7, 0.1)], axis=1)
    (tmp_path / "in.wav").write_bytes(encode(surround))
    run_ffmpeg(ffmpeg, "-i", tmp_path / "in.wav", "-c:a", "wavpack", tmp_path / "six.wv")

    decoded = decode(tmp_path / "six.wv")

    np.testing.assert_allclose(decoded, surround, atol=1e-4)


@pytest.fixture
def video(ffmpeg: str, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, *arguments: str | Path) -> Path:
        picture = ["-f", "lavfi", "-i", "color=size=32x32:rate=5:duration=1"]
        run_ffmpeg(ffmpeg, *picture, *arguments, tmp_path / name)
        return tmp_path / name

    return make


def test_the_sound_of_a_video(video: Callable[..., Path], clip: Path) -> None:
    assert len(decode(video("a.mp4", "-i", clip))) == pytest.approx(len(TONE), rel=0.2)


def test_a_video_without_sound_is_refused(video: Callable[..., Path]) -> None:
    with pytest.raises(AudioError, match="silent.mp4: neither .* finds audio in it"):
        decode(video("silent.mp4"))


def test_without_ffmpeg_the_error_says_what_to_install(no_ffmpeg: None, tmp_path: Path) -> None:
    path = tmp_path / "talk.m4a"
    path.write_bytes(b"\0\0\0\x1cftypM4A \0\0\2\0" + bytes(100))

    with pytest.raises(
        AudioError, match=r"talk.m4a: .* ffmpeg program is not installed; install ffmpeg"
    ):
        decode(path)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{}'\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    ],
)
def test_a_playlist_cannot_make_ffmpeg_open_another_file(
    playlist: str, ffmpeg: str, tmp_path: Path
) -> None:
    secret, bait = tmp_path / "secret.mp3", tmp_path / "list.wav"
    secret.write_bytes(encode(TONE, kind="MP3"))
    bait.write_text(playlist.format(secret))

    with pytest.raises(AudioError, match="list.wav: neither .* finds audio in it"):
        decode(bait)


FAKE = """#!{python}
import sys, time
if "{mode}" != "mute":
    header = [0, 0, 0, 28, 255, 255, 255, 255, 0, 0, 0, 6, 0, 0, {rate}, 0, 0, 0, {channels}]
    sys.stdout.buffer.write(b".snd" + bytes(header))
    sys.stdout.buffer.write(bytes(4 + 4 * 100 + 3))
    sys.stdout.flush()
if "{mode}" == "fail":
    sys.stderr.write("first\\nthe disk is on fire.\\n")
    sys.exit(1)
if "{mode}" != "good":
    time.sleep(600)
"""


@pytest.fixture
def fake_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def make(mode: str, channels: int = 1, rate: str = "0x3e,0x80") -> None:
        program = tmp_path / "ffmpeg"
        program.write_text(
            FAKE.format(python=sys.executable, mode=mode, channels=channels, rate=rate)
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(decoding, "_STALL_SECONDS", 1.0)

    return make


def test_ffmpeg_that_breaks_off_has_decoded_as_far_as_it_went(
    fake_ffmpeg: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_ffmpeg("fail")
    monkeypatch.setattr(decoding, "_BLOCK_VALUES", 50)

    assert len(decode(b"whatever", "x.m4a")) == 100
    assert caplog.messages == ["x.m4a: decoding stopped at sample 100 (the disk is on fire)"]


def test_ffmpeg_that_hangs_is_killed(
    fake_ffmpeg: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    fake_ffmpeg("hang")

    assert len(decode(b"whatever", "x.m4a")) == 100
    assert "x.m4a: decoding stopped at sample 100" in caplog.text


def test_ffmpeg_that_says_nothing_is_killed(fake_ffmpeg: Callable[..., None]) -> None:
    fake_ffmpeg("mute")

    with pytest.raises(AudioError, match="no explanation"):
        decode(b"whatever")


def test_leaving_early_ends_ffmpeg(
    fake_ffmpeg: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ffmpeg("hang")
    started: list[subprocess.Popen[bytes]] = []

    class Spy(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Spy)

    with open_recording(b"whatever"):
        assert started[0].poll() is None

    assert started[0].returncode is not None


def test_what_ffmpeg_says_of_the_layout_is_checked_too(fake_ffmpeg: Callable[..., None]) -> None:
    fake_ffmpeg("good", channels=0)
    with pytest.raises(AudioError, match="it has no channels"):
        decode(b"whatever")
    fake_ffmpeg("good", rate="0,1")
    with pytest.raises(AudioError, match="its sampling rate is 1 Hz"):
        decode(b"whatever")


def test_what_ffmpeg_finds_behind_an_mp3_must_fit_it(fake_ffmpeg: Callable[..., None]) -> None:
    fake_ffmpeg("good", channels=2)
    one = encode(np.tile(TONE, 10), kind="MP3")

    assert decode(one * 2).shape == (10 * RATE, 1)


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

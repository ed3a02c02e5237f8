# SPDX-License-Identifier: Apache-2.0
"""What libsndfile cannot decode: the ffmpeg program, its absence, its failures, its dangers."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from timnet_hf import decoding
from timnet_hf.decoding import AudioError, open_recording

RATE = 16_000
TONE = (0.4 * np.sin(2 * np.pi * 300 / RATE * np.arange(RATE))).astype(np.float32)


def encode(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=kind, subtype=subtype)
    return file.getvalue()


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


# Left to itself, ffmpeg opens what these name.
PLAYLISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{}\n#EXT-X-ENDLIST\n",
    "DASH": """<?xml version="1.0"?>
        <MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"
        profiles="urn:mpeg:dash:profile:isoff-live:2011"><Period><AdaptationSet contentType="audio">
        <Representation id="0" mimeType="audio/mp4" codecs="mp4a.40.2" bandwidth="64000">
        <BaseURL>file://{}</BaseURL></Representation></AdaptationSet></Period></MPD>""",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_cannot_make_ffmpeg_open_another_file(
    kind: str, ffmpeg: str, tmp_path: Path
) -> None:
    secret, bait = tmp_path / "secret.mp4", tmp_path / "list.wav"
    sound = [ffmpeg, "-loglevel", "error", "-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac"]
    subprocess.run([*sound, "-movflags", "frag_keyframe+empty_moov", secret], check=True)
    bait.write_text(PLAYLISTS[kind].format(secret))
    alone = [ffmpeg, "-nostdin", "-i", f"file:{bait}", "-map", "0:a:0", "-f", "null", "-"]
    assert subprocess.run(alone, capture_output=True, check=False).returncode == 0

    with pytest.raises(AudioError, match="list.wav: neither .* finds audio in it"):
        decode(bait)


def test_ffmpeg_opens_no_address_whatever_the_format(
    fake_ffmpeg: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ffmpeg("good")
    asked: list[list[str]] = []
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **more: asked.append(command) or start(command, **more)
    )
    decode(b"whatever")

    (command,) = asked
    before = command[: command.index("-i")]  # what stands behind is about the output
    assert before[before.index("-protocol_whitelist") + 1] == "file,pipe"


# What ffmpeg does after it has delivered a hundred samples and three odd bytes.
ENDINGS = {
    "good": "exit 0",
    "fail": "echo first >&2; echo 'the disk is on fire.' >&2; exit 1",
    "hang": "exec {sleep} 600",
}


@pytest.fixture
def fake_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    cat, sleep = shutil.which("cat"), shutil.which("sleep")

    def make(ending: str, channels: int = 1, rate: int = RATE, payload: bool = True) -> None:
        stream, program = tmp_path / "stream.au", tmp_path / "ffmpeg"
        header = struct.pack(">4s5Ixxxx", b".snd", 28, 2**32 - 1, 6, rate, channels)
        stream.write_bytes((header + bytes(4 * 100 + 3)) * payload)
        program.write_text(f"#!/bin/sh\n{cat} {stream}\n{ENDINGS[ending].format(sleep=sleep)}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

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
    fake_ffmpeg: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_ffmpeg("hang")
    monkeypatch.setattr(decoding, "_STALL_SECONDS", 2.0)

    assert len(decode(b"whatever", "x.m4a")) == 100
    assert "x.m4a: decoding stopped at sample 100" in caplog.text


def test_ffmpeg_that_says_nothing_is_killed(
    fake_ffmpeg: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ffmpeg("hang", payload=False)
    monkeypatch.setattr(decoding, "_STALL_SECONDS", 0.2)

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
    fake_ffmpeg("good", rate=1)
    with pytest.raises(AudioError, match="its sampling rate is 1 Hz"):
        decode(b"whatever")


def test_what_ffmpeg_finds_behind_an_mp3_must_fit_it(fake_ffmpeg: Callable[..., None]) -> None:
    fake_ffmpeg("good", channels=2)
    one = encode(np.tile(TONE, 10), kind="MP3")

    assert decode(one * 2).shape == (10 * RATE, 1)

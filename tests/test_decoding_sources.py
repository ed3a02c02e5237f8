# SPDX-License-Identifier: Apache-2.0
"""Where recordings come from: files of any kind and name, bytes, file objects."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
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


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(encode(TONE))
    return path


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

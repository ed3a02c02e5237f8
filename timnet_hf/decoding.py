# SPDX-License-Identifier: Apache-2.0
"""Open whatever claims to be a recording, and decode it block by block.

Files lie, so nothing that a header says is believed: memory follows what is really there, and
every sample is looked at. libsndfile decodes, and the ``ffmpeg`` program where it cannot (m4a,
wma, video). The content, never the extension, decides what a file is.

Refused, always as an `AudioError` that names the file: whatever is not a regular file (folders,
FIFOs, devices), sampling rates outside 1 kHz to 768 kHz, no channels, no samples, NaN, infinity,
and values beyond ±100 (40 dB over full scale: unscaled integers, or garbage). Decoded as far as it
goes, with a logged warning where the decoder notices: truncated and damaged files. Bytes behind
the end of the audio are ignored.
"""

from __future__ import annotations

import io
import logging
import math
import os
import shutil
import stat
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import soundfile

__all__ = [
    "MAX_AMPLITUDE",
    "MAX_SAMPLING_RATE",
    "MIN_SAMPLING_RATE",
    "AudioError",
    "AudioSource",
    "Recording",
    "open_recording",
]

logger = logging.getLogger(__name__)

AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A path, the *content* of a file as bytes, or a binary file object (read from where it stands)."""

MIN_SAMPLING_RATE = 1_000
MAX_SAMPLING_RATE = 768_000
MAX_AMPLITUDE = 100.0

_BLOCK_VALUES = 2**18  # 1 MiB of float32 at a time, all channels together
_MAX_STREAM_BYTES = 2**32  # a file object may be endless (/dev/zero); a WAV ends here too
_FLAC_FRAMES = 1024  # where a FLAC breaks off, libsndfile throws away all of the read that fails
_MP3_TAIL_BYTES = 4096  # more than a frame and the usual tags behind the last one
_MAX_ALLOCATION = 2**29  # bytes that ffmpeg may ask for at once, whatever a header claims
_STALL_SECONDS = 60.0  # ffmpeg that delivers nothing for so long is killed

# libsndfile also "recognises" formats by two bytes or a plausible length (MPC2K, HTK, XI, MAT4 …):
# from those, chance would make audio out of any file. These have real signatures.
_LIBSNDFILE_FORMATS = frozenset(
    "WAV WAVEX RF64 W64 AIFF AU CAF FLAC OGG MP3 NIST VOC SVX IRCAM".split()
)
# Encodings that end where the file ends …
_PACKED = frozenset("VORBIS OPUS MPEG_LAYER_I MPEG_LAYER_II MPEG_LAYER_III".split())
_PACKED |= {"ALAC_16", "ALAC_20", "ALAC_24", "ALAC_32"}
# … and those of so many bytes a sample, which libsndfile goes on decoding out of nothing for as
# long as a header claims: 1.7 kB can promise years. The size of the file says where to stop.
_SAMPLE_BYTES: dict[str, float] = {"PCM_U8": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4}
_SAMPLE_BYTES |= {"FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1, "IMA_ADPCM": 0.5, "MS_ADPCM": 0.5}
_SAMPLE_BYTES |= {"GSM610": 65 / 320, "G721_32": 0.5, "G723_24": 0.375, "G723_40": 0.625}
_SAMPLE_BYTES |= {"NMS_ADPCM_16": 0.25, "NMS_ADPCM_24": 0.375, "NMS_ADPCM_32": 0.5}
_SLACK_FRAMES = 1024  # the last block of these may be cut short
# One file, one recording. Playlists, image lists, scripts and network descriptions (hls, concat,
# dash, sdp …) are left out: they would make ffmpeg open other files of the host.
_FFMPEG_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,avi,flv,mpegts,mpeg,aac,ac3,eac3,amr,ape,mp3,"
    "wav,w64,aiff,au,caf,flac,ogg,dts,wv,tta,tak,mpc,mpc8,oma,rm,dsf,voc,ea"
)


class AudioError(ValueError):
    """A recording that cannot be used: ``<file>: <what is wrong>; <what to do>``."""


@dataclass(frozen=True)
class Recording:
    """An opened recording.

    Attributes:
        name: How the source is called.
        format: libsndfile's name of the container ("WAV", "FLAC" …), or "ffmpeg".
        sampling_rate: In Hz, 1,000 to 768,000.
        channels: At least 1.
        frames: Samples per channel, about, as its header claims, where the size of the file bears
            that out; None where only decoding can tell.
        blocks: The samples as they are decoded, once: float32 of shape (frames, channels), full
            scale ±1. At least one block, none empty. Raises `AudioError` at a bad sample.
    """

    name: str
    format: str
    sampling_rate: int
    channels: int
    frames: int | None
    blocks: Iterator[np.ndarray]

    def error(self, wrong: str, remedy: str) -> AudioError:
        """Make an error about this recording; the caller raises it."""
        return _error(self.name, wrong, remedy)


@contextmanager
def open_recording(source: AudioSource, name: str | None = None) -> Iterator[Recording]:
    """Open a recording for one pass of decoding.

    Args:
        source: A path, the content of a file as bytes, or a binary file object.
        name: How errors call the source; by default its path.

    Yields:
        The recording; its blocks can be read until the context is left.

    Raises:
        AudioError: The source cannot be read, decoded or trusted.
        TypeError: The source is neither path nor bytes nor a binary file object.
    """
    with _open_source(source, name) as (file, shown):
        try:
            # By descriptor: libsndfile then sees no name, so no extension can mislead it.
            decoder = _SequentialSoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            reason = _reason(error)
        else:
            with decoder:
                if decoder.container in _LIBSNDFILE_FORMATS and (
                    decoder.encoding in _PACKED or decoder.encoding in _SAMPLE_BYTES
                ):
                    yield _checked(_libsndfile_recording(decoder, file, shown))
                    return
            reason = "Format not recognised"
        with _ffmpeg_recording(file, shown, reason) as recording:
            yield _checked(recording)


@contextmanager
def _open_source(source: AudioSource, name: str | None) -> Iterator[tuple[BinaryIO, str]]:
    """Make a regular file, open at its start, of whatever came in."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        with _open_path(path, name or path) as file:
            yield file, name or path
    elif isinstance(source, (bytes, bytearray, memoryview)):
        with _spooled(io.BytesIO(source), name or "<bytes>") as file:
            yield file, name or "<bytes>"
    elif hasattr(source, "read"):
        own_name = getattr(source, "name", None)
        shown = name or (own_name if isinstance(own_name, str) else "<file object>")
        with _spooled(source, shown) as file:
            yield file, shown
    else:
        raise TypeError(
            f"source is a {type(source).__name__}; give a path, the content of a file as bytes, or "
            "a binary file object (a waveform in memory goes through resample)"
        )


def _open_path(path: str, name: str) -> BinaryIO:
    try:
        # Look before opening (opening a FIFO waits, opening a device acts), and again after, in
        # case the file was swapped in between.
        _refuse_irregular(os.stat(path), name)
        file = open(path, "rb", buffering=0, opener=_open_without_waiting)
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise _error(name, "is a link to a missing file", "repair the link") from error
        raise _error(name, "no such file", "check the path") from error
    except PermissionError as error:
        raise _error(name, "may not be read", "check its permissions") from error
    except AudioError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _error(name, f"cannot be opened ({error})", "check the path") from error
    try:
        _refuse_irregular(os.fstat(file.fileno()), name)
    except AudioError:
        file.close()
        raise
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse_irregular(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _error(name, "is a folder", "name the recordings in it")
    if not stat.S_ISREG(status.st_mode):
        raise _error(name, "is not a regular file", "copy the recording to a file first")
    if not status.st_size:
        raise _error(name, "is empty", "check how the file was made")


@contextmanager
def _spooled(stream: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """Copy a stream to an unnamed temporary file, of which nothing is left after a crash."""
    with tempfile.TemporaryFile() as file:
        try:
            while chunk := stream.read(2**20):
                file.write(chunk)
                if file.tell() > _MAX_STREAM_BYTES:
                    raise _error(name, "delivers more than 4 GiB", "save it, and pass its path")
            file.flush()
        except TypeError as error:
            raise TypeError(f"{_shown(name)}: open the file in binary mode ('rb')") from error
        except AudioError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a closed file
            raise _error(name, f"cannot be read ({error})", "check the source") from error
        if not file.tell():
            raise _error(name, "holds no bytes", "rewind a file object with seek(0)")
        file.seek(0)
        yield file


class _SequentialSoundFile(soundfile.SoundFile):
    """A SoundFile that only reads on: the usual one seeks after every block."""

    def __init__(self, file: int, closefd: bool):
        super().__init__(file, closefd=closefd)
        # Looked up once: each time takes a tenth of what decoding a short clip does.
        self.container, self.encoding = self.format, self.subtype

    def seekable(self) -> bool:
        return False


def _libsndfile_recording(decoder: _SequentialSoundFile, file: BinaryIO, name: str) -> Recording:
    most: float = math.inf
    if decoder.container != "FLAC" and decoder.encoding in _SAMPLE_BYTES:
        size = os.fstat(file.fileno()).st_size
        most = size // (_SAMPLE_BYTES[decoder.encoding] * decoder.channels) + _SLACK_FRAMES
    return Recording(
        name=name,
        format=decoder.container,
        sampling_rate=decoder.samplerate,
        channels=decoder.channels,
        frames=decoder.frames if decoder.frames <= most < math.inf else None,
        blocks=_libsndfile_blocks(decoder, file, name, most),
    )


def _libsndfile_blocks(
    decoder: _SequentialSoundFile, file: BinaryIO, name: str, most: float
) -> Iterator[np.ndarray]:
    frames, position = max(1, _BLOCK_VALUES // decoder.channels), 0
    if decoder.container == "FLAC":
        frames = _FLAC_FRAMES
    try:
        while wanted := int(min(frames, most - position)):
            if (
                decoder.encoding == "PCM_16"
            ):  # the same floats in a quarter of libsndfile's own time
                block = decoder.read(wanted, dtype="int16", always_2d=True) * np.float32(2**-15)
            else:
                block = decoder.read(wanted, dtype="float32", always_2d=True)
            if not len(block):
                break
            yield block
            position += len(block)
            if len(block) < wanted and decoder.encoding in _SAMPLE_BYTES:
                break  # the end: no need to ask once more
    except soundfile.LibsndfileError as error:
        _warn_stopped(name, position, _reason(error))
    if decoder.container == "MP3" and position >= decoder.frames and _may_go_on(file):
        try:
            with _ffmpeg_recording(file, name, "stopped early") as whole:
                if (whole.sampling_rate, whole.channels) == (decoder.samplerate, decoder.channels):
                    yield from _skipped(whole.blocks, position)
        except AudioError as error:
            _warn_stopped(name, position, str(error))


def _reason(error: soundfile.LibsndfileError) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(".")


def _may_go_on(file: BinaryIO) -> bool:
    """Tell whether an MP3 may hold more than the frames that libsndfile has counted.

    Without a Xing or VBRI header libsndfile guesses the length from the first frame and stops
    there, with two thirds of a variable-rate file unread; and of joined files it reads the first.
    """
    unread = os.fstat(file.fileno()).st_size - file.tell()
    file.seek(0)
    start = file.read(10)
    if start[:3] == b"ID3":  # its length: four bytes of seven bits
        file.seek(sum(byte << 7 * place for place, byte in enumerate(start[:5:-1])), os.SEEK_CUR)
    start += file.read(4096)
    return unread > _MP3_TAIL_BYTES or not any(tag in start for tag in (b"Xing", b"Info", b"VBRI"))


def _skipped(blocks: Iterator[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    for block in blocks:
        if len(block) > frames:
            yield block[frames:]
        frames = max(0, frames - len(block))


@contextmanager
def _ffmpeg_recording(file: BinaryIO, name: str, reason: str) -> Iterator[Recording]:
    program = shutil.which("ffmpeg")
    if program is None:
        raise _error(
            name,
            f"libsndfile cannot decode it ({reason}), and the ffmpeg program is not installed",
            "install ffmpeg, which reads m4a, wma and video too, or convert the recording to "
            "wav, flac, ogg or mp3",
        )
    # ffmpeg gets the open file, not its name: nothing to quote, nothing to swap, no extension to
    # guess from. It answers with an AU stream: a header of six numbers, then float32 samples.
    command = [program, "-nostdin", "-hide_banner", "-loglevel", "error"]
    command += ["-max_alloc", str(_MAX_ALLOCATION)]
    command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", _FFMPEG_FORMATS]
    command += ["-vn", "-sn", "-dn", "-i", "file:/dev/fd/0", "-map", "0:a:0"]
    command += ["-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    file.seek(0)
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=complaints) as process,
    ):
        try:
            header = _read(process, 24)
            if len(header) < 24:
                _wait(process)
                raise _error(
                    name,
                    f"neither libsndfile ({reason}) nor ffmpeg ({_last_line(complaints)}) finds "
                    "audio in it",
                    "check that it is a recording, or convert it to wav, flac, ogg or mp3",
                )
            _, offset, _, _, rate, channels = struct.unpack(">4s5I", header)
            _read(process, offset - 24)
            blocks = _ffmpeg_blocks(process, name, channels, complaints)
            yield Recording(name, "ffmpeg", rate, channels, None, blocks)
        finally:
            process.kill()


def _ffmpeg_blocks(
    process: subprocess.Popen[bytes], name: str, channels: int, complaints: BinaryIO
) -> Iterator[np.ndarray]:
    position = 0
    while data := _read(process, max(1, _BLOCK_VALUES // channels) * channels * 4):
        values = np.frombuffer(data[: len(data) // (4 * channels) * 4 * channels], dtype=">f4")
        block = values.astype(np.float32).reshape(-1, channels)
        if len(block):
            yield block
        position += len(block)
    if _wait(process):
        _warn_stopped(name, position, _last_line(complaints))


def _read(process: subprocess.Popen[bytes], size: int) -> bytes:
    assert process.stdout is not None
    with _watchdog(process):
        return process.stdout.read(size)


def _wait(process: subprocess.Popen[bytes]) -> int:
    with _watchdog(process):
        return process.wait()


@contextmanager
def _watchdog(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the process if what is waited for does not happen, so that the waiting ends."""
    timer = threading.Timer(_STALL_SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _last_line(complaints: BinaryIO) -> str:
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 2000))
    lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
    if any("not on whitelist" in line for line in lines):
        return "a playlist, a text or a picture"
    return lines[-1].replace("file:/dev/fd/0: ", "").rstrip(".") if lines else "no explanation"


def _checked(recording: Recording) -> Recording:
    if not MIN_SAMPLING_RATE <= recording.sampling_rate <= MAX_SAMPLING_RATE:
        raise recording.error(
            f"its sampling rate is {recording.sampling_rate} Hz, outside {MIN_SAMPLING_RATE} to "
            f"{MAX_SAMPLING_RATE}",
            "repair its header",
        )
    if recording.channels < 1:
        raise recording.error("it has no channels", "repair its header")
    return replace(recording, blocks=_checked_blocks(recording))


def _checked_blocks(recording: Recording) -> Iterator[np.ndarray]:
    position = 0
    for block in recording.blocks:
        # "not <=", because NaN compares false
        if not (-MAX_AMPLITUDE <= block.min() and block.max() <= MAX_AMPLITUDE):
            raise _bad_sample(recording, block, position)
        position += len(block)
        yield block
    if not position:
        raise recording.error("holds no samples", "check how the file was made")


def _bad_sample(recording: Recording, block: np.ndarray, position: int) -> AudioError:
    frame, channel = np.argwhere(~(np.abs(block) <= MAX_AMPLITUDE))[0]
    value = float(block[frame, channel])
    at = position + int(frame)
    what = f"is {value:g}, beyond ±{MAX_AMPLITUDE:g}" if math.isfinite(value) else f"is {value}"
    return recording.error(
        f"sample {at} of channel {int(channel) + 1} ({at / recording.sampling_rate:.3f} s) {what}",
        "audio lies within ±1: divide integers by their full scale, or repair the file",
    )


def _error(name: str, wrong: str, remedy: str) -> AudioError:
    return AudioError(f"{_shown(name)}: {wrong}; {remedy}")


def _shown(name: str) -> str:
    """A name for a message of one line: newlines and undecodable bytes are escaped."""
    return name if name.isprintable() else repr(name)


def _warn_stopped(name: str, position: int, reason: str) -> None:
    logger.warning("%s: decoding stopped at sample %d (%s)", _shown(name), position, reason)

# SPDX-License-Identifier: Apache-2.0
"""Name emotions with an exported file: ONNX Runtime and numpy, neither torch nor transformers.

An ``.onnx`` file may come from anyone. It is read whole, and looked through before ONNX Runtime
sees it: it must be one that `timnet_hf.export` can write, with all weights inside. One that names
other files to read them from is refused, for they could be anything on this machine; so is one
with functions, or with graphs inside operators, which is where loops without an end could hide.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .prediction import ModelError
from .sound_timnet import check_samples

#: Bytes of a file; a network of ours takes about one million.
MAX_SIZE = 2**28

#: Field of each message of the ONNX format that may hold further messages → what these are.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "a function", 20: "training instructions"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        10: "tensor",
        6: "a graph inside an operator",
        11: "a graph inside an operator",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "weights in another file"},
}


class OnnxModel:
    """A file that ``timnet export`` wrote, ready to score.

    Args:
        path: The file.
        threads: Threads of one call; a single clip gains nothing from more than one.

    Attributes:
        labels: Names of the labels, in the order of the probabilities.
        sampling_rate: Rate of the waveforms, in Hz.
        num_samples: Length to which it pads or crops every waveform, or None.
        metadata: All that the file says of itself, see `timnet_hf.export`.

    Raises:
        ModelError: The file cannot be read, is broken, is not ours, or is not to be trusted.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, *, threads: int = 1):
        self.path = Path(path)
        content = _read(self.path)
        try:
            _look_through(content, "model")
        except ValueError as error:
            raise self._error(str(error)) from error
        try:
            self._session = open_session(content, threads)
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
            inputs = {value.name: value.shape for value in self._session.get_inputs()}
            outputs = {value.name: value.shape for value in self._session.get_outputs()}
        except ImportError:
            raise
        except Exception as error:  # ONNX Runtime's own kinds have nothing else in common
            raise self._error(f"ONNX Runtime cannot load it ({_short(error)})") from error
        if self.metadata.get("input") == "features":
            raise self._error("it takes features. Give the file that takes waveforms")
        if [*inputs] != ["waveform", "attention_mask"] or not {"probabilities", "frames"} <= {
            *outputs
        }:
            raise self._error("its inputs and outputs are not those of a TIM-Net")
        # A file of an earlier version wants a mask as wide as the waveform, and says so.
        self._narrow_mask = inputs["attention_mask"] != inputs["waveform"]
        try:
            self.labels = [str(name) for name in json.loads(self.metadata["labels"])]
            self.sampling_rate = int(self.metadata["sampling_rate"])
            self.num_samples = int(self.metadata["num_samples"] or 0) or None
            heard = json.loads(self.metadata["feature_extractor"])["sampling_rate"]
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise self._error(f"its metadata are broken ({_short(error)})") from error
        length = self.num_samples or 1
        rate = self.sampling_rate
        if not (1_000 <= rate <= 768_000 and rate == heard and 1 <= length <= 10**8):
            raise self._error("its metadata name a sampling rate or length that cannot be")
        if outputs["probabilities"][-1:] != [len(self.labels)]:
            raise self._error(f"it names {len(self.labels)} labels, and its network has others")
        if len(set(self.labels)) < len(self.labels):
            raise self._error("two of its labels have the same name")

    def _error(self, reason: str) -> ModelError:
        return ModelError(f"{self.path}: {reason}. Give a file that `timnet export` wrote.")

    def score(self, waveforms: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Score waveforms, each for itself.

        Args:
            waveforms: Mono floats of shape (samples,) at ``sampling_rate``, full scale ±1.

        Returns:
            Probabilities (waveforms, labels), and the number of frames each rests on.

        Raises:
            ValueError: A waveform is empty, not one-dimensional, holds integers, or has samples
                that are NaN, infinite or beyond ±100,000.
        """
        clips = [np.asarray(waveform) for waveform in waveforms]
        for clip in clips:
            check_samples(clip)
        probabilities = np.zeros((len(clips), len(self.labels)), dtype=np.float32)
        frames = np.zeros(len(clips), dtype=np.int64)
        # One by one: what a clip takes stays in the processor's cache, and nothing is padded.
        for row, clip in enumerate(clips):
            mask = np.ones((1, 1 if self._narrow_mask else len(clip)), dtype=np.int64)
            feed = {"waveform": clip.astype(np.float32, copy=False)[None], "attention_mask": mask}
            try:
                found, count = self._session.run(["probabilities", "frames"], feed)
            except Exception as error:
                raise self._error(f"ONNX Runtime cannot run it ({_short(error)})") from error
            if found.shape != (1, len(self.labels)) or count.shape != (1,):
                raise self._error("its network returns something else than it says")
            probabilities[row], frames[row] = found[0], count[0]
        return probabilities, frames


def open_session(content: bytes, threads: int = 1) -> Any:
    """Make a session of ONNX Runtime on the CPU.

    Raises:
        ImportError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            'Scoring with an .onnx file needs onnxruntime: pip install "timnet-hf[onnx]", or pip '
            "install onnxruntime."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what matters is raised
    # Else it takes files of its own format too, which nobody has looked through.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Without the fallback: it would try the same once more, and print that it does.
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_SIZE:
            raise ModelError(
                f"{path}: has {size} bytes, far more than a TIM-Net. "
                "Give a file that `timnet export` wrote."
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}). Give a file that `timnet export` wrote."
        ) from error


# --- what is in the file ------------------------------------------------------------------------


def _look_through(content: bytes | memoryview, kind: str) -> None:
    """Follow the messages in a file of protocol buffers, and refuse what ours never hold.

    Raises:
        ValueError: The bytes are no such messages, or hold what is refused.
    """
    inner = _FIELDS[kind]
    fields = 0
    for field, value in _messages(memoryview(content)):
        fields += 1
        found = inner.get(field)
        if found in _FIELDS:
            if isinstance(value, int):
                raise ValueError("it is no ONNX file, or a broken one")
            _look_through(value, found)
        elif found is not None or (kind == "tensor" and field == 14 and value != 0):
            found = found or "weights in another file"
            raise ValueError(f"it holds {found}, which no file of ours does")
    if kind == "model" and not fields:
        raise ValueError("it is empty")


def _messages(content: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and content of each field, bytes or a number."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        if not 8 <= key < 2**32:
            raise ValueError("it is no ONNX file, or a broken one")
        kind = key & 7
        if kind == 0:
            number, position = _varint(content, position)
            yield key >> 3, number
            continue
        if kind == 2:
            length, position = _varint(content, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("it is no ONNX file, or a broken one")
        if position + length > len(content):
            raise ValueError("it is no ONNX file, or one that is cut short")
        yield key >> 3, content[position : position + length]
        position += length


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ValueError("it is no ONNX file, or one that is cut short")


__all__ = ["MAX_SIZE", "OnnxModel", "open_session"]

# SPDX-License-Identifier: Apache-2.0
"""Which models the page offers, and how they are loaded.

The owner of the page names checkpoints in `TIMNET_MODEL`; they are trusted, and loaded with the
code that lies beside their weights. A visitor may name any other repository of the Hub. From
there only numbers are taken: the settings that a TIM-Net has, each checked, and the weights as
safetensors. They go into the classes of the trusted checkpoint. No code of a stranger is run, no
token of the owner is sent, and nothing stays on the disk.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Task name that a TIM-Net repository gives its pipeline.
TASK = "speech-emotion-timeline"

#: What the page offers where the owner names nothing else.
DEFAULT_MODEL = "org/timnet-emodb"

#: A longer recording is scored in blocks, so that memory stays bounded, both in seconds.
LONGEST_SINGLE_CLIP = 60
BLOCK_DURATION = 30

#: How many models of visitors are kept in memory.
_KEPT = 4
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILES = {"config.json": 2**20, "preprocessor_config.json": 2**20, "model.safetensors": 100 * 2**20}
_MAX_PARAMETERS = 20_000_000
#: Frames a second, and values that a second of sound has in one layer.
_MAX_FRAME_RATE, _MAX_VALUES = 250, 250_000
#: Settings of a feature extractor that cost time or memory, and how far they may go.
_EXTRACTOR_LIMITS = {
    "sampling_rate": (4_000, 96_000),
    "n_fft": (16, 16_384),
    "hop_length": (16, 16_384),
    "num_mel_bins": (1, 512),
    "num_samples": (1, 10_000_000),
}


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A model that is ready to listen.

    Attributes:
        name: How the page calls it.
        timeline: Its pipeline, which holds the network and the feature extractor.
    """

    name: str
    timeline: Any

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms that it reads, in Hz."""
        return int(self.timeline.feature_extractor.sampling_rate)

    @property
    def labels(self) -> list[str]:
        """Names of the emotions, in the order of the network's outputs."""
        names = self.timeline.model.config.id2label
        return [str(names[index]) for index in range(len(names))]

    def score(self, waveform: np.ndarray) -> tuple[dict[str, float], bool]:
        """Score a recording as ``timnet predict`` does.

        Args:
            waveform: (samples,) at ``sampling_rate``. More than a minute is scored in blocks of
                half a minute, or of the model's own length of a clip; their probabilities are
                averaged, weighted by how much of each is not silence.

        Returns:
            The probability of each label, highest first, and whether there was nothing to hear.

        Raises:
            ValueError: The model's answer is not a number.
        """
        rate = self.sampling_rate
        blocks = [waveform]
        if len(waveform) > LONGEST_SINGLE_CLIP * rate:
            size = self.timeline.feature_extractor.num_samples or BLOCK_DURATION * rate
            blocks = [waveform[first : first + size] for first in range(0, len(waveform), size)]
        loud = [block for block in blocks if np.abs(block).max() > 1e-4]
        total, weight = np.zeros(len(self.labels)), 0
        for block in loud or blocks:
            inputs = self.inputs(block)
            with torch.inference_mode():
                logits = self.timeline.model(inputs["input_values"]).logits[0]
            frames = inputs["input_values"].shape[1]
            probabilities = logits.sigmoid() if self._multi_label else logits.softmax(-1)
            total += frames * probabilities.double().numpy()
            weight += frames
        if not np.isfinite(total).all():
            raise ValueError(f"the answer of {self.name} is not a number; its weights are damaged")
        ranked = np.argsort(-total, kind="stable")
        return {self.labels[index]: float(total[index] / weight) for index in ranked}, not loud

    @property
    def _multi_label(self) -> bool:
        problem: str | None = self.timeline.model.config.problem_type
        return problem == "multi_label_classification"

    def inputs(self, waveform: np.ndarray) -> Any:
        """What the network reads of a waveform: ``input_values`` (1, frames, coefficients)."""
        extractor = self.timeline.feature_extractor
        return extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt")


class Checkpoints:
    """The checkpoints of a page: those of its owner by name, and any repository of the Hub.

    Args:
        sources: Hub ids and folders; the first is what the page opens with.

    Raises:
        CheckpointError: There is none.
    """

    def __init__(self, sources: Sequence[str]):
        if not sources:
            raise CheckpointError("TIMNET_MODEL is empty. Name a Hub id or a folder in it.")
        self._sources: dict[str, str] = {}
        for source in sources:
            name = Path(source).resolve().name if Path(source).is_dir() else source
            while name in self._sources:
                name += "′"
            self._sources[name] = source
        self._trusted: dict[str, Checkpoint] = {}
        self._visited: OrderedDict[str, Checkpoint] = OrderedDict()
        self._lock = threading.Lock()
        self._visit = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The owner's checkpoints, the default first."""
        return list(self._sources)

    def get(self, name: Any = None) -> Checkpoint:
        """Load a checkpoint, or take it from memory.

        Args:
            name: One of ``names``, or a Hub id ``org/name``; None or "" for the default.

        Raises:
            CheckpointError: It is neither, or cannot be loaded.
        """
        name = (name or self.names[0]) if name is None or isinstance(name, str) else ""
        name = name.strip()
        with self._lock:
            if name in self._sources:
                if name not in self._trusted:
                    self._trusted[name] = _load_trusted(name, self._sources[name])
                return self._trusted[name]
        if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name:
            raise CheckpointError(
                "A checkpoint is one of the list, or a Hub id of the form org/name."
            )
        trusted = self.get()
        # One download at a time; whoever asks for what is loaded does not wait for it.
        found = self._remembered(name)
        if found is None:
            with self._visit:
                found = self._remembered(name) or _load_visited(name, trusted)
                with self._lock:
                    self._visited[name] = found
                    while len(self._visited) > _KEPT:
                        self._visited.popitem(last=False)
        return found

    def _remembered(self, name: str) -> Checkpoint | None:
        with self._lock:
            if name in self._visited:
                self._visited.move_to_end(name)
            return self._visited.get(name)


def named_sources() -> list[str]:
    """The owner's checkpoints: `TIMNET_MODEL`, several of them separated as in `PATH`."""
    named = os.environ.get("TIMNET_MODEL") or DEFAULT_MODEL
    return [source.strip() for source in named.split(os.pathsep) if source.strip()]


def _load_trusted(name: str, source: str) -> Checkpoint:
    from transformers import pipeline

    try:
        timeline = pipeline(
            TASK, model=source, trust_remote_code=True, device="cpu", dtype=torch.float32
        )
    except (OSError, KeyError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"{name} cannot be loaded ({_first_line(error)}). Set TIMNET_MODEL to the Hub id or "
            "the folder of a TIM-Net that timnet_hf has saved."
        ) from error
    return Checkpoint(name, timeline)


def _load_visited(repo_id: str, trusted: Checkpoint) -> Checkpoint:
    """Put a repository's settings and weights into the classes of a checkpoint that is trusted."""
    from safetensors.torch import load_file

    model_class = type(trusted.timeline.model)
    extractor_class = type(trusted.timeline.feature_extractor)
    with tempfile.TemporaryDirectory(prefix="timnet-visit-") as folder:
        _download(repo_id, folder)
        try:
            config = _config(Path(folder, "config.json"), model_class.config_class)
            extractor = _extractor(Path(folder, "preprocessor_config.json"), extractor_class)
            with torch.device("meta"):  # how large it would be, before it is
                size = sum(weight.numel() for weight in model_class(config).parameters())
            if size > _MAX_PARAMETERS:
                raise ValueError(f"{size} parameters are more than this page loads")
            frames = extractor.sampling_rate / extractor.hop_length
            values = frames * max(config.num_streams * config.hidden_size, config.input_size)
            if frames > _MAX_FRAME_RATE or values > _MAX_VALUES:
                raise ValueError("it computes more for a second of sound than this page can hold")
            model = model_class(config)
            model.load_state_dict(load_file(Path(folder, "model.safetensors")))
        except Exception as error:  # whatever a stranger's files may set off
            raise CheckpointError(
                f"{repo_id} is not a TIM-Net that this page can load ({_first_line(error)})."
            ) from error
    timeline = type(trusted.timeline)(model=model.eval(), feature_extractor=extractor, device="cpu")
    return Checkpoint(repo_id, timeline)


def _download(repo_id: str, folder: str) -> None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(
            "This page runs offline and cannot fetch a checkpoint. Choose one of the list."
        )
    revision = None
    try:
        for name, limit in _FILES.items():
            found = get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision), token=False)
            revision = found.commit_hash  # all files of one commit
            if found.size is None or found.size > limit:
                raise CheckpointError(f"{name} of {repo_id} is too large for this page.")
            hf_hub_download(repo_id, name, revision=revision, local_dir=folder, token=False)
    except CheckpointError:
        raise
    except Exception as error:  # the Hub client has dozens of them
        raise CheckpointError(
            f"{repo_id} cannot be fetched ({_first_line(error)}). Check that it is a public model "
            "on the Hub, with config.json, preprocessor_config.json and model.safetensors."
        ) from error


def _config(path: Path, config_class: Any) -> Any:
    """A configuration of the settings that the class itself has, and of nothing else."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("model_type") != config_class.model_type:
        raise ValueError(f"its model_type is not {config_class.model_type}")
    known = set(config_class.__annotations__) - {"attribute_map"}
    names = values.get("id2label") or {}
    if len(names) > 100:
        raise ValueError("it has more than 100 labels")
    labels = {index: str(names[str(index)])[:40] for index in range(len(names))}
    settings = {name: value for name, value in values.items() if name in known}
    multi_label = "multi_label_classification"
    problem = multi_label if values.get("problem_type") == multi_label else None
    return config_class(**settings, id2label=labels, problem_type=problem)


def _extractor(path: Path, extractor_class: Any) -> Any:
    values = json.loads(path.read_text(encoding="utf-8"))
    parameters = inspect.signature(extractor_class).parameters.values()
    known = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    for name, (low, high) in _EXTRACTOR_LIMITS.items():
        value = values.get(name)
        if value is not None and not (isinstance(value, int) and low <= value <= high):
            raise ValueError(f"{name} is not a whole number from {low} to {high}")
    return extractor_class(**{name: value for name, value in values.items() if name in known})


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__


__all__ = [
    "DEFAULT_MODEL",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "named_sources",
]

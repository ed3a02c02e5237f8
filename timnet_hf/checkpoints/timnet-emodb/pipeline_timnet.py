# SPDX-License-Identifier: Apache-2.0
"""The pipeline ``speech-emotion-timeline``: a long recording → who-feels-what-when, as events."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .sound_timnet import decode_blocks
from .timeline_timnet import TimelineStream

TASK = "speech-emotion-timeline"

#: Seconds of an array that are handed on at a time.
_BLOCK = 10


class TimNetTimelinePipeline(Pipeline):
    """Name the emotion in every stretch of speech of a recording, however long it is.

    Speech is cut into overlapping windows, the windows' probabilities are averaged hop by hop,
    and neighbouring hops with the same label become one event. How, tells `timeline_timnet`. A
    file is streamed from disk: an hour of it takes no more memory than a minute.

    Besides what every pipeline takes:

    Args:
        window: Seconds of speech that are scored at a time. 2.5 is about the length of the acted
            utterances that the model learns from.
        hop: Seconds from one window to the next, and the grain of the events; at least 0.05, at
            most ``window``.
        vad: What is left out. ``"energy"``: silence, by its level. ``"silero"``: all but speech,
            music and noise too, by the silero-vad network (``pip install silero-vad``, or the
            package's extra ``vad``).
        batch_size: Windows that go through the model in one call; 16 by default.

    All but the first may be given at the call too. The model is put into evaluation mode.

    Example:
        >>> import numpy as np
        >>> from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification
        >>> from timnet_hf.pipeline_timnet import TimNetTimelinePipeline
        >>> timeline = TimNetTimelinePipeline(
        ...     model=TimNetForAudioClassification(TimNetConfig(num_labels=4)),
        ...     feature_extractor=TimNetFeatureExtractor(),
        ... )
        >>> sound = np.sin(np.arange(32_000) / 20).astype("float32")
        >>> events = timeline({"array": np.append(sound, 0 * sound), "sampling_rate": 16_000})
        >>> [(event["start"], event["end"]) for event in events]
        [(0.0, 2.0)]
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = True
    _load_tokenizer: Any = False

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("task", TASK)
        super().__init__(*args, **kwargs)
        if self.feature_extractor is None:
            raise ValueError("Pass the model's feature_extractor too: the windows go through it.")
        self.feature_extractor: Any
        parts = (self.model.config, self.feature_extractor)
        if len({getattr(part, "adapted_to_speaker", False) for part in parts}) > 1:
            raise ValueError(
                "Of the model and the feature extractor one alone is adapted to a voice. Call "
                "adapted_to of both, with the same profile."
            )
        self.model.eval()

    def __call__(  # type: ignore[override]  # the base class takes *args only to warn of them
        self, inputs: Any, batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        """Make the timeline of a recording.

        Args:
            inputs: A path; the content of a file as bytes; a waveform (samples,) of floats at the
                feature extractor's rate; or a dict of one of ``array`` or ``raw`` (a waveform),
                ``blocks`` (an iterable of waveforms, heard one after the other), ``bytes`` or
                ``path``, the first three with their ``sampling_rate``. A list of these, the column
                of a data set, or a generator or dataset that yields them, makes one timeline each.
            batch_size: Windows that go through the model in one call.
            **kwargs: ``window``, ``hop`` and ``vad``, as for the class.

        Returns:
            The events in order, a list of dicts: ``start`` and ``end`` in seconds, ``label``, its
            mean probability ``score``, and ``scores``, the probabilities of all labels. Empty
            where nobody speaks. Events never overlap, and hold no silence of half a second or
            more. Sound shorter than a window is one event, if it is at least 0.1 s of speech
            without such a pause.

        Raises:
            ValueError: The recording is empty, cannot be decoded, is not mono, is not of floats,
                or has NaN or infinite samples; or an argument is out of its range.
        """
        if batch_size is not None:
            kwargs["windows_per_call"] = batch_size
        if isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes, list)):
            # A column of `datasets` decodes a recording when it is asked for: one at a time.
            return list(super().__call__((item for item in inputs), **kwargs))
        return super().__call__(inputs, **kwargs)

    def stream(
        self,
        sampling_rate: int | None = None,
        *,
        window: float | None = None,
        hop: float | None = None,
        vad: str | None = None,
        batch_size: int = 1,
    ) -> TimelineStream:
        """Open a timeline for live sound: feed blocks, get events.

        Args:
            sampling_rate: Rate of the blocks, in Hz; by default the feature extractor's.
            window: As for the class; by default as given there.
            hop: The same.
            vad: The same.
            batch_size: Windows that go through the model in one call: more add to the latency.

        Returns:
            A stream whose ``latency`` says how long after its end an event comes, at most.
        """
        given = {"window": window, "hop": hop, "vad": vad}
        return TimelineStream(
            self._classify,
            self._labels,
            self.feature_extractor.sampling_rate,
            input_sampling_rate=sampling_rate,
            batch_size=batch_size,
            **{
                **self._forward_params,
                **{name: value for name, value in given.items() if value is not None},
            },
        )

    @property
    def _labels(self) -> list[str]:
        names: Any = self.model.config.id2label
        return [names[index] for index in range(len(names))]

    def _classify(self, waveforms: list[np.ndarray]) -> np.ndarray:
        """Probabilities (waveforms, labels) of windows at the feature extractor's rate."""
        inputs = self.feature_extractor(
            waveforms,
            sampling_rate=self.feature_extractor.sampling_rate,
            padding=True,
            return_tensors="pt",
        )
        with self.device_placement(), torch.no_grad():
            logits = self.model(**inputs.to(self.device, self.dtype)).logits.float().cpu()
        if self.model.config.problem_type == "multi_label_classification":
            return logits.sigmoid().numpy()
        return logits.softmax(-1).numpy()

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], ...]:
        unknown = set(kwargs) - {"window", "hop", "vad", "windows_per_call"}
        if unknown:
            raise TypeError(f"{TASK} does not know the argument {', '.join(sorted(unknown))}.")
        return {}, {name: value for name, value in kwargs.items() if value is not None}, {}

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Make blocks of sound of any source."""
        blocks, sampling_rate = _blocks(input_, self.feature_extractor.sampling_rate)
        return {"blocks": blocks, "sampling_rate": sampling_rate}

    def _forward(self, input_tensors: Any, **forward_parameters: Any) -> Any:
        """Run the blocks through a stream, which runs the windows through the model."""
        batch_size = forward_parameters.pop("windows_per_call", None) or self._batch_size or 16
        stream = self.stream(
            input_tensors["sampling_rate"], batch_size=batch_size, **forward_parameters
        )
        events = [event for block in input_tensors["blocks"] for event in stream.feed(block)]
        events += stream.finish()
        if not stream.duration:
            raise ValueError("The recording is empty. Pass at least one sample.")
        return {"events": events}

    def postprocess(
        self, model_outputs: Any, **postprocess_parameters: Any
    ) -> list[dict[str, Any]]:
        """The events are as they should be."""
        return model_outputs["events"]

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[list[dict[str, Any]]]:
        """One timeline after the other: what goes through the model in batches is their windows."""
        items = inputs
        if hasattr(inputs, "__getitem__"):  # a dataset need not know where iteration ends
            items = (inputs[index] for index in range(len(inputs)))
        return (
            self.run_single(item, preprocess_params, forward_params, postprocess_params)
            for item in items
        )


def _blocks(source: Any, sampling_rate: int) -> tuple[Iterable[np.ndarray], int]:
    """The blocks of any source, and their rate."""
    if hasattr(source, "get_all_samples"):  # what `datasets` decodes to, with torchcodec
        samples = source.get_all_samples()
        source = {"array": samples.data.mean(0), "sampling_rate": samples.sample_rate}
    if isinstance(source, Mapping):
        for name in ("blocks", "raw", "array"):
            if source.get(name) is not None:
                if source.get("sampling_rate") is None:
                    raise ValueError(f'Give the "sampling_rate" of "{name}" too.')
                sound = source[name]
                blocks = sound if name == "blocks" else _cut(sound, source["sampling_rate"])
                return blocks, source["sampling_rate"]
        source = source.get("bytes") or source.get("path")
    if isinstance(source, (str, os.PathLike, bytes)):
        return decode_blocks(source, sampling_rate), sampling_rate
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _cut(source, sampling_rate), sampling_rate
    raise TypeError(
        "Expected a path, the bytes of a file, a waveform, or a dict with one of blocks, array, "
        f"raw, bytes or path; got {type(source).__name__}. Of a data set, pass the column that "
        'holds the sound, such as dataset["audio"].'
    )


def _cut(waveform: Any, sampling_rate: int) -> Iterator[np.ndarray]:
    """An array in pieces, so that no step makes a copy of all of it."""
    if not isinstance(waveform, torch.Tensor):
        waveform = np.asarray(waveform)
    size = max(1, _BLOCK * int(sampling_rate) if waveform.ndim == 1 else len(waveform))
    return (waveform[first : first + size] for first in range(0, len(waveform), size))


__all__ = ["TASK", "TimNetTimelinePipeline"]

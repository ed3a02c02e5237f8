# SPDX-License-Identifier: Apache-2.0
"""MFCC feature extractor of TIM-Net: waveform → (frames, 39) mel-frequency cepstral coefficients.

Two presets:

``default``
    Ours, made to give the same answer whatever the recording's level, container or sampling rate:
    16 kHz, mel bands that end well below the Nyquist frequency of any usual source, silence at
    both ends left out, level set by the clip's own speech, each coefficient normalised.
``paper``
    What the published TIM-Net code computes, down to the sample count of each corpus. The empty
    band that resampling to 22,050 Hz leaves is part of those features, so a checkpoint trained on
    them follows the resampler: use soxr's HQ quality, as :func:`timnet_hf.load_audio` does.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging
from transformers.utils.generic import TensorType

from .configuration_timnet import drop_code_of_the_folder
from .mfcc_timnet import (
    DECIBEL,
    analysis_window,
    as_samples,
    band_power,
    centre,
    cosine_transform,
    mel_filters,
)
from .speaker_timnet import (
    SpeakerError,
    SpeakerProfile,
    blend,
    feature_settings,
    make_profile,
)

logger = logging.get_logger(__name__)

#: Samples at 22,050 Hz that the paper's preset pads or crops each corpus' clips to.
PAPER_NUM_SAMPLES = {
    "casia": 88_000,
    "emodb": 96_000,
    "emovo": 96_000,
    "iemocap": 310_000,
    "ravdess": 110_000,
    "savee": 130_000,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "sampling_rate": 22_050,
        "n_fft": 2048,
        "win_length": 2048,
        "hop_length": 512,
        "num_mel_bins": 128,
        "min_frequency": 0.0,
        "max_frequency": 11_025.0,
        "top_db": 80.0,
        "normalize_level": False,
        "trim_db": None,
        "num_samples": PAPER_NUM_SAMPLES["emodb"],
    },
}

#: Setting → its kind, its range, and whether it may be None.
_RANGES: dict[str, tuple[type, float, float, bool]] = {
    "feature_size": (Integral, 1, 512, False),
    "sampling_rate": (Integral, 1_000, 768_000, False),
    "padding_value": (Real, -1e6, 1e6, False),
    "n_fft": (Integral, 2, 65_536, False),
    "win_length": (Integral, 1, 65_536, False),
    "hop_length": (Integral, 1, 65_536, False),
    "num_mel_bins": (Integral, 1, 512, False),
    "top_db": (Real, 1, 1_000, True),
    "trim_db": (Real, 1, 1_000, True),
    "num_samples": (Integral, 1, 100_000_000, True),
}

#: Power of a frame (sum over mel bands) under which a clip counts as digital silence.
SILENCE_POWER = 1e-10


class TimNetFeatureExtractor(SequenceFeatureExtractor):
    """Turn mono waveforms into the MFCC frames that TIM-Net reads.

    Args:
        feature_size: Cepstral coefficients a frame, at most ``num_mel_bins``.
        sampling_rate: Rate of the waveforms, in Hz.
        padding_value: What short clips of a batch are filled up with; the mask hides it.
        n_fft: Length of the Fourier transform, in samples.
        win_length: Length of the periodic Hann window, in samples, at most ``n_fft``.
        hop_length: Samples between the centres of neighbouring frames.
        num_mel_bins: Triangular filters on the Slaney mel scale, each of unit area.
        min_frequency: Lower edge of the lowest filter, in Hz.
        max_frequency: Upper edge of the highest filter, in Hz, at most half the sampling rate.
        top_db: Depth below the clip's maximum at which the log spectrum is cut off, in dB.
        normalize_level: Set the mean power of the clip's speech frames to 0 dB.
        trim_db: Leave out frames at either end that lie this many dB under the loudest one;
            None keeps every frame.
        num_samples: Pad with zeros, or crop, each waveform evenly at both ends to this many
            samples; None keeps its length.
        do_normalize: Subtract ``mean`` and divide by ``std``, where they are given.
        mean: Mean of each coefficient over the training frames, ``feature_size`` values.
        std: Their standard deviation, above 0.
        **kwargs: Passed to :class:`transformers.SequenceFeatureExtractor`.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> import numpy as np
        >>> from timnet_hf import TimNetFeatureExtractor
        >>> extractor = TimNetFeatureExtractor()
        >>> clip = np.sin(np.arange(16000) / 20).astype("float32")
        >>> extractor(clip, sampling_rate=16000, return_tensors="pt")["input_values"].shape
        torch.Size([1, 51, 39])
    """

    model_input_names = ["input_values", "attention_mask"]

    #: Whether ``mean`` and ``std`` are a voice's; saved where they are.
    adapted_to_speaker: bool = False
    #: What they were before; never saved.
    _trained_statistics: tuple[list[float], list[float]] | None = None

    def __init__(
        self,
        feature_size: int = 39,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        n_fft: int = 1024,
        win_length: int = 800,
        hop_length: int = 320,
        num_mel_bins: int = 64,
        min_frequency: float = 50.0,
        max_frequency: float = 7_600.0,
        top_db: float | None = 60.0,
        normalize_level: bool = True,
        trim_db: float | None = 40.0,
        num_samples: int | None = None,
        do_normalize: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        if not __name__.startswith("transformers_modules."):
            drop_code_of_the_folder(kwargs)
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            **kwargs,
        )
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.num_mel_bins = num_mel_bins
        self.min_frequency = float(min_frequency)
        self.max_frequency = float(max_frequency)
        self.top_db = top_db
        self.normalize_level = normalize_level
        self.trim_db = trim_db
        self.num_samples = num_samples
        self.do_normalize = do_normalize
        self.mean = None if mean is None else [float(value) for value in mean]
        self.std = None if std is None else [float(value) for value in std]
        self._check()

    def _check(self) -> None:
        """Check kinds and ranges: the settings may come from anyone's JSON file."""
        for name, (kind, low, high, optional) in _RANGES.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            is_kind = isinstance(value, kind) and not isinstance(value, bool)
            if not is_kind or not low <= value <= high:
                what = "an integer" if kind is Integral else "a number"
                raise ValueError(f"{name} must be {what} from {low} to {high}, not {value!r}.")
        if self.feature_size > self.num_mel_bins:
            raise ValueError(
                f"feature_size ({self.feature_size}) must not exceed num_mel_bins "
                f"({self.num_mel_bins})."
            )
        if self.win_length > self.n_fft:
            raise ValueError(
                f"win_length ({self.win_length}) must not exceed n_fft ({self.n_fft})."
            )
        if not 0 <= self.min_frequency < self.max_frequency <= self.sampling_rate / 2:
            raise ValueError(
                f"The mel range {self.min_frequency}..{self.max_frequency} Hz must be increasing "
                f"and end at or below half the sampling rate ({self.sampling_rate / 2} Hz)."
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("Give both mean and std, or neither.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.feature_size:
                raise ValueError(f"{name} has {len(values)} values, not {self.feature_size}.")
            if values is not None and not np.isfinite(values).all():
                raise ValueError(f"Every value of {name} must be finite.")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("Every value of std must be above 0.")

    @classmethod
    def from_preset(
        cls, preset: str, corpus: str | None = None, **kwargs: Any
    ) -> TimNetFeatureExtractor:
        """Make an extractor from a named preset.

        Args:
            preset: ``"default"`` or ``"paper"``.
            corpus: For ``"paper"``: the corpus whose clip length to use (see
                ``PAPER_NUM_SAMPLES``); EMO-DB's where it is not one of the paper's six.
            **kwargs: Override the preset's values.

        Raises:
            ValueError: The preset is unknown.
        """
        if preset not in PRESETS:
            raise ValueError(f"Unknown preset {preset!r}. Choose one of {', '.join(PRESETS)}.")
        values = dict(PRESETS[preset])
        if preset == "paper" and corpus in PAPER_NUM_SAMPLES:
            values["num_samples"] = PAPER_NUM_SAMPLES[corpus]
        return cls(**{**values, **kwargs})

    @property
    def frames_per_second(self) -> float:
        """Frames in one second of audio."""
        return self.sampling_rate / self.hop_length

    def extract(self, waveform: np.ndarray | torch.Tensor) -> torch.Tensor:
        """MFCCs of one clip, before normalisation by mean and deviation.

        Args:
            waveform: (samples,), mono, usually within ±1.

        Returns:
            (frames, feature_size) float32. A clip shorter than a window is filled up with zeros;
            digital silence yields frames that are all alike.

        Raises:
            ValueError: The waveform is empty, not one-dimensional, holds integers, or has samples
                that are NaN, infinite or beyond ±100,000.
        """
        samples = as_samples(waveform)
        if self.num_samples is not None:
            samples = centre(samples, self.num_samples)
        window = analysis_window(self.win_length, self.n_fft)
        mel = mel_filters(
            self.sampling_rate,
            self.n_fft,
            self.num_mel_bins,
            self.min_frequency,
            self.max_frequency,
        )
        power = band_power(samples, window, self.hop_length, mel)
        reference = 1.0
        loudness = power.sum(1)
        loudest = float(loudness.max())
        if loudest > SILENCE_POWER and (self.trim_db is not None or self.normalize_level):
            speech = np.flatnonzero(loudness > loudest * 10 ** (-(self.trim_db or 40.0) / 10))
            if self.normalize_level:
                reference = float(loudness[speech].mean()) / self.num_mel_bins
            if self.trim_db is not None:
                power = power[speech[0] : speech[-1] + 1]
        bands = power / np.float32(reference)
        np.maximum(bands, np.float32(1e-10), out=bands)
        np.log(bands, out=bands)
        if self.top_db is not None:
            np.maximum(bands, bands.max() - np.float32(self.top_db / DECIBEL), out=bands)
        return torch.from_numpy(bands) @ cosine_transform(self.feature_size, self.num_mel_bins)

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Standardise (…, feature_size) with the stored mean and deviation, if there are any."""
        if not self.do_normalize or self.mean is None or self.std is None:
            return features
        mean, std = (np.asarray(values, dtype=np.float32) for values in (self.mean, self.std))
        return (features - torch.from_numpy(mean)) / torch.from_numpy(std)

    def describe_speaker(self, name: str, waveforms: Sequence[np.ndarray]) -> SpeakerProfile:
        """What is kept of a voice that is enrolled, see :mod:`timnet_hf.speaker_timnet`.

        Args:
            name: The speaker's name.
            waveforms: Recordings of this voice alone, each (samples,) at ``sampling_rate``;
                the more of them, and the more moods they are spoken in, the better.

        Raises:
            ValueError: There is no waveform, or one that :meth:`extract` refuses.
        """
        clips = [self.extract(waveform).numpy() for waveform in waveforms]
        return make_profile(name, clips, feature_settings(self))

    def adapted_to(
        self, speaker: SpeakerProfile | dict[str, Any] | str | os.PathLike[str]
    ) -> TimNetFeatureExtractor:
        """A copy that standardises by an enrolled voice instead of the training speakers.

        Every pipeline takes it as its ``feature_extractor``. A copy of a copy knows the last voice
        alone.

        Args:
            speaker: A profile, or the JSON file that ``timnet enroll`` wrote.

        Raises:
            SpeakerError: It is no profile, it was made with other features, this extractor has no
                training statistics to fall back on, or it was saved adapted.
            OSError: The file cannot be read.
        """
        profile = SpeakerProfile.load(speaker)
        if self.mean is None or self.std is None or not self.do_normalize:
            raise SpeakerError(
                "This model does not standardise its features, so it cannot be adapted to a voice. "
                "Use one that was trained with the default recipe."
            )
        differing = [
            setting
            for setting, value in feature_settings(self).items()
            if profile.features.get(setting) != value
        ]
        if differing or len(profile.mean) != self.feature_size:
            raise SpeakerError(
                f"{profile.name}: enrolled with another {', '.join(differing) or 'feature_size'} "
                "than this model's features have. Enrol the voice again with this model."
            )
        if self._trained_statistics is None and self.adapted_to_speaker:
            raise SpeakerError(
                "This feature extractor was saved adapted to a voice. Adapt that of the model as "
                "it was trained."
            )
        trained = self._trained_statistics or (self.mean, self.std)
        mean, std = blend(profile, *trained)
        adapted = copy.deepcopy(self)
        adapted.mean, adapted.std = mean.tolist(), std.tolist()
        adapted._trained_statistics = trained
        adapted.adapted_to_speaker = True
        return adapted

    def to_dict(self) -> dict[str, Any]:
        """The settings, as they are saved."""
        settings: dict[str, Any] = super().to_dict()
        settings.pop("_trained_statistics", None)
        return settings

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | Sequence[Any],
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Featurise one waveform or a batch of them.

        Args:
            raw_speech: One mono waveform (samples,), or a batch: a list of waveforms, or an array
                (batch, samples).
            sampling_rate: Rate of the waveforms in Hz; passing it guards against a wrong one.
            padding: ``True`` or ``"longest"``: pad to the longest clip; ``"max_length"``: to
                ``max_length``; ``False``: not at all.
            max_length: Length to pad or truncate to, in frames.
            truncation: Cut clips longer than ``max_length`` frames.
            pad_to_multiple_of: Pad to a multiple of this many frames.
            return_attention_mask: Also return the mask of valid frames; by default yes.
            return_tensors: ``"pt"`` or ``"np"``.
            **kwargs: Ignored, as by every feature extractor of transformers.

        Returns:
            ``input_values`` (batch, frames, feature_size) and ``attention_mask`` (batch, frames).

        Raises:
            ValueError: The sampling rate differs, the input is not mono, or a waveform is empty
                or has samples that no recording has.
        """
        if sampling_rate is None:
            logger.warning_once(
                "Pass sampling_rate to TimNetFeatureExtractor: without it, audio at a rate other "
                f"than {self.sampling_rate} Hz goes unnoticed."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"This feature extractor reads audio at {self.sampling_rate} Hz, not at "
                f"{sampling_rate} Hz. Resample it first: timnet_hf.load_audio(path, "
                f"sampling_rate={self.sampling_rate}), or timnet_hf.resample for an array."
            )
        features = [
            self.normalize(self.extract(waveform)).numpy() for waveform in _as_batch(raw_speech)
        ]
        return self.pad(
            BatchFeature({"input_values": features}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )


def _as_batch(raw_speech: Any) -> list[Any]:
    """The waveforms in any of the accepted forms of input, as a list."""
    if raw_speech is None or isinstance(raw_speech, (str, bytes, dict)):
        raise ValueError(
            f"Expected waveforms, got {type(raw_speech).__name__}. Decode recordings first, with "
            "timnet_hf.load_audio for example, or give them to a pipeline."
        )
    if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
        if raw_speech.ndim > 2:
            raise ValueError(
                f"Expected (samples,) or (batch, samples), got shape {tuple(raw_speech.shape)}. "
                "Mix the channels down to mono first."
            )
        if raw_speech.ndim == 2 and not len(raw_speech):
            raise ValueError("The batch is empty. Pass at least one waveform.")
        return list(raw_speech) if raw_speech.ndim == 2 else [raw_speech]
    if len(raw_speech) and isinstance(raw_speech[0], (np.ndarray, torch.Tensor, list, tuple)):
        if getattr(raw_speech[0], "ndim", 1):  # else one waveform, a scalar a sample
            return list(raw_speech)
    return [raw_speech]


__all__ = ["PAPER_NUM_SAMPLES", "PRESETS", "TimNetFeatureExtractor"]

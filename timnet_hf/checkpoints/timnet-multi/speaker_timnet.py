# SPDX-License-Identifier: Apache-2.0
"""Know the voice: features and answers put right by a speaker's own, no labels needed.

A recording carries both the emotion and the voice, and a voice may sound angry or sad by nature.
Where some recordings of it are at hand, two things take it out. Features are standardised by the
voice's own mean and deviation, blended with those of the training frames. And what a model usually
answers to this voice is taken off its logits: a voice that is called angry in every recording is
called so a little less. Both weigh the more the more was enrolled, so that one short recording
cannot lead astray; both assume that the recordings are of all moods.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Frames of the training statistics that a profile is blended with.
PRIOR_FRAMES = 250
#: How far a voice that is known well counts against the training speakers, 0 to 1. Measured on
#: RAVDESS actors 1-12: all of it takes out more than the voice, see results/research.md.
LARGEST_SHARE = 0.75
#: With so many recordings of a voice, half of its usual answer counts. Chosen on the same actors.
PRIOR_RECORDINGS = 8
#: What no recording comes near: coefficients and logits beyond it, or as many frames, are made up.
_LARGEST, _SMALLEST, _MOST = 1e4, 1e-6, 10**9
#: Settings of a feature extractor that change what its coefficients mean.
FEATURE_SETTINGS = (
    "feature_size",
    "sampling_rate",
    "n_fft",
    "win_length",
    "hop_length",
    "num_mel_bins",
    "min_frequency",
    "max_frequency",
    "top_db",
    "normalize_level",
    "trim_db",
    "num_samples",
)


class SpeakerError(ValueError):
    """A speaker profile cannot be made, read or used; the message says why and what to do."""


@dataclass(frozen=True)
class SpeakerProfile:
    """What is kept of a voice: how its features lie, and nothing that could be played back.

    Attributes:
        name: The speaker's name.
        mean: Mean of each coefficient over the voice's frames, before any standardisation.
        std: Deviation of each coefficient.
        frames: How many frames that were.
        recordings: From how many recordings.
        features: The extractor's settings, see ``FEATURE_SETTINGS``.
        usual_logits: A model's mean logits over the recordings, with features standardised for this
            voice; None where no model was asked.
        model: Which model that was.
    """

    name: str
    mean: list[float]
    std: list[float]
    frames: int
    recordings: int
    features: dict[str, Any]
    usual_logits: list[float] | None = None
    model: str | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(target)

    @classmethod
    def load(
        cls, source: SpeakerProfile | dict[str, Any] | str | os.PathLike[str]
    ) -> SpeakerProfile:
        """Read a profile from a JSON file, or check one that is given as values.

        Raises:
            SpeakerError: It is not a profile.
            OSError: The file cannot be read.
        """
        if isinstance(source, SpeakerProfile):
            return source
        name = "speaker profile"
        if is_dataclass(source):  # a profile too: code from the Hub may have been loaded twice
            source = asdict(source)
        values: Any = source
        if not isinstance(source, dict):
            name = os.fspath(source)
            try:
                values = json.loads(Path(source).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise _not_a_profile(name, "is not JSON") from error
        try:
            profile = cls(**values)
            mean, std = _numbers(profile.mean), _numbers(profile.std)
            usual = _numbers(profile.usual_logits or ())
            counts = (profile.frames, profile.recordings)
        except (TypeError, ValueError, OverflowError) as error:
            raise _not_a_profile(name, "lacks what a profile holds") from error
        if (
            mean.ndim != 1
            or mean.shape != std.shape
            or usual.ndim != 1
            or not all((np.abs(values) <= _LARGEST).all() for values in (mean, std, usual))
            or not (std >= _SMALLEST).all()
            or not all(type(n) is int and 0 < n <= _MOST for n in counts)
            or not isinstance(profile.features, dict)
            or not isinstance(profile.name, str)
        ):
            raise _not_a_profile(name, "holds values out of range")
        return profile


def _numbers(values: Any) -> np.ndarray:
    """Numbers as an array; text that looks like them is refused."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{array.dtype}: not numbers")
    return array.astype(float)


def _not_a_profile(name: str, what: str) -> SpeakerError:
    return SpeakerError(f"{name}: {what}. Make a profile with `timnet enroll`.")


def feature_settings(extractor: Any) -> dict[str, Any]:
    """The settings that a profile and an extractor must share."""
    return {name: getattr(extractor, name) for name in FEATURE_SETTINGS}


def make_profile(
    name: str, clips: Sequence[np.ndarray], features: dict[str, Any]
) -> SpeakerProfile:
    """A profile from unstandardised features, one array (frames, feature_size) a recording.

    Raises:
        SpeakerError: There is no frame.
    """
    if not any(len(clip) for clip in clips):
        raise SpeakerError(f"{name}: no recording to make a profile of. Give at least one.")
    frames = np.concatenate([np.asarray(clip, np.float64) for clip in clips])
    return SpeakerProfile(
        name=name,
        mean=np.round(frames.mean(0), 6).tolist(),
        std=np.round(np.maximum(frames.std(0), 1e-6), 6).tolist(),
        frames=len(frames),
        recordings=len(clips),
        features=features,
    )


def blend(
    profile: SpeakerProfile, mean: npt.ArrayLike, std: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation to standardise this voice by, given those of the training frames."""
    weight = LARGEST_SHARE * profile.frames / (profile.frames + PRIOR_FRAMES)
    blended = weight * np.asarray(profile.mean) + (1 - weight) * np.asarray(mean)
    variance = weight * np.square(profile.std) + (1 - weight) * np.square(std)
    return blended, np.sqrt(variance)


def logit_offset(usual_logits: npt.ArrayLike, recordings: int) -> np.ndarray:
    """What to add to a voice's logits (num_labels,), given the model's mean logits over some of it.

    The offset has mean 0. With few recordings it is small: what they have in common may be a mood.
    """
    usual = np.asarray(usual_logits, np.float64)
    return -recordings / (recordings + PRIOR_RECORDINGS) * (usual - usual.mean())


__all__ = [
    "LARGEST_SHARE",
    "PRIOR_FRAMES",
    "PRIOR_RECORDINGS",
    "SpeakerError",
    "SpeakerProfile",
    "blend",
    "feature_settings",
    "logit_offset",
    "make_profile",
]

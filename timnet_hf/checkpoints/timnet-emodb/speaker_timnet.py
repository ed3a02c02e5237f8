# SPDX-License-Identifier: Apache-2.0
"""Know the voice: a speaker's feature statistics, and features standardised by them.

A recording's spectrum carries both the emotion and the voice. Where some recordings of a voice are
at hand, no labels needed, its own mean and deviation take the voice out. A profile is blended with
the training statistics, the more so the fewer frames it has: one short recording cannot lead
astray.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

#: Frames of the training statistics that a profile is blended with.
PRIOR_FRAMES = 250
#: How far a voice that is known well counts against the training speakers, 0 to 1. Measured on
#: RAVDESS actors 1-12: all of it takes out more than the voice, see results/research.md.
LARGEST_SHARE = 0.75
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
    """

    name: str
    mean: list[float]
    std: list[float]
    frames: int
    recordings: int
    features: dict[str, Any]

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
        values: Any = source
        if not isinstance(source, dict):
            name = os.fspath(source)
            try:
                values = json.loads(Path(source).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise _not_a_profile(name, "is not JSON") from error
        try:
            profile = cls(**values)
            mean, std = np.asarray(profile.mean, float), np.asarray(profile.std, float)
        except (TypeError, ValueError, OverflowError) as error:
            raise _not_a_profile(name, "lacks what a profile holds") from error
        if (
            mean.ndim != 1
            or mean.shape != std.shape
            or not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all())
            or not isinstance(profile.frames, int)
            or profile.frames < 1
            or not isinstance(profile.features, dict)
        ):
            raise _not_a_profile(name, "holds values out of range")
        return profile


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


__all__ = [
    "LARGEST_SHARE",
    "PRIOR_FRAMES",
    "SpeakerError",
    "SpeakerProfile",
    "blend",
    "feature_settings",
    "make_profile",
]

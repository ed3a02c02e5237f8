# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that knows the voice: from other recordings of it, or from its profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import Checkpoint
from recording import load_recording, shown_name

#: Recordings of a voice that are accepted, minutes of each, and bytes of a profile.
MAX_RECORDINGS, MAX_MINUTES, MAX_BYTES = 20, 2, 2**20


class VoiceError(ValueError):
    """These files do not describe a voice; the message says why and what to do."""


def knowing(checkpoint: Checkpoint, files: Sequence[str] | None) -> Checkpoint:
    """The checkpoint put right for one voice; as it is where there are no files.

    Args:
        checkpoint: The model.
        files: Recordings of one voice, no labels needed, or the JSON that ``timnet enroll`` wrote.

    Raises:
        VoiceError: Too many files, nothing to hear in one, or no profile of a voice.
        RecordingError: One of the recordings cannot be used.
        ValueError: The model cannot be adapted, or the profile was made with other features.
    """
    if not files:
        return checkpoint
    if len(files) > MAX_RECORDINGS:
        raise VoiceError(f"{len(files)} files are too many: {MAX_RECORDINGS} tell enough.")
    model, extractor = checkpoint.timeline.model, checkpoint.timeline.feature_extractor
    if len(files) == 1 and files[0].lower().endswith(".json"):
        name = shown_name(files[0])
        if Path(files[0]).stat().st_size > MAX_BYTES:
            raise VoiceError(f"{name} is too large for a speaker profile.")
        profile: Any = files[0]
    else:
        name = ""
        waveforms = [load_recording(one, checkpoint.sampling_rate, MAX_MINUTES) for one in files]
        for one, waveform in zip(files, waveforms, strict=True):
            if np.abs(waveform).max() <= 1e-4:
                raise VoiceError(f"{shown_name(one)} holds nothing but silence. Leave it out.")
        profile = model.describe_speaker("voice", waveforms, extractor)
    try:
        timeline = type(checkpoint.timeline)(
            model=model.adapted_to(profile),
            feature_extractor=extractor.adapted_to(profile),
            device="cpu",
        )
    except ValueError as error:
        if not name:
            raise
        raise VoiceError(str(error).replace(files[0], name)) from error  # not the page's own path
    return replace(checkpoint, timeline=timeline)


__all__ = ["VoiceError", "knowing"]

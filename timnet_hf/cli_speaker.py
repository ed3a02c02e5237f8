# SPDX-License-Identifier: Apache-2.0
"""``timnet enroll``: know a voice from some recordings of it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .cli_common import ModelOption, say


def enroll(
    inputs: Annotated[list[Path], typer.Argument(help="Recordings of one voice, or folders.")],
    name: Annotated[str, typer.Option("--name", help="What to call the voice.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The profile; by default NAME.json.")
    ] = None,
    model: ModelOption = None,
) -> None:
    """Keep what a voice usually sounds like, for `timnet predict --speaker`; no labels needed."""
    from .audio import AudioError, find_audio_files
    from .prediction import enroll as make_profile
    from .prediction import load_model
    from .speaker_timnet import SpeakerError, SpeakerProfile

    if not name.strip():
        raise SpeakerError("--name: is empty. Give the voice a name.")
    path = output or Path(f"{Path(name).name.lstrip('. ') or 'speaker'}.json")
    if not path.parent.is_dir():
        raise SpeakerError(f"{path.parent}: no such folder. Make it first, or choose another.")
    if path.exists():
        try:
            SpeakerProfile.load(path)
        except SpeakerError as error:
            raise SpeakerError(
                f"{path}: is there already, and is no speaker's profile. Choose another --output."
            ) from error
    files = find_audio_files(inputs)
    if not files:
        raise AudioError(f"{', '.join(map(str, inputs))}: no recordings; give files or a folder")
    network, extractor = load_model(model)
    profile = make_profile(name, files, network, extractor)
    profile.save(path)
    seconds = profile.frames / extractor.frames_per_second
    say(f"{path}: {profile.recordings} recording(s), {seconds:.1f} s of {name}'s voice")
    options = [*(["--model", str(model)] if model else []), "--speaker", str(path)]
    say(f"try it: timnet predict {shlex.join(options)} your.wav")


__all__ = ["enroll"]

# SPDX-License-Identifier: Apache-2.0
"""``timnet export``: a model as an ONNX file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .cli_common import ModelOption, say


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    model: ModelOption = None,
    features_in: Annotated[
        Path | None,
        typer.Option("--features-in", help="Also write a file that takes features, not sound."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="The network's weights as 8-bit integers.")
    ] = False,
    speaker: Annotated[
        Path | None,
        typer.Option("--speaker", help="For one voice: its profile, from `timnet enroll`."),
    ] = None,
) -> None:
    """Write a model as ONNX: sound in, probabilities out, no PyTorch needed."""
    from .export import export_onnx

    for file in export_onnx(model, output, features_in=features_in, int8=int8, speaker=speaker):
        say(
            f"{file.path}: {file.size / 1000:.0f} kB, probabilities within {file.deviation:.1g} "
            "of PyTorch's"
        )
    say(f"try it: timnet predict --model {shlex.quote(str(output))} your.wav")


__all__ = ["export"]

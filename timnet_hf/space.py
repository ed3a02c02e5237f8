# SPDX-License-Identifier: Apache-2.0
"""The demo page: start it on this machine, or collect the files it is published from.

The page is a program of its own, in `spaces/timnet-emotion` of the source tree and in `_space` of
an installed package. It runs without this package, as it does on the Hub.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .prediction import CHECKPOINTS, DEFAULT_CHECKPOINT, resolve_model

_PACKAGE = Path(__file__).parent
_PLACES = (_PACKAGE / "_space", _PACKAGE.parent / "spaces" / "timnet-emotion")
_CLIPS = _PACKAGE / "demo_clips"


class SpaceError(ValueError):
    """The demo page cannot be started; the message says why and what to do."""


def space_folder() -> Path:
    """The folder that holds the page's `app.py`.

    Raises:
        SpaceError: It is neither in the installed package nor in the source tree.
    """
    for folder in _PLACES:
        if (folder / "app.py").is_file():
            return folder
    raise SpaceError(f"{_PLACES[0]}: the demo page is missing. Reinstall timnet-hf.")


def space_files() -> dict[str, Path]:
    """What the page consists of on the Hub: file name there → file here.

    Raises:
        SpaceError: The page is not there.

    Example:
        >>> {"README.md", "app.py", "requirements.txt"} <= set(space_files())
        True
    """
    folder = space_folder()
    kinds = ("*.py", "README.md", "requirements.txt")
    files = {path.name: path for kind in kinds for path in folder.glob(kind)}
    files |= {f"examples/{path.name}": path for path in _CLIPS.glob("*") if path.is_file()}
    return dict(sorted(files.items()))


def launch_space(
    model: str | Path | None = None,
    port: int | None = None,
    *,
    host: str = "127.0.0.1",
) -> int:
    """Serve the page until it is stopped; call it from the main thread, which hears signals.

    With checkpoints that lie on this machine it runs offline, so that visitors can choose among
    those only. With a Hub id it may use the network, for any other Hub id too.

    Args:
        model: What the page opens with: a folder, a Hub id, or the name of a shipped checkpoint.
            By default it offers all that are shipped.
        port: Where it listens; by default the first free port from 7860 on.
        host: Address it listens at. The default is reached from this machine only.

    Returns:
        The exit status of the server.

    Raises:
        SpaceError: The page or Gradio is not installed.
        ModelError: There is no such checkpoint.
    """
    if importlib.util.find_spec("gradio") is None:
        raise SpaceError('The demo page needs Gradio: pip install "timnet-hf[demo]".')
    app = space_folder() / "app.py"
    command = [sys.executable, str(app)]
    environment = {**os.environ, **space_environment(model, port, host=host)}
    # Ctrl-C reaches the page too; whatever else ends us must end it.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with subprocess.Popen(command, env=environment) as process:
            try:
                return process.wait()
            finally:
                process.terminate()
    finally:
        signal.signal(signal.SIGTERM, previous)


def space_environment(
    model: str | Path | None = None, port: int | None = None, *, host: str = "127.0.0.1"
) -> Mapping[str, str]:
    """The environment variables that tell the page what :func:`launch_space` was asked for.

    Raises:
        ModelError: There is no such checkpoint.
    """
    sources = [resolve_model(model)] if model else _shipped()
    values = {
        "TIMNET_MODEL": os.pathsep.join(sources),
        "TIMNET_EXAMPLES": str(_CLIPS),
        "GRADIO_SERVER_NAME": host,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if port is not None:
        values["GRADIO_SERVER_PORT"] = str(port)
    if all(Path(source).is_dir() for source in sources):
        values["HF_HUB_OFFLINE"] = "1"
    return values


def _shipped() -> list[str]:
    """Every checkpoint that comes with the package, the default one first."""
    first = resolve_model(DEFAULT_CHECKPOINT)
    others = sorted(str(path) for path in CHECKPOINTS.iterdir() if (path / "config.json").is_file())
    return [first, *(path for path in others if path != first)]


__all__ = ["SpaceError", "launch_space", "space_environment", "space_files", "space_folder"]

# SPDX-License-Identifier: Apache-2.0
"""What every test stands on: an offline, single-threaded world and the material beside the project.

Recordings live outside the project. A test that needs them asks for a fixture such as `emodb_dir`
and is skipped where they are absent; the same holds for the programs `ffmpeg` and Chromium. CI
sets `TIMNET_REQUIRE_SHARED`, `TIMNET_REQUIRE_FFMPEG` and `TIMNET_REQUIRE_BROWSER`, which turn the
skips into failures.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# These are read when the libraries are imported, so they are set before anything else is.
_HF_HOME = tempfile.mkdtemp(prefix="timnet-hf-tests-")
os.environ.update(
    HF_HOME=_HF_HOME,  # the user's own cache neither helps a test nor is filled by one
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    GRADIO_ANALYTICS_ENABLED="False",
    RAY_USAGE_STATS_ENABLED="0",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",  # equal results on any machine, and no fight between pytest workers
    MKL_NUM_THREADS="1",
)

import numpy as np  # noqa: E402  (its threads are counted at import)
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIRE_SHARED = "TIMNET_REQUIRE_SHARED"

# A slow machine is not a wrong answer; in CI the same examples are tried every time.
settings.register_profile("timnet", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("timnet")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)


def _missing(what: str, variable: str) -> None:
    """End the test: as a failure where `variable` says that `what` must be there."""
    if os.environ.get(variable, "0") not in ("", "0"):
        pytest.fail(f"{what}, but {variable} is set", pytrace=False)
    pytest.skip(what)


# --- material outside the project -------------------------------------------------------------


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the project's working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Recordings and references that lie beside the project, never in it."""
    path = Path(os.environ.get("TIMNET_SHARED_DIR") or REPOSITORY.parent / "shared")
    if not path.is_dir():
        _missing(f"no folder {path} with recordings (see TIMNET_SHARED_DIR)", REQUIRE_SHARED)
    return path


def _shared_part(shared_dir: Path, *parts: str) -> Path:
    path = shared_dir.joinpath(*parts)
    if not path.is_dir():
        _missing(f"no folder {path}", REQUIRE_SHARED)
    return path


@pytest.fixture(scope="session")
def emodb_dir(shared_dir: Path) -> Path:
    """EMO-DB as its owners publish it: the recordings lie in `wav/` below this folder."""
    return _shared_part(shared_dir, "data", "emodb")


@pytest.fixture(scope="session")
def ravdess_dir(shared_dir: Path) -> Path:
    """RAVDESS speech: `Actor_01` … `Actor_24` lie below this folder."""
    return _shared_part(shared_dir, "data", "ravdess")


@pytest.fixture(scope="session")
def reference_dir(shared_dir: Path) -> Path:
    """Features, activations and weights that other people's code computed."""
    return _shared_part(shared_dir, "reference")


# --- programs ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """Path of the ffmpeg program, which the stock pipeline decodes files with."""
    path = shutil.which("ffmpeg")
    if path is None:
        _missing("the program ffmpeg is not installed", "TIMNET_REQUIRE_FFMPEG")
    return str(path)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium or Chrome that has its chromedriver beside it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None or shutil.which("chromedriver") is None:
        _missing("Chromium with chromedriver is not installed", "TIMNET_REQUIRE_BROWSER")
    return str(path)


# --- sound ------------------------------------------------------------------------------------


def synthesise_speech(
    duration: float = 2.0, sampling_rate: int = 16_000, *, pitch: float = 120.0, seed: int = 0
) -> np.ndarray:
    """Make something that is built like speech: voiced syllables with moving formants, and noise.

    Harmonics of a gliding fundamental are weighted by three formant resonances that move from
    syllable to syllable (about four a second); breath noise fills the gaps. The same arguments
    give the same sound.

    Args:
        duration: Seconds.
        sampling_rate: Hertz.
        pitch: Mean fundamental frequency in hertz.
        seed: Chooses the syllables.

    Returns:
        Mono float32 waveform (samples,), peak 0.5.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration * sampling_rate)) / sampling_rate
    syllables = max(1, round(4 * duration))
    knots = (np.arange(syllables) + 0.5) * duration / syllables
    formants = [
        np.interp(time, knots, rng.uniform(low, high, syllables))
        for low, high in ((300, 800), (900, 2200), (2300, 3200))
    ]
    f0 = pitch * np.interp(time, knots, rng.uniform(0.85, 1.2, syllables))
    phase = 2 * np.pi * np.cumsum(f0) / sampling_rate
    loudness = np.sin(np.pi * np.clip(time * syllables / duration, 0, syllables)) ** 2

    harmonics = int(min(4_000, 0.45 * sampling_rate) / (1.2 * pitch))
    voice = np.zeros_like(time)
    for harmonic in range(1, harmonics + 1):
        resonance = sum(1 / (1 + ((harmonic * f0 - f) / 120) ** 2) for f in formants)
        voice += resonance / harmonic * np.sin(harmonic * phase)
    noise = np.random.default_rng(seed + 1).standard_normal(time.size)
    sound = loudness * voice / np.abs(voice).max() + 0.01 * (1 - 0.8 * loudness) * noise
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


@pytest.fixture(scope="session")
def make_speech() -> Callable[..., np.ndarray]:
    """The synthesiser itself, for tests that need several sounds: see `synthesise_speech`."""
    return synthesise_speech


@pytest.fixture
def speech() -> np.ndarray:
    """Two seconds of synthesised speech: mono float32 at 16 kHz, (32000,)."""
    return synthesise_speech()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty Hub that huggingface_hub takes for the real one."""
    from huggingface_hub import constants

    from .fake_hub import serve

    with serve() as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # transformers keeps one client for good, bound to the Hub of its first use.
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        yield hub


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains, fails."""
    import timnet_hf.training

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a training started")

    monkeypatch.setattr(timnet_hf.training, "train", refuse)

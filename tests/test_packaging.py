# SPDX-License-Identifier: Apache-2.0
"""The wheel and the sdist: complete, free of recordings, and working outside the repository."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, the wheel made from the sdist."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(repository)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked by pip, without its dependencies: those are here."""
    site = tmp_path_factory.mktemp("site")
    (wheel,) = built.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(wheel)], check=True)
    return site


def run(site: Path, cwd: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_version_stands_in_one_place(repository: Path, built: Path) -> None:
    import timnet_hf

    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"timnet_hf-{timnet_hf.__version__}-py3-none-any.whl"
    assert sdist.name == f"timnet_hf-{timnet_hf.__version__}.tar.gz"
    project = (repository / "pyproject.toml").read_text().partition("[project]")[2]
    project = project.partition("\n[")[0]
    assert 'dynamic = ["version"]' in project
    assert not re.search(r"^version\s*=", project, re.MULTILINE)


def test_the_wheel_holds_what_runs_without_the_repository(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {
        "timnet_hf/py.typed",
        "timnet_hf/MODEL_CARD.md",
        "timnet_hf/_space/app.py",
        "timnet_hf/checkpoints/timnet-emodb/model.safetensors",
        "timnet_hf/checkpoints/timnet-emodb/training_record.json",
        "timnet_hf/data/emobox_folds.json",
        "timnet_hf/metrics/uar/uar.py",
    }
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "results/"))]


def test_no_recording_is_published(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [*zipfile.ZipFile(wheel).namelist(), *archive.getnames()]
    audio = [name for name in names if re.search(r"\.(wav|mp3|ogg|flac|m4a)$", name)]
    assert audio and all("/demo_clips/" in name for name in audio)


def test_the_sdist_can_be_tested(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"README.md", "LICENSE", "SECURITY.md", "Makefile", "constraints.txt"}
    assert names >= {"tests/conftest.py", "tests/golden.json", "scripts/fuzz.py"}


def test_the_installed_wheel_works_outside_the_repository(
    installed: Path, repository: Path, tmp_path: Path
) -> None:
    where = run(
        installed, tmp_path, sys.executable, "-c", "import timnet_hf as t; print(t.__file__)"
    )
    assert str(installed) in where and str(repository) not in where

    command = [sys.executable, str(installed / "bin" / "timnet")]
    import timnet_hf

    assert run(installed, tmp_path, *command, "--version").strip() == timnet_hf.__version__
    clips = installed / "timnet_hf" / "demo_clips"
    records = json.loads(run(installed, tmp_path, *command, "predict", str(clips), "--format=json"))
    assert records and all(record["label"] for record in records)
    script = """
import json
from timnet_hf.space import space_files
from timnet_hf.model_folder import verify_model_folder
from timnet_hf.prediction import CHECKPOINTS
verify_model_folder(CHECKPOINTS / "timnet-emodb")
print(json.dumps(sorted(space_files())))
"""
    assert "app.py" in run(installed, tmp_path, sys.executable, "-c", script)


def test_every_python_that_is_promised_is_a_classifier(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.10"' in text and 'target-version = "py310"' in text
    for minor in range(10, 14):
        assert f'"Programming Language :: Python :: 3.{minor}"' in text


def test_the_dependencies_that_are_installed_are_those_that_are_asked_for(installed: Path) -> None:
    (info,) = installed.glob("timnet_hf-*.dist-info")
    wanted = importlib.metadata.PathDistribution(info).requires or []
    from packaging.requirements import Requirement

    for requirement in map(Requirement, wanted):
        if requirement.marker is None:
            version = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(version, prereleases=True), requirement

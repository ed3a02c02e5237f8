# SPDX-License-Identifier: Apache-2.0
"""Full disks, read-only folders and second processes: said plainly, and what was there stays whole.

A disk is really full here, and a folder really read-only: a small file system is mounted, which
takes root; without it those tests are skipped. A limit on the size of files needs no rights.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from timnet_hf import output_folder, reporting
from timnet_hf.corpora import CorpusError, download_corpus
from timnet_hf.corpus_table import Download
from timnet_hf.crossvalidation import CrossValidationError
from timnet_hf.crossvalidation_run import run_cross_validation
from timnet_hf.experiment import Data, load_data, train_to_folder
from timnet_hf.hub import HubError, publish
from timnet_hf.model_folder import verify_model_folder
from timnet_hf.output_folder import in_one_step, sole_use, told_when_full, write_json
from timnet_hf.scoring import ScoringError, score
from timnet_hf.training import TrainingError

from .model_folders import write_model_folder
from .tiny_training import tiny_recipe, write_recordings

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = tiny_recipe()
#: The archive that a download leaves below `--data-dir` and unpacks.
ARCHIVE = ".emodb.zip"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return load_data(write_recordings(tmp_path_factory.mktemp("data") / "calls", metadata=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands where a download would end."""
    path = tmp_path_factory.mktemp("archive") / "emodb.zip"
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("wav/03a01Fa.wav", os.urandom(900_000))
    return path


# --- everything that writes ---------------------------------------------------------------------


def do_train(folder: Path, data: Data, model: Path, archive: Path) -> None:
    train_to_folder(data, RECIPE, folder / "model")


def do_cross_validate(folder: Path, data: Data, model: Path, archive: Path) -> None:
    run_cross_validation(data, RECIPE, "loso", folder / "results")


def do_download(folder: Path, data: Data, model: Path, archive: Path) -> None:
    target = folder / ARCHIVE
    if not target.exists():
        target.write_bytes(archive.read_bytes())
    download_corpus("emodb", folder, download=Download("http://127.0.0.1:9/nothing.zip"))


def do_publish(folder: Path, data: Data, model: Path, archive: Path) -> None:
    publish(model, "org/timnet", dry_run=True, output_dir=folder / "dry-run")


def do_score(folder: Path, data: Data, model: Path, archive: Path) -> None:
    source = Path(data.dataset["path"][0]).parent
    score(source, folder / "out.parquet", model, workers=1)


JOBS: dict[str, tuple[Callable[..., None], type[Exception]]] = {
    "train": (do_train, TrainingError),
    "cross-validate": (do_cross_validate, CrossValidationError),
    "download": (do_download, CorpusError),
    "publish": (do_publish, HubError),
    "score": (do_score, ScoringError),
}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "BOOTSTRAP_ROUNDS", 20)


# --- one at a time ------------------------------------------------------------------------------

#: Where each job holds its lock.
HELD = {
    "train": "model",
    "cross-validate": "results/calls/loso/tiny",
    "download": ".emodb.download",
    "publish": ".dry-run.writing",
    "score": "out.parquet.shards",
}
_HOLDER = """
import sys, time
from pathlib import Path
from timnet_hf.output_folder import sole_use
with sole_use(Path(sys.argv[1]), ValueError):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _HOLDER, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("name", HELD)
def test_a_second_process_refuses(
    name: str, data: Data, model: Path, archive: Path, tmp_path: Path
) -> None:
    job, refusal = JOBS[name]
    with (
        another_process(tmp_path / HELD[name]),
        pytest.raises(refusal, match="another process is at work there. Wait until it is done"),
    ):
        job(tmp_path, data, model, archive)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with another_process(folder) as process:
        with pytest.raises(ValueError, match="out: another process"), sole_use(folder, ValueError):
            pass
        process.kill()
        process.wait(20)
        deadline = time.monotonic() + 20
        while True:
            try:
                with sole_use(folder, ValueError):
                    break
            except ValueError:
                assert time.monotonic() < deadline


def test_the_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with sole_use(tmp_path / "new", ValueError):
        pass
    assert not (tmp_path / "new").exists(), "an empty folder that it made is gone"
    with sole_use(tmp_path / "new", ValueError):
        (tmp_path / "new" / "file").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_file_is_written_in_one_step_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    with in_one_step(file) as temporary:
        temporary.write_text("whole")
        assert not file.exists()
    with pytest.raises(ZeroDivisionError), in_one_step(file) as temporary:
        temporary.write_text("ha")
        raise ZeroDivisionError
    assert file.read_text() == "whole" and list(tmp_path.iterdir()) == [file]


# --- full disks ---------------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, as small as asked for."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to make any file larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_is_said_and_earlier_results_are_whole(
    name: str, data: Data, model: Path, archive: Path, tmp_path: Path
) -> None:
    job, _ = JOBS[name]
    room = 4_096 if name == "score" else 20_480
    with mounted(tmp_path / "disk", "size=1m") as disk:
        earlier = disk / "earlier"
        earlier.write_bytes(os.urandom(100_000))
        kept = earlier.read_bytes()
        if name == "download":
            (disk / ARCHIVE).write_bytes(archive.read_bytes())
        else:
            (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - room))
        with pytest.raises((OSError, ValueError)) as caught:
            job(disk, data, model, archive)
        message = str(caught.value)
        assert str(disk) in message, "the message names the place"
        # Which has a "full" in its own name, as this test has.
        assert re.search("(?i)no space left|disk is full", message.replace(str(disk), ""))
        assert earlier.read_bytes() == kept
        for path in disk.rglob("*.json"):
            json.loads(path.read_text())
        assert not (disk / "emodb").exists() and not (disk / "dry-run").exists()


def test_a_training_goes_on_when_there_is_space_again(data: Data, tmp_path: Path) -> None:
    whole = train_to_folder(data, RECIPE, tmp_path / "whole")
    with (
        files_up_to(12_000),
        pytest.raises(OSError, match="the disk is full .* go on with --resume") as caught,
    ):
        train_to_folder(data, RECIPE, tmp_path / "model")
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert not (tmp_path / "model" / "model.safetensors").exists()

    again = train_to_folder(data, RECIPE, tmp_path / "model")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_an_earlier_model_survives_a_training_that_finds_no_space(
    data: Data, tmp_path: Path
) -> None:
    folder = train_to_folder(data, RECIPE, tmp_path / "model")
    before = files_in(folder)
    with files_up_to(12_000), pytest.raises(OSError):
        train_to_folder(data, RECIPE, folder, seed=1)
    after = files_in(folder)
    assert {name: after[name] for name in before} == before
    verify_model_folder(folder)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/1"), 28),
        (Exception('I/O error: Os { code: 28, kind: StorageFull, message: "No space"'), 28),
        (Exception("Error while serializing: I/O error: No space left (os error 28)"), 28),
    ],
)
def test_every_librarys_way_to_say_it_is_understood(error: Exception, number: int) -> None:
    with pytest.raises(OSError, match="full .*; do this: 'there'") as caught:
        with told_when_full(Path("there"), "do this"):
            try:
                raise error
            except Exception as inner:
                raise ValueError("something else") from inner
    assert caught.value.errno == number


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), told_when_full(Path("there"), "do this"):
        raise ZeroDivisionError


# --- read-only folders --------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_a_read_only_folder_is_said_before_any_work(
    name: str,
    data: Data,
    model: Path,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("work was done for nothing")

    monkeypatch.setattr("timnet_hf.training.train", refuse)
    job, _ = JOBS[name]
    with mounted(tmp_path / "disk", "size=4m") as disk:
        (disk / ARCHIVE).write_bytes(archive.read_bytes())
        before = files_in(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises((OSError, ValueError), match="(?i)read-only") as caught:
            job(disk, data, model, archive)
        assert str(disk) in str(caught.value)
        assert files_in(disk) == before


class TestWriteJson:
    def test_makes_folders_and_replaces_what_is_there(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b.json"

        write_json(path, {"old": 1})
        write_json(path, {"new": (1, 2)})

        assert json.loads(path.read_text()) == {"new": [1, 2]}
        assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_failure_leaves_the_old_file_and_nothing_else(
        self, value: float, tmp_path: Path
    ) -> None:
        path = tmp_path / "b.json"
        write_json(path, {"old": 1})

        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"first": list(range(10_000)), "then": value})

        assert json.loads(path.read_text()) == {"old": 1}
        assert [entry.name for entry in tmp_path.iterdir()] == ["b.json"]

    def test_is_never_seen_half_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "b.json"

        def killed(temporary: str, final: Path) -> None:
            assert not path.exists()
            json.loads(Path(temporary).read_text())  # whole before it gets its name
            raise KeyboardInterrupt

        monkeypatch.setattr(output_folder.os, "replace", killed)

        with pytest.raises(KeyboardInterrupt):
            write_json(path, {"value": list(range(10_000))})

        assert list(tmp_path.iterdir()) == []

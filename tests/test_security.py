# SPDX-License-Identifier: Apache-2.0
"""What `SECURITY.md` claims, tried: each claim there names a test, and each of those exists.

Here stands what no other file of tests holds: no pickle of a stranger is loaded, no shell is
started, no token gets out, and the dependencies are pinned.
"""

from __future__ import annotations

import ast
import importlib.metadata
import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from timnet_hf import TimNetFeatureExtractor
from timnet_hf.hub import HubError, publish
from timnet_hf.prediction import ModelError, load_model
from timnet_hf.training import build_arguments, newest_checkpoint, train

from .fake_hub import TOKEN, FakeHub, Fault
from .model_folders import write_model_folder
from .timnet_command import in_this_process
from .tiny_training import tiny_recipe, tiny_store, write_recordings

RECIPE = tiny_recipe()


def sources(repository: Path) -> Iterator[Path]:
    """Every Python file that is shipped or run by maintainers."""
    for folder in ("timnet_hf", "spaces", "scripts"):
        yield from sorted((repository / folder).rglob("*.py"))


# --- SECURITY.md --------------------------------------------------------------------------------


def test_every_test_that_a_claim_names_exists(repository: Path) -> None:
    text = (repository / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/test_\w+\.py)::(\w+)`", text)
    assert len(named) >= 15
    for file, name in named:
        found = re.search(rf"def {name}\(|class {name}\b", (repository / file).read_text())
        assert found, f"{file}::{name}"


# --- no pickle, no shell ------------------------------------------------------------------------

#: Call → why it may stand where it stands.
ALLOWED = {
    ("timnet_hf/scoring.py", "pickle.loads"): "the model, from the parent process, never a file",
    ("timnet_hf/scoring_ray.py", "pickle.loads"): "the same",
}
FORBIDDEN_IMPORTS = {"joblib", "shelve", "marshal", "dill", "cloudpickle"}
FORBIDDEN_CALLS = re.compile(
    r"(pickle|_pickle)\.(load|loads|Unpickler)|torch\.load|torch\.jit\.load|os\.(system|popen)|"
    r"(np|numpy)\.load|yaml\.(load|unsafe_load)|eval|exec|subprocess\.(getoutput|getstatusoutput)"
)


def test_no_file_is_unpickled_and_no_shell_is_started(repository: Path) -> None:
    seen = set()
    for path in sources(repository):
        name = str(path.relative_to(repository))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        full = {  # what a name that was imported is in full
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        } | {
            alias.asname: alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.asname
        }
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                bad = FORBIDDEN_IMPORTS & {str(module).partition(".")[0] for module in modules}
                assert not bad, f"{name}:{node.lineno} imports {bad}"
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            head, dot, rest = called.partition(".")
            called = full.get(head, head) + dot + rest
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert words.get("shell", "False") == "False", f"{name}:{node.lineno} starts a shell"
            assert words.get("allow_pickle", "False") == "False", f"{name}:{node.lineno}"
            harmless = words.get("weights_only") == "True" or "allow_pickle" in words
            if FORBIDDEN_CALLS.fullmatch(called) and not harmless:
                assert (name, called) in ALLOWED, f"{name}:{node.lineno} calls {called}"
                seen.add((name, called))
            if called.startswith("subprocess.") and node.args:
                # A list of words, never a line for a shell to take apart.
                assert not isinstance(node.args[0], (ast.Constant, ast.JoinedStr)), name
    assert seen == ALLOWED.keys(), "an exemption that nothing needs any more"


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def test_the_bomb_of_these_tests_does_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "model"]
)
def test_resuming_from_a_strangers_folder_runs_nothing(name: str, tmp_path: Path) -> None:
    """The Trainer's checkpoints hold pickles; they are read as plain values or not at all."""
    store, trace = tiny_store(), tmp_path / "trace"

    def run(epochs: int, resume: bool) -> None:
        choices = {"num_train_epochs": epochs, "save_strategy": "epoch"}
        arguments = build_arguments(RECIPE, tmp_path / "out", 0, choices)
        train(store, range(12), RECIPE, TimNetFeatureExtractor(), arguments, resume=resume)

    run(1, resume=False)
    checkpoint = Path(newest_checkpoint(tmp_path / "out"))
    if name == "model":
        (checkpoint / "model.safetensors").unlink()
        name = "pytorch_model.bin"
    torch.save({"state": Bomb(trace)}, checkpoint / name)
    if name == "training_args.bin":
        run(2, resume=True)  # which is never looked at
    else:
        with pytest.raises(pickle.UnpicklingError, match="(?i)weights.only"):
            run(2, resume=True)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.bin"])
def test_a_models_folder_with_a_pickle_runs_nothing(name: str, tmp_path: Path) -> None:
    folder, trace = write_model_folder(tmp_path / "model"), tmp_path / "trace"
    if name != "adapter_model.bin":
        (folder / "model.safetensors").unlink()
    torch.save({"weights": Bomb(trace)}, folder / name)
    (folder / "modeling_timnet.py").write_text(f"open({str(trace)!r}, 'w')")
    if name == "adapter_model.bin":
        load_model(folder)
    else:
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(folder)
    assert not trace.exists(), "neither pickles nor code of the folder are run"


# --- tokens -------------------------------------------------------------------------------------

SECRET = "hf_AVerySecretTokenThatNobodySees"


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG)
    for name in ("huggingface_hub", "httpx", "httpcore", "urllib3", "transformers", "timnet_hf"):
        caplog.set_level(logging.DEBUG, name)
        logging.getLogger(name).propagate = True
    yield caplog


@pytest.mark.parametrize("status", [None, 401, 403, 409, 500, 0])
def test_publishing_tells_the_token_to_nobody_but_the_hub(
    hub: FakeHub,
    status: int | None,
    tmp_path: Path,
    everything_logged: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.chdir(tmp_path)
    folder = write_model_folder(tmp_path / "model")
    everything_logged.clear()
    told = ""
    if status is None:
        told += str(publish(folder, "org/timnet", token=TOKEN))
        told += str(publish(folder, "org/timnet", token=TOKEN, dry_run=True, output_dir="out"))
    else:
        hub.faults.append(Fault("POST", "/commit/", status, times=99))
        with pytest.raises(HubError) as caught:
            publish(folder, "org/timnet", token=TOKEN)
        told += str(caught.value)
    told += everything_logged.text + "".join(capfd.readouterr())
    assert len(told) > 50 and TOKEN not in told
    written = [path for path in Path("out").rglob("*") if path.is_file()]
    for content in [path.read_bytes() for path in written] + [
        content
        for repository in hub.repositories.values()
        for commit in repository.commits.values()
        for content in commit["files"].values()
    ]:
        assert TOKEN.encode() not in content


def test_a_training_records_no_token(
    tmp_path: Path,
    everything_logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_recordings(tmp_path / "data")
    kept: list[Path] = []
    monkeypatch.setattr("timnet_hf.experiment.shutil.rmtree", lambda path, **_: kept.append(path))
    monkeypatch.setattr("timnet_hf.recipes.RECIPES", {"default": RECIPE})
    timnet = in_this_process(monkeypatch, capsys)
    ended = timnet(
        "train", "--data-dir", data, "--output-dir", tmp_path / "model", "--hub-token", SECRET
    )
    assert ended.status == 0, ended.err
    assert SECRET not in ended.out + ended.err + everything_logged.text
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files), "checkpoints are looked at too"
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "typed",
    [["--hub-token", SECRET], ["--hub_token", SECRET], [f"--hub-token={SECRET}"]],
)
def test_the_recorded_command_names_no_token(
    typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from timnet_hf.cli_common import typed_command

    monkeypatch.setattr("sys.argv", ["timnet", "train", *typed, "--seed", "7"])
    assert typed_command().startswith("timnet train --hub") and SECRET not in typed_command()
    assert typed_command().endswith("--seed 7")


# --- dependencies -------------------------------------------------------------------------------


def test_every_dependency_is_listed_and_pinned(repository: Path) -> None:
    """What `pip install -c constraints.txt` installs is fixed, down to the last package."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11 has it

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted += extra
    pinned = {}
    for line in (repository / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition(";")[0].strip().partition("==")
            assert version, f"{line}: not pinned to one version"
            pinned[_plain(name)] = version
    seen: set[str] = set()
    pending = [_plain(re.split(r"[\[<>=!~ ;]", one)[0]) for one in wanted]
    while pending:
        name = pending.pop()
        if name in seen or name == "timnet-hf":
            continue
        seen.add(name)
        assert name in pinned, f"{name} is needed, but constraints.txt does not pin it"
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                pending.append(_plain(need.name))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

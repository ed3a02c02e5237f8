# SPDX-License-Identifier: Apache-2.0
"""A model as a folder: what it holds, how saving behaves, what verification notices."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification
from timnet_hf.hub import HubError, save_model_folder, verify_model_folder

from .model_folders import LOSO, MODEL_FILES, RECORD, write_model_folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("original") / "model", reports=(LOSO,))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A model folder that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def test_a_folder_holds_the_model_its_code_its_card_and_its_record(original: Path) -> None:
    names = {path.name for path in original.iterdir()}
    assert names >= MODEL_FILES
    assert {f"{path.name}" for path in (original / "evaluation").iterdir()} == {"loso.json"}


def test_the_configuration_points_every_auto_class_to_the_code(original: Path) -> None:
    config = json.loads((original / "config.json").read_text())
    extractor = json.loads((original / "preprocessor_config.json").read_text())
    entries = {**config["auto_map"], **extractor["auto_map"]}
    assert set(entries) == {
        "AutoConfig",
        "AutoFeatureExtractor",
        "AutoModel",
        "AutoModelForAudioClassification",
    }
    for entry in entries.values():
        module, name = entry.split(".")
        assert f"class {name}(" in (original / f"{module}.py").read_text()


def test_the_timeline_has_a_task_of_its_own_and_the_stock_task_is_left_alone(
    original: Path,
) -> None:
    pipelines = json.loads((original / "config.json").read_text())["custom_pipelines"]
    assert set(pipelines) == {"speech-emotion-timeline"}
    module, name = pipelines["speech-emotion-timeline"]["impl"].split(".")
    assert f"class {name}(" in (original / f"{module}.py").read_text()


def test_every_module_that_the_code_imports_from_its_folder_is_there(original: Path) -> None:
    for path in original.glob("*.py"):
        for module in re.findall(r"^\s*from \.(\w+) import", path.read_text(), re.MULTILINE):
            assert (original / f"{module}.py").is_file(), f"{path.name} wants {module}"


@pytest.mark.parametrize("name", ["README.md", "evaluation/loso.json"])
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(HubError, match="is of something else than a model"):
        write_model_folder(tmp_path / "mine")
    assert file.read_text() == "precious"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def test_saving_twice_gives_the_same_bytes(original: Path, tmp_path: Path) -> None:
    again = write_model_folder(tmp_path / "again", reports=(LOSO,))
    for path in original.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(original)).read_bytes() == path.read_bytes()


def test_saving_leaves_no_mark_on_the_objects_nor_on_their_classes(tmp_path: Path) -> None:
    model = TimNetForAudioClassification(TimNetConfig(hidden_size=2, num_hidden_layers=1))
    extractor = TimNetFeatureExtractor()
    record = dict(RECORD)
    save_model_folder(tmp_path / "portable", model, extractor, record)
    model.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert record == RECORD


def test_what_was_loaded_and_is_saved_again_names_no_code_that_is_not_there(
    original: Path, tmp_path: Path
) -> None:
    loaded = (
        AutoModelForAudioClassification.from_pretrained(original),
        AutoFeatureExtractor.from_pretrained(original),
    )
    for one in loaded:
        one.save_pretrained(tmp_path)
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in json.loads((tmp_path / name).read_text())
    assert type(AutoModelForAudioClassification.from_pretrained(tmp_path)) is type(loaded[0])
    elsewhere = {"AutoConfig": "org/timnet--configuration_timnet.TimNetConfig"}
    assert TimNetConfig(auto_map=elsewhere).auto_map == elsewhere


def test_saving_replaces_a_model_and_leaves_other_files(folder: Path) -> None:
    (folder / "checkpoint-7").mkdir()
    (folder / "notes.txt").write_text("mine")
    before = (folder / "model.safetensors").read_bytes()
    write_model_folder(folder, seed=1)
    assert (folder / "model.safetensors").read_bytes() != before
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list((folder / "evaluation").iterdir()), "reports of the model that was replaced"
    assert [path.name for path in folder.parent.iterdir()] == ["model"], "nothing is left beside it"
    verify_model_folder(folder)


def test_a_save_that_fails_leaves_the_old_model_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TimNetFeatureExtractor, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        write_model_folder(folder, seed=1)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(HubError, match="is a file"):
        write_model_folder(tmp_path / "model")


def test_verification_returns_the_record(original: Path) -> None:
    record = verify_model_folder(original)
    assert record["corpus"] == "emodb"
    assert re.fullmatch("[0-9a-f]{64}", record["model_sha256"])


def test_verification_notices_a_changed_byte(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(HubError, match=r"model\.safetensors: SHA-256 is .* fetch it again"):
        verify_model_folder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "training_record.json", "config.json"])
def test_verification_names_the_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(HubError, match=f"{name}: missing"):
        verify_model_folder(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_verification_refuses_a_record_that_is_none(folder: Path, content: str) -> None:
    (folder / "training_record.json").write_text(content)
    with pytest.raises(HubError, match="not a training record"):
        verify_model_folder(folder)


def test_verification_of_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="no such folder"):
        verify_model_folder(tmp_path / "nothing")

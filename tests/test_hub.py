# SPDX-License-Identifier: Apache-2.0
"""Publishing models to a Hub on this machine (see fake_hub.py), and loading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi

import timnet_hf
from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification
from timnet_hf.hub import HubError, make_portable, publish
from timnet_hf.model_folder import AUTO_MAP

from .fake_hub import TOKEN, FakeHub
from .model_folders import LOSO, MODEL_FILES, run_python, write_model_folder
from .tiny_training import tiny_recipe, tiny_store


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("original") / "model", reports=(LOSO,))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A model folder that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))


# --- publishing -------------------------------------------------------------------------------


def test_publishing_makes_one_commit_with_everything(hub: FakeHub, folder: Path) -> None:
    result = publish(folder, "org/timnet-emodb", token=TOKEN)
    repository = hub.model("org/timnet-emodb")
    assert repository.titles() == ["Publish timnet-emodb", "initial commit"]
    assert result.commit == repository.branches["main"]
    assert {change.status for change in result.changes} == {"added"}
    files = repository.files()
    assert set(files) >= MODEL_FILES | {"evaluation/loso.json", "examples/angry.flac"}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not repository.private


def test_only_what_belongs_to_the_model_is_published(hub: FakeHub, folder: Path) -> None:
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(b"x")
    (folder / "secret.txt").write_text("mine")
    publish(folder, "org/timnet-emodb", token=TOKEN)
    assert not [name for name in hub.model("org/timnet-emodb").files() if "secret" in name]
    assert not [name for name in hub.model("org/timnet-emodb").files() if "checkpoint" in name]


def test_the_published_card_names_its_repository(hub: FakeHub, folder: Path) -> None:
    publish(folder, "somebody/my-model", token=TOKEN)
    card = hub.model("somebody/my-model").files()["README.md"].decode()
    assert 'model="somebody/my-model"' in card
    assert "huggingface.co/somebody/my-model/blob/main/evaluation/loso.json" in card
    assert "org/timnet-emodb" not in card


def test_a_private_repository_is_made_private(hub: FakeHub, folder: Path) -> None:
    publish(folder, "org/mine", private=True, token=TOKEN)
    assert hub.model("org/mine").private


def test_private_never_pushes_into_a_public_repository(hub: FakeHub, folder: Path) -> None:
    HfApi(token=TOKEN).create_repo("org/mine")
    with pytest.raises(HubError, match="is public; nothing was pushed"):
        publish(folder, "org/mine", private=True, token=TOKEN)
    assert hub.model("org/mine").titles() == ["initial commit"]


def test_publishing_again_with_nothing_changed_makes_no_commit(hub: FakeHub, folder: Path) -> None:
    publish(folder, "org/timnet-emodb", token=TOKEN)
    titles = hub.model("org/timnet-emodb").titles()
    result = publish(folder, "org/timnet-emodb", token=TOKEN)
    assert (result.commit, result.changes) == (None, ())
    assert hub.model("org/timnet-emodb").titles() == titles


def test_a_new_version_commits_what_differs_and_leaves_other_peoples_files(
    hub: FakeHub, folder: Path
) -> None:
    publish(folder, "org/timnet-emodb", token=TOKEN)
    repository = hub.model("org/timnet-emodb")
    repository.commit("main", {**repository.files(), "picture.png": b"\x89"}, "by hand")
    write_model_folder(folder, seed=1)
    result = publish(folder, "org/timnet-emodb", token=TOKEN)
    statuses = {change.name: change.status for change in result.changes}
    assert statuses == {
        "README.md": "changed",
        "evaluation/loso.json": "removed",
        "model.safetensors": "changed",
        "training_record.json": "changed",
    }
    assert "picture.png" in repository.files()
    assert "evaluation/loso.json" not in repository.files()
    assert len(repository.titles()) == 4


def test_a_revision_is_a_branch_that_is_made_where_it_is_missing(
    hub: FakeHub, folder: Path
) -> None:
    publish(folder, "org/timnet-emodb", token=TOKEN)
    write_model_folder(folder, seed=1)
    publish(folder, "org/timnet-emodb", token=TOKEN, revision="next")
    repository = hub.model("org/timnet-emodb")
    weights = (folder / "model.safetensors").read_bytes()
    assert repository.files("next")["model.safetensors"] == weights
    assert repository.files("main")["model.safetensors"] != weights


def test_a_damaged_model_is_not_published(hub: FakeHub, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(HubError, match="SHA-256"):
        publish(folder, "org/timnet-emodb", token=TOKEN)
    assert hub.requests == []


@pytest.mark.parametrize("repo_id", ["timnet", "a/b/c", "org/-x-", "org/a b", ""])
def test_a_name_that_is_no_repository_id_is_refused(folder: Path, repo_id: str) -> None:
    with pytest.raises(HubError, match="owner/name"):
        publish(folder, repo_id)


def test_a_card_that_the_hub_refuses_stops_the_commit(hub: FakeHub, folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: own"))
    with pytest.raises(HubError, match='(?s)refuses the card.*"license" must be one of'):
        publish(folder, "org/timnet-emodb", token=TOKEN)
    assert hub.model("org/timnet-emodb").titles() == ["initial commit"]


# --- dry runs ---------------------------------------------------------------------------------


def test_a_dry_run_writes_exactly_what_publishing_pushes(
    hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    result = publish(
        folder, "org/timnet-emodb", dry_run=True, token=TOKEN, output_dir=tmp_path / "dry"
    )
    assert hub.repositories == {}, "a dry run makes nothing"
    assert result.commit is None
    assert "does not exist yet" in result.note
    publish(folder, "org/timnet-emodb", token=TOKEN)
    pushed = hub.model("org/timnet-emodb").files()
    del pushed[".gitattributes"]
    written = {
        path.relative_to(tmp_path / "dry").as_posix(): path.read_bytes()
        for path in (tmp_path / "dry").rglob("*")
        if path.is_file()
    }
    assert written == pushed
    assert {change.name for change in result.changes} == set(pushed)


def test_a_dry_run_shows_the_difference_to_what_is_there(
    hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    publish(folder, "org/timnet-emodb", token=TOKEN)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("## Intended use", "## What it is for"))
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
    result = publish(folder, "org/timnet-emodb", dry_run=True, output_dir=tmp_path / "dry")
    assert [change.name for change in result.changes] == ["README.md", "config.json"]
    assert "-## Intended use\n+## What it is for\n" in result.diff
    assert len(hub.model("org/timnet-emodb").titles()) == 2


def test_a_dry_run_without_a_hub_still_writes_the_folder(folder: Path, tmp_path: Path) -> None:
    result = publish(folder, "org/timnet-emodb", dry_run=True, output_dir=tmp_path / "dry")
    assert (tmp_path / "dry" / "model.safetensors").is_file()
    assert "could not be compared" in result.note and "HF_HUB_OFFLINE" in result.note


def test_a_dry_run_replaces_an_earlier_one_and_no_other_folder(
    hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        publish(folder, "org/timnet-emodb", dry_run=True, output_dir=tmp_path / "dry")
    (folder / "trainer").mkdir()
    (folder / "trainer" / "optimizer.pt").write_text("")
    for names, named in (
        (["thesis.tex"], "thesis.tex"),
        (["README.md", "thesis.tex"], "thesis.tex"),
        (["README.md"], "README.md"),  # of anything
        (None, "trainer/optimizer.pt"),  # the model's own folder, with its Trainer's checkpoints
    ):
        other = tmp_path / "-".join(names) if names else folder
        for name in names or ():
            other.mkdir(exist_ok=True)
            (other / name).write_text("precious")
        before = sorted(other.rglob("*"))
        with pytest.raises(HubError, match=f"no earlier dry run, which holds {named}"):
            publish(folder, "org/timnet-emodb", dry_run=True, output_dir=other)
        assert sorted(other.rglob("*")) == before


# --- failures ---------------------------------------------------------------------------------

FAILURES = [
    pytest.param(0, {}, "connection to the Hub failed.*Check the network", id="dropped"),
    pytest.param(401, {}, "hf auth login", id="401"),
    pytest.param(403, {}, "write permission", id="403"),
    pytest.param(409, {}, "pushed at the same time", id="409"),
    pytest.param(429, {"Retry-After": "30"}, "Wait 30 seconds", id="429"),
    pytest.param(500, {}, "trouble of its own", id="500"),
]


@pytest.mark.parametrize(("status", "headers", "advice"), FAILURES)
def test_a_failed_upload_leaves_the_repository_as_it_was_and_says_what_to_do(
    hub: FakeHub, folder: Path, status: int, headers: dict[str, str], advice: str
) -> None:
    publish(folder, "org/timnet-emodb", token=TOKEN)
    repository = hub.model("org/timnet-emodb")
    before, titles = dict(repository.files()), repository.titles()
    write_model_folder(folder, seed=1)
    hub.fail("POST", "/commit/", status, headers=headers)
    with pytest.raises(HubError, match=f"(?s)org/timnet-emodb: .*{advice}.*Nothing was changed"):
        publish(folder, "org/timnet-emodb", token=TOKEN)
    assert (repository.files(), repository.titles()) == (before, titles)
    assert publish(folder, "org/timnet-emodb", token=TOKEN).commit, "the next try goes through"


def test_a_refusal_before_the_commit_is_explained_too(hub: FakeHub, folder: Path) -> None:
    publish(folder, "org/timnet-emodb", token=TOKEN)
    write_model_folder(folder, seed=1)
    hub.fail("POST", "/preupload/", 403)
    with pytest.raises(HubError, match=r"write permission.*Nothing was changed"):
        publish(folder, "org/timnet-emodb", token=TOKEN)
    assert len(hub.model("org/timnet-emodb").titles()) == 2


def test_a_commit_whose_answer_was_lost_is_not_called_undone(hub: FakeHub, folder: Path) -> None:
    publish(folder, "org/timnet-emodb", token=TOKEN)
    write_model_folder(folder, seed=1)
    hub.fail("POST", "/commit/", after=True)
    with pytest.raises(HubError, match="it commits only what is missing") as caught:
        publish(folder, "org/timnet-emodb", token=TOKEN)
    assert "Nothing was changed" not in str(caught.value)
    assert publish(folder, "org/timnet-emodb", token=TOKEN).commit is None


def test_a_push_by_somebody_else_in_between_is_not_overwritten(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folder, "org/timnet-emodb", token=TOKEN)
    write_model_folder(folder, seed=1)
    repository = hub.model("org/timnet-emodb")
    create_commit = HfApi.create_commit

    def overtaken(self: HfApi, *arguments: Any, **options: Any) -> Any:
        repository.commit("main", {"theirs.txt": b""}, "theirs")
        return create_commit(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    with pytest.raises(HubError, match="pushed at the same time"):
        publish(folder, "org/timnet-emodb", token=TOKEN)
    assert set(repository.files()) == {"theirs.txt"}


def test_a_wrong_token_cannot_make_a_repository(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(HubError, match="hf auth login"):
        publish(folder, "org/timnet-emodb", token="hf_wrong")
    assert hub.repositories == {}


def test_offline_mode_is_named(folder: Path) -> None:
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        publish(folder, "org/timnet-emodb", token=TOKEN)


# --- loading ----------------------------------------------------------------------------------

LOAD = """
import json, sys
repo_id, revision, path = sys.argv[1:]
import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline
options = {"trust_remote_code": True, "revision": revision}
extractor = AutoFeatureExtractor.from_pretrained(repo_id, **options)
backbone = AutoModel.from_pretrained(repo_id, **options)
model = AutoModelForAudioClassification.from_pretrained(repo_id, **options)
clip = np.load(path)
inputs = extractor(clip, sampling_rate=16000, return_tensors="pt")
with torch.inference_mode():
    fused = backbone(**inputs).pooler_output[0].tolist()
    logits = model(**inputs).logits[0].tolist()
classify = pipeline("audio-classification", model=repo_id, **options)
answer = {entry["label"]: entry["score"] for entry in classify(clip, top_k=None)}
timeline = pipeline("speech-emotion-timeline", model=repo_id, **options)
print(json.dumps({"fused": fused, "logits": logits, "answer": answer,
                  "events": timeline(clip), "home": type(model).__module__}))
"""


def expected_logits(folder: Path, clip: np.ndarray) -> list[float]:
    import torch

    model = TimNetForAudioClassification.from_pretrained(folder)
    extractor = TimNetFeatureExtractor.from_pretrained(folder)
    with torch.inference_mode():
        inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
        return model(**inputs).logits[0].tolist()


def test_a_published_model_loads_without_the_package_pinned_and_from_the_cache(
    hub: FakeHub, folder: Path, tmp_path: Path, speech: np.ndarray
) -> None:
    first = publish(folder, "org/timnet-emodb", token=TOKEN)
    old, first_logits = str(first.commit), expected_logits(folder, speech)
    write_model_folder(folder, seed=1)
    publish(folder, "org/timnet-emodb", token=TOKEN)
    second_logits = expected_logits(folder, speech)
    np.save(tmp_path / "clip.npy", speech)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def load(revision: str) -> dict[str, Any]:
        return run_python(
            LOAD,
            "org/timnet-emodb",
            revision,
            str(tmp_path / "clip.npy"),
            cwd=elsewhere,
            package=False,
            HF_ENDPOINT=hub.url,
            HF_HUB_OFFLINE="0",
        )

    newest, pinned = load("main"), load(old)
    assert newest["home"].startswith("transformers_modules")
    assert (newest["logits"], pinned["logits"]) == (second_logits, first_logits)
    assert newest["events"]
    assert max(newest["answer"].values()) == pytest.approx(
        np.exp(max(second_logits)) / np.exp(second_logits).sum(), abs=1e-5
    )
    hub.stop()
    assert load("main") == newest, "the second load comes from the cache"


def test_the_trainer_pushes_a_model_that_loads_without_the_package(
    hub: FakeHub, tmp_path: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    for marked in (TimNetForAudioClassification, TimNetFeatureExtractor):
        monkeypatch.setattr(marked, "_auto_class", None)  # and put back after the test
    model = TimNetForAudioClassification(TimNetConfig(hidden_size=4, num_hidden_layers=2))
    extractor = TimNetFeatureExtractor()
    make_portable(model, extractor)
    features = torch.randn(4, 20, 39)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "run"),
            push_to_hub=True,
            hub_model_id="org/pushed",
            hub_token=TOKEN,
            max_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[
            {"input_values": one, "labels": index % 2} for index, one in enumerate(features)
        ],
        processing_class=extractor,
    )
    trainer.train()
    trainer.push_to_hub()
    np.save(tmp_path / "clip.npy", speech)
    (tmp_path / "elsewhere").mkdir()
    answer = run_python(
        LOAD,
        "org/pushed",
        "main",
        str(tmp_path / "clip.npy"),
        cwd=tmp_path / "elsewhere",
        package=False,
        HF_ENDPOINT=hub.url,
        HF_HUB_OFFLINE="0",
    )
    with torch.inference_mode():
        inputs = extractor(speech, sampling_rate=16_000, return_tensors="pt")
        logits = model.eval()(**inputs).logits[0].tolist()
    assert answer["logits"] == pytest.approx(logits, abs=1e-6)
    assert answer["events"]


def test_a_training_of_the_package_pushes_all_that_loading_needs(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timnet_hf.training import build_arguments, train

    for marked in (TimNetForAudioClassification, TimNetFeatureExtractor):
        monkeypatch.setattr(marked, "_auto_class", None)
    wishes = {"push_to_hub": True, "hub_model_id": "org/trained", "hub_token": TOKEN}
    recipe, store = tiny_recipe(), tiny_store()

    trained = train(
        store,
        range(len(store)),
        recipe,
        TimNetFeatureExtractor(),
        build_arguments(recipe, tmp_path / "run", 0, wishes),
    )

    files = hub.model("org/trained").files()
    assert set(files) >= {path.name for path in Path(timnet_hf.__file__).parent.glob("*_timnet.py")}
    config, extractor = (
        json.loads(files[name]) for name in ("config.json", "preprocessor_config.json")
    )
    assert set(config["custom_pipelines"]) == {"speech-emotion-timeline"}
    assert set(config["auto_map"]) == set(AUTO_MAP)
    assert extractor["mean"] == trained.extractor.mean
    assert len(hub.model("org/trained").titles()) == 2, "one commit"

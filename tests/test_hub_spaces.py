# SPDX-License-Identifier: Apache-2.0
"""Publishing the metrics and the demo page as Spaces, on a Hub on this machine (fake_hub.py)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from timnet_hf.hub import HubError, PublishResult, publish_metric, publish_space
from timnet_hf.space import space_files

from .fake_hub import TOKEN, FakeHub
from .model_folders import run_python

# --- metrics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uar", "war"])
def test_a_metric_is_published_as_a_space(hub: FakeHub, name: str) -> None:
    publish_metric(name, f"org/{name}", token=TOKEN)
    repository = hub.space(f"org/{name}")
    assert repository.sdk == "gradio"
    assert set(repository.files()) >= {"README.md", "app.py", "requirements.txt", f"{name}.py"}
    assert f'evaluate.load("org/{name}")' in repository.files()["README.md"].decode()
    assert publish_metric(name, f"org/{name}", token=TOKEN).commit is None


def test_a_metric_needs_a_repository_of_its_own_name() -> None:
    with pytest.raises(HubError, match="Use org/uar"):
        publish_metric("uar", "org/my-metric")


def test_evaluate_loads_a_published_metric(hub: FakeHub, tmp_path: Path) -> None:
    publish_metric("uar", "org/uar", token=TOKEN)
    script = """
import evaluate, json
print(json.dumps(evaluate.load("org/uar").compute(predictions=[0, 0, 1], references=[0, 1, 1])))
"""
    answer = run_python(
        script, cwd=tmp_path, package=False, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0"
    )
    assert answer == {"uar": 0.75}


# --- the demo page ------------------------------------------------------------------------------


@pytest.fixture
def page(hub: FakeHub) -> FakeHub:
    """A Hub that holds the models which pages are published for."""
    HfApi(token=TOKEN).create_repo("ann/timnet-emodb")
    HfApi(token=TOKEN).create_repo("bob/other", private=True)
    return hub


def publish_page(repo_id: str = "ann/demo", **options: object) -> PublishResult:
    return publish_space(repo_id, token=TOKEN, **options)  # type: ignore[arg-type]


def test_the_page_is_published_as_a_space_in_one_commit(page: FakeHub) -> None:
    result = publish_page()

    repository = page.space("ann/demo")
    assert repository.sdk == "gradio"
    assert repository.titles() == ["Publish the demo page of ann/timnet-emodb", "initial commit"]
    assert result.commit == repository.branches["main"]
    assert set(repository.files()) == {*space_files(), ".gitattributes"}
    assert not repository.private
    assert result.note == ""


@pytest.mark.parametrize("model", [None, "bob/other"])
def test_the_published_page_names_its_model_and_itself(page: FakeHub, model: str | None) -> None:
    publish_page("ann/demo", model_repo=model)

    files = page.space("ann/demo").files()
    card = files["README.md"].decode()
    named = model or "ann/timnet-emodb"
    assert yaml.safe_load(card.split("---")[1])["models"] == [named]
    assert f'client.predict(handle_file("your.wav"), "{named}"' in card
    assert 'Client("ann/demo")' in card
    values = {
        node.targets[0].id: node.value.value  # type: ignore[attr-defined]
        for node in ast.parse(files["checkpoints.py"]).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert values["DEFAULT_MODEL"] == named
    assert not [name for name, content in files.items() if b"org/timnet-" in content]


def test_publishing_the_page_again_with_nothing_changed_makes_no_commit(page: FakeHub) -> None:
    publish_page()
    titles = page.space("ann/demo").titles()

    result = publish_page()

    assert (result.commit, result.changes) == (None, ())
    assert page.space("ann/demo").titles() == titles


def test_another_model_changes_only_what_names_it(page: FakeHub) -> None:
    publish_page()

    result = publish_page(model_repo="bob/other")

    assert {change.name for change in result.changes} == {"README.md", "checkpoints.py"}
    assert "HF_TOKEN" in result.note, "bob/other is private"


def test_a_page_without_its_model_is_not_published(page: FakeHub) -> None:
    with pytest.raises(HubError, match="ann/none: no such model .*timnet publish .*--model-repo"):
        publish_page(model_repo="ann/none")
    assert ("space", "ann/demo") not in page.repositories


def test_a_private_page(page: FakeHub) -> None:
    publish_page(private=True)
    assert page.space("ann/demo").private
    publish_page("ann/open")
    with pytest.raises(HubError, match="is public; nothing was pushed"):
        publish_page("ann/open", private=True)


def test_a_dry_run_writes_exactly_the_page_that_would_be_pushed(
    page: FakeHub, tmp_path: Path
) -> None:
    result = publish_page(dry_run=True, output_dir=tmp_path / "dry")

    assert ("space", "ann/demo") not in page.repositories
    assert (result.commit, result.folder) == (None, tmp_path / "dry")
    assert "does not exist yet" in result.note
    publish_page()
    pushed = page.space("ann/demo").files()
    written = {
        path.relative_to(tmp_path / "dry").as_posix(): path.read_bytes()
        for path in (tmp_path / "dry").rglob("*")
        if path.is_file()
    }
    assert written == {name: pushed[name] for name in pushed if name != ".gitattributes"}


def test_a_dry_run_says_what_would_stop_the_real_one(page: FakeHub, tmp_path: Path) -> None:
    result = publish_page(model_repo="ann/none", dry_run=True, output_dir=tmp_path / "dry")

    assert (tmp_path / "dry" / "app.py").is_file()
    assert "ann/none: no such model" in result.note


@pytest.mark.parametrize(
    ("status", "headers", "advice"),
    [
        (0, {}, "Check the network"),
        (401, {}, "hf auth login"),
        (403, {}, "write permission"),
        (409, {}, "pushed at the same time"),
        (429, {"Retry-After": "30"}, "Wait 30 seconds"),
        (500, {}, "trouble of its own"),
    ],
)
def test_a_failed_upload_of_the_page_leaves_the_space_as_it_was(
    page: FakeHub, status: int, headers: dict[str, str], advice: str
) -> None:
    publish_page()
    before, titles = dict(page.space("ann/demo").files()), page.space("ann/demo").titles()
    page.fail("POST", "/commit/", status, headers=headers)

    with pytest.raises(HubError, match=f"(?s)ann/demo: .*{advice}.*Nothing was changed"):
        publish_page(model_repo="bob/other")

    assert page.space("ann/demo").files() == before
    assert page.space("ann/demo").titles() == titles
    assert publish_page(model_repo="bob/other").commit, "the next try goes through"


@pytest.mark.parametrize(("repo_id", "model"), [("demo", None), ("ann/demo", "no id")])
def test_a_name_that_is_no_repository_id_is_refused(repo_id: str, model: str | None) -> None:
    with pytest.raises(HubError, match="owner/name"):
        publish_space(repo_id, model)

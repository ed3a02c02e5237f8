# SPDX-License-Identifier: Apache-2.0
"""Put models, metrics and the demo page on the Hugging Face Hub: one commit each time, or none.

Here is put together, in full, what is to be pushed; how it gets there, tells `publication`.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .card import EXAMPLES, model_name, placeholder_repo_id
from .hub_errors import HubError, explained
from .model_folder import (
    CARD_FILE,
    make_portable,
    model_files,
    refresh_model_folder,
    save_model_folder,
    verify_model_folder,
)
from .publication import Change, PublishResult, check_repo_id, publish_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "Change",
    "HubError",
    "PublishResult",
    "make_portable",
    "publish",
    "publish_metric",
    "publish_space",
    "refresh_model_folder",
    "save_model_folder",
    "verify_model_folder",
]

_DEMO_CLIPS = Path(__file__).parent / "demo_clips"
#: What the page's files call its model and itself until it is published.
_MODEL, _SPACE = "org/timnet-emodb", "org/timnet-emotion"


def publish(
    model_dir: str | os.PathLike[str],
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    revision: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
) -> PublishResult:
    """Publish a model folder as a model repository.

    Args:
        model_dir: A folder as :func:`save_model_folder` writes it.
        repo_id: ``owner/name``; the repository is made if there is none.
        private: Make a new repository private.
        dry_run: Push nothing; write what would be pushed into ``output_dir`` and compare it.
        token: Access token of the Hub with write permission; by default the one logged in with.
        revision: Branch to push to, by default ``main``; it is made if there is none.
        output_dir: Where a dry run writes; by default ``dry-run/<owner>/<name>``.

    Raises:
        HubError: The folder is damaged, the repository id is none, or the Hub refuses.
    """
    record = verify_model_folder(model_dir)
    check_repo_id(repo_id)
    files = {name: path.read_bytes() for name, path in model_files(model_dir).items()}
    if CARD_FILE not in files:
        raise HubError(f"{Path(model_dir) / CARD_FILE}: missing. Save the model again.")
    card = files[CARD_FILE].decode("utf-8").replace(placeholder_repo_id(record), repo_id)
    files[CARD_FILE] = card.encode()
    for name in EXAMPLES:
        if f"examples/{name}" in card and (_DEMO_CLIPS / name).is_file():
            files[f"examples/{name}"] = (_DEMO_CLIPS / name).read_bytes()
    message = f"Publish {model_name(record)}"
    return publish_files(
        files, repo_id, "model", message, private, dry_run, token, revision, output_dir
    )


def publish_metric(
    name: str,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    revision: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
) -> PublishResult:
    """Publish a metric as a Space that ``evaluate.load(repo_id)`` finds.

    Args:
        name: ``"uar"`` or ``"war"``.
        repo_id: ``owner/uar``: evaluate looks for a script named like the repository.
        private: As for :func:`publish`, like the arguments that follow.
        dry_run: See :func:`publish`.
        token: See :func:`publish`.
        revision: See :func:`publish`.
        output_dir: See :func:`publish`.

    Raises:
        ValueError: There is no metric of that name.
        HubError: The repository has another name than the metric, or the Hub refuses.
    """
    from .metrics import space_files

    files = {file: path.read_bytes() for file, path in space_files(name).items()}
    check_repo_id(repo_id)
    if repo_id.partition("/")[2] != name:
        raise HubError(
            f"{repo_id}: evaluate loads <owner>/<name> from <name>.py, so the repository must be "
            f"called {name}. Use {repo_id.partition('/')[0]}/{name}."
        )
    card = files[CARD_FILE].decode("utf-8").replace(f"<owner>/{name}", repo_id)
    files[CARD_FILE] = card.encode()
    message = f"Publish the metric {name.upper()}"
    return publish_files(
        files, repo_id, "space", message, private, dry_run, token, revision, output_dir
    )


def publish_space(
    repo_id: str,
    model_repo: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    revision: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
) -> PublishResult:
    """Publish the demo page as a Space that runs a model of the Hub.

    Args:
        repo_id: ``owner/name`` of the Space.
        model_repo: ``owner/name`` of the model that the page opens with; by default
            ``timnet-emodb`` of the same owner.
        private: As for :func:`publish`, like the arguments that follow.
        dry_run: See :func:`publish`.
        token: See :func:`publish`.
        revision: See :func:`publish`.
        output_dir: See :func:`publish`.

    Raises:
        SpaceError: The page is not installed.
        HubError: The model is not on the Hub, an id is none, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    from .space import space_files

    model_repo = model_repo or f"{repo_id.partition('/')[0]}/{_MODEL.partition('/')[2]}"
    for name in (repo_id, model_repo):
        check_repo_id(name)
    files = {file: path.read_bytes() for file, path in space_files().items()}
    names = {_MODEL: model_repo, _SPACE: repo_id}
    for file in files:
        if file.endswith((".py", ".md")):
            text = files[file].decode("utf-8")
            files[file] = re.sub("|".join(names), lambda found: names[found[0]], text).encode()
    try:
        note = _note_on_model(HfApi(token=token, library_name="timnet_hf"), model_repo)
    except HubError as error:
        if not dry_run:
            raise
        note = str(error)
    message = f"Publish the demo page of {model_repo}"
    result = publish_files(
        files, repo_id, "space", message, private, dry_run, token, revision, output_dir
    )
    return replace(result, note=" ".join(filter(None, (result.note, note))))


def _note_on_model(api: HfApi, model_repo: str) -> str:
    """Make sure that the page will find its model; what its owner still has to do.

    Raises:
        HubError: There is no such model, or the Hub cannot be asked.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with explained(model_repo):
        try:
            info = api.model_info(model_repo)
        except RepositoryNotFoundError as error:
            raise HubError(
                f"{model_repo}: no such model on the Hub, so the page would not start. Publish it "
                f"first (timnet publish --model DIR --repo-id {model_repo}), or name another with "
                "--model-repo."
            ) from error
    if info.private:
        return (
            f"{model_repo} is private: give the Space a secret HF_TOKEN that may read it, in its "
            "settings on the Hub."
        )
    return ""

# SPDX-License-Identifier: Apache-2.0
"""Files → one commit on the Hub, or none.

What is to be pushed is compared with what is there. Only files that differ are committed, in one
commit on top of the one that was compared with: when somebody else pushes in between, the Hub
refuses, and nothing is mixed. A failure leaves the repository as it was, and the message says what
to do.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .hub_errors import HubError, explained
from .model_folder import EVALUATION_FOLDER
from .output_folder import remove_stale, sole_use, told_when_full

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

__all__ = ["Change", "PublishResult", "check_repo_id", "publish_files"]


@dataclass(frozen=True)
class Change:
    """One file that a publication adds, changes or removes.

    Attributes:
        name: Path in the repository.
        status: ``"added"``, ``"changed"`` or ``"removed"``.
        diff: Unified diff of a text file, or a line with both sizes; dry runs only.
    """

    name: str
    status: str
    diff: str = ""


@dataclass(frozen=True)
class PublishResult:
    """What publishing did, or would do.

    Attributes:
        repo_id: The repository.
        changes: Files that differ from what was there.
        commit: The new commit, or None: a dry run, or nothing had changed.
        url: Where the commit can be seen, or None.
        folder: Dry runs: the folder that holds exactly what would be pushed.
        note: What else the caller should know; empty where there is nothing.
    """

    repo_id: str
    changes: tuple[Change, ...]
    commit: str | None = None
    url: str | None = None
    folder: Path | None = None
    note: str = ""

    @property
    def diff(self) -> str:
        """All diffs, one after the other."""
        return "\n".join(change.diff for change in self.changes if change.diff)


@dataclass(frozen=True)
class _Remote:
    """State of the branch that is published to: its commit, or None, and its files."""

    commit: str | None = None
    files: Mapping[str, RepoFile] | None = None
    exists: bool = False
    branch: bool = False
    private: bool | None = None


def check_repo_id(repo_id: str) -> None:
    """Refuse what the Hub would take for no repository, before anything is done.

    Raises:
        HubError: It is not of the form ``owner/name``.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise HubError(f"{repo_id!r}: not a repository id. Write it as owner/name.")


def publish_files(
    files: Mapping[str, bytes],
    repo_id: str,
    repo_type: str,
    message: str,
    private: bool,
    dry_run: bool,
    token: str | None,
    revision: str | None,
    output_dir: str | os.PathLike[str] | None,
) -> PublishResult:
    """Commit what differs, or with ``dry_run`` write and compare it.

    Args:
        files: Name in the repository → content: everything that it shall hold.
        repo_id: ``owner/name``; the repository is made if there is none.
        repo_type: ``"model"`` or ``"space"``.
        message: Of the commit.
        private: Make a new repository private.
        dry_run: Push nothing; write the files into ``output_dir`` and compare them.
        token: Access token of the Hub; by default the one logged in with.
        revision: Branch to push to, by default ``main``; it is made if there is none.
        output_dir: Where a dry run writes; by default ``dry-run/<owner>/<name>``.

    Raises:
        HubError: The Hub refuses, or the folder of the dry run holds something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token, library_name="timnet_hf")
    if dry_run:
        folder = _write_files(files, Path(output_dir or Path("dry-run") / repo_id))
        try:
            with explained(repo_id):
                remote = _look(api, repo_id, repo_type, revision)
                changes = _compare(files, remote, api, repo_id, repo_type)
        except HubError as error:
            note = f"The folder is complete, but could not be compared. {error}"
            return PublishResult(repo_id, (), folder=folder, note=note)
        note = "" if remote.exists else f"{repo_id} does not exist yet; publishing makes it."
        return PublishResult(repo_id, tuple(changes), folder=folder, note=note)

    with explained(repo_id):
        remote = _look(api, repo_id, repo_type, revision)
        if private and remote.exists and remote.private is False:
            raise HubError(
                f"{repo_id}: exists and is public; nothing was pushed. Make it private in its "
                "settings on the Hub, or publish without private."
            )
        changes = _compare(files, remote)
        if not remote.exists:
            api.create_repo(
                repo_id,
                repo_type=repo_type,
                private=private or None,
                exist_ok=True,
                space_sdk="gradio" if repo_type == "space" else None,
            )
        if revision and not remote.branch:
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        if not changes:
            return PublishResult(repo_id, ())
    operations = [
        CommitOperationDelete(change.name)
        if change.status == "removed"
        else CommitOperationAdd(change.name, files[change.name])
        for change in changes
    ]
    with explained(repo_id, lambda: _state(api, repo_id, repo_type, revision, remote.commit)):
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            repo_type=repo_type,
            revision=revision,
            parent_commit=remote.commit,
        )
    return PublishResult(repo_id, tuple(changes), commit.oid, commit.commit_url)


def _look(api: HfApi, repo_id: str, repo_type: str, revision: str | None) -> _Remote:
    """What is there now. A branch that is yet to be made starts as main is."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    branch = True
    try:
        info = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
    except RevisionNotFoundError:
        info = api.repo_info(repo_id, repo_type=repo_type)
        branch = False
    except RepositoryNotFoundError:
        return _Remote()
    tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=info.sha, recursive=True)
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    return _Remote(info.sha, files, True, branch, info.private)


def _compare(
    files: Mapping[str, bytes],
    remote: _Remote,
    api: HfApi | None = None,
    repo_id: str = "",
    repo_type: str = "model",
) -> list[Change]:
    """What has to change there; with ``api`` also how, line by line.

    Files that publishing never makes, such as pictures, are left alone; an evaluation report that
    is gone here is removed there.
    """
    there = remote.files or {}
    names = sorted({*files, *(name for name in there if name.startswith(f"{EVALUATION_FOLDER}/"))})
    changes = []
    for name in names:
        if name in files and name in there and _same(files[name], there[name]):
            continue
        status = "removed" if name not in files else "changed" if name in there else "added"
        diff = ""
        if api is not None:
            old = b""
            if name in there:
                with tempfile.TemporaryDirectory(prefix="timnet-diff-") as scratch:
                    path = api.hf_hub_download(
                        repo_id,
                        name,
                        repo_type=repo_type,
                        revision=remote.commit,
                        local_dir=scratch,
                    )
                    old = Path(path).read_bytes()
            diff = _diff(name, old, files.get(name, b""))
        changes.append(Change(name, status, diff))
    return changes


def _same(content: bytes, there: RepoFile) -> bool:
    from huggingface_hub.utils.sha import git_hash

    if there.lfs is not None:
        return there.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return there.blob_id == git_hash(content)


def _diff(name: str, old: bytes, new: bytes) -> str:
    try:
        before, after = (part.decode("utf-8").splitlines() for part in (old, new))
    except UnicodeDecodeError:
        return f"{name}: {len(old):,} bytes there, {len(new):,} bytes here\n"
    lines = difflib.unified_diff(before, after, f"there/{name}", f"here/{name}", lineterm="")
    return "\n".join(lines) + "\n"


def _write_files(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write exactly these files; a folder from an earlier dry run is replaced."""
    if folder.exists():
        there = [path for path in folder.rglob("*") if not path.is_dir()]
        other = [path for path in there if path.relative_to(folder).as_posix() not in files]
        # A card alone may be the README of anything.
        if not folder.is_dir() or other or len(there) == 1:
            named = f", which holds {(other or there)[0].relative_to(folder)}" if there else ""
            raise HubError(
                f"{folder}: exists and is no earlier dry run{named}. Choose another output folder."
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    remedy = "free some space and run the command again"
    alone = sole_use(folder.parent / f".{folder.name}.writing", HubError)
    with alone, told_when_full(folder, remedy):
        remove_stale(folder)
        staging = Path(tempfile.mkdtemp(".tmp", f".{folder.name}.", folder.parent))
        try:
            for name, content in files.items():
                path = staging / "new" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if folder.exists():
                os.replace(folder, staging / "old")
            os.replace(staging / "new", folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder


def _state(
    api: HfApi, repo_id: str, repo_type: str, revision: str | None, before: str | None
) -> str:
    """Whether a commit that failed here was made there all the same: its answer can be lost."""
    unknown = "Run the same command again: it commits only what is missing."
    try:
        now = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    except Exception:  # the question failed like the commit did; nothing is known then
        return unknown
    if before is None or now != before:
        return unknown
    return f"Nothing was changed in {repo_id}."

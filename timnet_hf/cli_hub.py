# SPDX-License-Identifier: Apache-2.0
"""``timnet publish``, ``publish-metric``, ``publish-space``, ``space``: the Hub and the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from .cli_common import ModelOption, err, say

if TYPE_CHECKING:
    from .hub import PublishResult


RepoOption: TypeAlias = Annotated[str, typer.Option("--repo-id", help="owner/name on the Hub.")]
PrivateOption: TypeAlias = Annotated[
    bool, typer.Option("--private", help="Make a new one private.")
]
DryRunOption: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Write and compare what would be pushed.")
]


def publish(
    model: Annotated[Path, typer.Option("--model", "-m", help="A folder that train wrote.")],
    repo_id: RepoOption,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a model folder on the Hub, in one commit."""
    from . import hub

    _show_publication(hub.publish(model, repo_id, private=private, dry_run=dry_run))


def publish_metric(
    name: Annotated[str, typer.Argument(help="uar or war.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="owner/uar or owner/war.")],
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a metric as a Space that evaluate.load finds."""
    from . import hub

    _show_publication(hub.publish_metric(name, repo_id, private=private, dry_run=dry_run))


def publish_space(
    repo_id: RepoOption,
    model_repo: Annotated[
        str | None,
        typer.Option(
            "--model-repo",
            help="Model on the Hub that the page opens with; by default the owner's timnet-emodb.",
        ),
    ] = None,
    private: PrivateOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Publish the demo page as a Space, in one commit."""
    from . import hub

    _show_publication(hub.publish_space(repo_id, model_repo, private=private, dry_run=dry_run))


def _show_publication(result: PublishResult) -> None:
    for change in result.changes:
        say(f"{change.status:8} {change.name}")
    if result.diff:
        say(result.diff)
    if result.folder is not None:
        say(f"nothing was pushed; {result.folder} holds what would be")
    elif result.commit is None:
        say(f"{result.repo_id} is up to date")
    else:
        say(f"published: {result.url or result.commit}")
    if result.note:
        say(result.note, err)


def space(
    model: ModelOption = None,
    port: Annotated[int | None, typer.Option(help="By default the first free one.")] = None,
) -> None:
    """Open the demo page on this machine; nothing leaves it."""
    from .space import launch_space

    raise typer.Exit(launch_space(model, port))


__all__ = ["publish", "publish_metric", "publish_space", "space"]

# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with model folders and the Hub, in words that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

__all__ = ["HubError", "explained"]


class HubError(ValueError):
    """A model folder or a repository cannot be used as it is; the message says what to do."""


@contextmanager
def explained(repo_id: str, state: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn what the Hub or the network says into a message that says what to do.

    Args:
        repo_id: The repository.
        state: Asked after a failure for what became of the repository.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HubError:
        raise
    except OfflineModeIsEnabled as error:
        raise HubError(
            f"{repo_id}: offline mode is on. Unset HF_HUB_OFFLINE to reach the Hub."
        ) from error
    except HfHubHTTPError as error:
        advice = _advice(error.response.status_code, error.response.headers)
        text = f"{repo_id}: {advice} {state() if state else 'Nothing was changed.'}"
        raise HubError(text) from error
    except ValueError as error:
        if "metadata in README.md" not in str(error):
            raise
        raise HubError(
            f"{repo_id}: the Hub refuses the card. {error} Put its front matter right; nothing was "
            "changed."
        ) from error
    except Exception as error:
        # The HTTP client's own errors: which one it is depends on the version of huggingface_hub.
        client = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")
        if not client and not isinstance(error, LocalEntryNotFoundError):
            raise
        text = f"{repo_id}: the connection to the Hub failed ({error}). Check the network."
        raise HubError(f"{text} {state() if state else 'Nothing was changed.'}") from error


def _advice(status: int, headers: Mapping[str, str]) -> str:
    """What a status of the Hub means for somebody who publishes, and what to do."""
    if status == 401:
        return "the Hub does not know you. Log in with `hf auth login`, or pass a valid token."
    if status == 403:
        return (
            "your token may not write there. Use one with write permission for that owner "
            "(Settings, Access Tokens on the Hub)."
        )
    if status in (409, 412):
        return "somebody else pushed at the same time. Look at their change, then publish again."
    if status == 429:
        seconds = headers.get("Retry-After")
        wait = f"{seconds} seconds" if seconds else "a few minutes"
        return f"too many requests. Wait {wait}, then publish again."
    if status >= 500:
        return f"the Hub has trouble of its own (status {status}). Try again later."
    return f"the Hub refuses with status {status}."

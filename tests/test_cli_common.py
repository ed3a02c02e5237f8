# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the bars, and the time that they say is left."""

from __future__ import annotations

from typing import Any

import pytest
from rich.progress import Progress

from timnet_hf.cli_common import progress_bars


class Clock:
    """The time that a bar is told."""

    now = 0.0


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, list[Progress]]:
    clock, made = Clock(), []

    class Clocked(Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, get_time=lambda: clock.now, **options)
            made.append(self)

    monkeypatch.setattr("rich.progress.Progress", Clocked)
    return clock, made


@pytest.mark.parametrize("done", [0, 10])
def test_the_time_left_follows_from_the_first_fold_on(
    bars: tuple[Clock, list[Progress]], done: int
) -> None:
    """Two at a time end almost together; what an earlier run has done took no time now."""
    clock, made = bars
    with progress_bars() as update:
        update("folds", done, 24, "")
        assert made[0].tasks[0].time_remaining is None
        clock.now = 600
        update("folds", done + 1, 24, "speaker-03")
        assert made[0].tasks[0].time_remaining == (23 - done) * 600
        clock.now = 605
        update("folds", done + 2, 24, "speaker-08")
        assert made[0].tasks[0].time_remaining == pytest.approx((22 - done) * 302.5, abs=1)

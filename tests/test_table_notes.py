# SPDX-License-Identifier: Apache-2.0
"""The notes under a table of results."""

from __future__ import annotations

from typing import Any

from timnet_hf.table_notes import render_notes


def report(recipe: str, protocol: str = "loso", start: str | None = None) -> dict[str, Any]:
    return {"corpus": "emodb", "protocol": protocol, "recipe": recipe, "start": start}


class TestStarts:
    def test_what_was_learned_before_is_told_with_the_protocols_it_holds_for(self) -> None:
        reports = [
            report("default", "kfold", "ravdess"),
            report("default", "loso", "ravdess"),
            report("default-adapted", "loso", "ravdess"),
            report("default", "to-ravdess"),
            report("from-scratch"),
        ]

        (note,) = [one for one in render_notes("emodb", [], reports) if "starts from" in one]

        assert note == (
            "*default* (random 10-fold, leave one speaker out): starts from weights that have "
            "learned RAVDESS, and nothing of the corpus judged; *from-scratch* is the same without "
            "them."
        )

    def test_recipes_without_a_start_have_no_note(self) -> None:
        notes = render_notes("emodb", [], [report("from-scratch"), report("paper")])

        assert not any("start" in note for note in notes)

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

        notes = [one for one in render_notes("emodb", [], reports) if "*default*" in one]

        assert notes == [
            "*default* (judged on RAVDESS): no start fits, so from scratch.",
            "*default* (leave one speaker out, random 10-fold): starts from weights that have "
            "learned RAVDESS, and nothing of the corpus judged.",
        ]

    def test_recipes_without_a_start_have_no_note(self) -> None:
        others = [report(name) for name in ("from-scratch", "paper", "default-bdff7ff")]

        assert not any("start" in note for note in render_notes("emodb", [], others))

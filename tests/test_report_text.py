# SPDX-License-Identifier: Apache-2.0
"""Reports as a text: the figures of the JSON in sentences, and nothing that is markup by chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from timnet_hf import reporting
from timnet_hf.report_text import render_report
from timnet_hf.reporting import build_report

from .report_folds import PLAN, make_folds


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "BOOTSTRAP_ROUNDS", 50)


@pytest.fixture
def folds() -> list[dict[str, Any]]:
    return make_folds()


@pytest.fixture
def report(folds: list[dict[str, Any]]) -> dict[str, Any]:
    return build_report(PLAN, folds)


def test_markdown_shows_the_figures_of_the_json(report: dict[str, Any]) -> None:
    text = render_report(report)

    assert "# toy, loso, tiny" in text
    assert "8 recordings, 2 folds, 2 seeds, 1,234 parameters" in text
    assert "`timnet cross-validate --corpus toy`" in text
    low, high = report["uar"]["ci95"]
    assert (
        f"| UAR | {report['uar']['pooled']:.2f} | {report['uar']['fold_mean']:.2f} | "
        f"{report['uar']['fold_std']:.2f} | {low:.2f}–{high:.2f} | "
        f"{report['baselines']['svc']['uar']:.2f} | "
        f"{report['baselines']['linear']['uar']:.2f} |"
    ) in text
    assert "| sad | 50.0 |" in text
    low, high = report["uar"]["ci95_speakers"]
    assert f"that of the UAR is {low:.2f}–{high:.2f}." in text
    assert f"| macro F1 | {report['macro_f1']:.2f} |" in text
    assert "took 0.00 h" in text and "of its last block: 0.500 (1), 0.600 (2)." in text
    assert "TIM-Net beats the better baseline by " in text


def test_names_from_the_data_are_no_markup(folds: list[dict[str, Any]]) -> None:
    for record in folds:
        record["labels"] = ["<b>cross|sad</b>", "a\nb", "c"]
        record["speakers"] = ["an|na"] * 4

    text = render_report(build_report(PLAN, folds))

    assert "| \\<b\\>cross\\|sad\\</b\\> | " in text
    assert "| a b | " in text and "| an\\|na | " in text


def test_one_fold_has_no_spread(folds: list[dict[str, Any]]) -> None:
    report = build_report(replace(PLAN, seeds=(0,)), folds[:1])
    text = render_report(report)
    assert "4 recordings, 1 fold, 1 seed, " in text
    value = report["uar"]
    assert f"| UAR | {value['pooled']:.2f} | {value['fold_mean']:.2f} | – | " in text
    assert "per_speaker_spread" not in report


def test_data_in_the_command_is_explained(folds: list[dict[str, Any]]) -> None:
    plan = replace(PLAN, command="timnet cross-validate --data-dir DATA")
    explained = "--data-dir DATA`; DATA is the folder with the recordings."
    assert explained in render_report(build_report(plan, folds))
    assert "DATA" not in render_report(build_report(PLAN, folds))

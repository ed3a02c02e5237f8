# SPDX-License-Identifier: Apache-2.0
"""The tables of README and cards: every figure comes from a report, or from the literature."""

from __future__ import annotations

import copy
import json
import runpy
import sys
from pathlib import Path

import pytest

from timnet_hf.configuration_timnet import ABLATIONS
from timnet_hf.measurement_tables import fill_channels
from timnet_hf.published import PUBLISHED
from timnet_hf.tables import (
    NOTHING_MEASURED,
    ResultsError,
    fill_markers,
    load_reports,
    render_results_table,
)

from .model_folders import FIGURES, LABELS, LOSO
from .test_card import KFOLD, LEFT_OUT, card, write_results


def test_a_table_shows_the_figures_of_the_reports_beside_the_published_ones(
    tmp_path: Path,
) -> None:
    table = render_results_table(write_results(tmp_path, LOSO, KFOLD), "emodb")
    rows = [row.split("|")[1:-1] for row in table.splitlines() if row.startswith("|")]
    assert {len(row) for row in rows} == {6}
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[2] == [
        "leave one speaker out",
        "TIM-Net, `default` recipe",
        "**81.23** (78.0 to 84.4)",
        "82.34",
        "80.56",
        "measured, mean of 2 seeds",
    ]
    assert cells[3][2:4] == ["74.50", "76.25"]
    published = [row for row in PUBLISHED if row.corpus == "emodb"]
    assert len(cells) == 2 + 2 * 3 + len(published)


def test_a_figure_that_changes_in_the_json_changes_in_the_table(tmp_path: Path) -> None:
    before = render_results_table(write_results(tmp_path, LOSO), "emodb")
    changed = copy.deepcopy(LOSO)
    changed["uar"]["pooled"] = 81.24
    assert render_results_table(write_results(tmp_path, changed), "emodb") != before


def test_an_overview_has_the_default_recipe_on_every_corpus_and_protocol_in_one_table(
    tmp_path: Path,
) -> None:
    baselines = {"svc": {"uar": 70.11, "war": 71.78}}
    across = {**LEFT_OUT[1], "labels": LABELS}
    enrolled = {**LOSO, "recipe": "default-adapted", "uar": {**FIGURES, "pooled": 88.88}}
    reports = [{**LOSO, "baselines": baselines}, enrolled, {**KFOLD, "recipe": "paper"}, across]
    text = fill_markers(
        "<!-- results:begin -->\n<!-- results:end -->",
        write_results(tmp_path, *reports, {**KFOLD, "baselines": baselines}),
    )
    rows = [line for line in text.partition("### ")[0].splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| EMO-DB, leave one speaker out | **81.2** | 88.9 | 70.1 | – | – |",
        "| EMO-DB, random 10-fold | **90.2** | – | 70.1 | – | 89.2 |",
        "| trained on RAVDESS, tested on EMO-DB | **44.4** | – | 74.5 | 73.5 | – |",
    ]
    note = "- *trained on RAVDESS, tested on EMO-DB*: over the 4 labels that both have; chance"
    assert f"{note} level 25.0 %." in text


def test_a_table_says_how_the_ablations_do_beside_the_whole_network(tmp_path: Path) -> None:
    def ablated(recall: float) -> str:
        reports = [
            {**LOSO, "parameters": 900},
            {**LOSO, "recipe": "default-plain-tcn", "parameters": 400},
            {**LOSO, "recipe": "default-no-backward", "parameters": 500},
        ]
        reports[2]["uar"] = {**FIGURES, "pooled": recall}
        return render_results_table(write_results(tmp_path, *reports), "emodb")

    said = (
        "Ablations of `default` recipe: UAR 80.00 to 81.23 with 400 to 500 parameters, all inside"
    )
    assert f"{said} the 95 % interval of the whole network, 81.23 with 900." in ablated(80.0)
    assert "UAR 50.00 to 81.23 with 400 to 500 parameters, **not all inside**" in ablated(50.0)


def test_a_table_without_reports_says_so_and_keeps_the_published_figures(tmp_path: Path) -> None:
    table = render_results_table(tmp_path / "nothing", "emodb")
    assert table.startswith(NOTHING_MEASURED)
    assert "77.08" in table
    assert render_results_table(tmp_path / "nothing", "my-calls") == NOTHING_MEASURED


def test_a_result_that_leaks_is_marked_in_a_table(tmp_path: Path) -> None:
    leaky = {**KFOLD, "recipe": "paper-best-on-test", "leaks_test_fold": True}
    table = render_results_table(write_results(tmp_path, KFOLD, leaky), "emodb")
    (row,) = [row for row in table.splitlines() if "`paper`" in row]
    assert "`paper` recipe, **epoch chosen on the test fold: not a result**" in row


def test_a_table_says_where_the_plain_baseline_wins(tmp_path: Path) -> None:
    ours = KFOLD["war"]["pooled"]
    for war, remark in ((ours - 1, ""), (ours + 1, "loses to"), (ours, "is level with")):
        baselines = {"svc": {"uar": 1.0, "war": war}, "linear": {"uar": 1.0, "war": 1.0}}
        table = render_results_table(
            write_results(tmp_path, {**KFOLD, "baselines": baselines}), "emodb"
        )
        assert (f"**{remark} the SVC in WAR**" in table) is bool(remark)
        assert ("SVC in" in table) is bool(remark)


def test_the_baseline_of_the_papers_features_is_told_from_that_of_ours(tmp_path: Path) -> None:
    baselines = {"svc": {"uar": 70.11, "war": 71.78}}
    reports = [
        {**KFOLD, "baselines": baselines, "recipe": name}
        for name in ("default", "paper", "paper-no-backward")
    ]
    table = render_results_table(write_results(tmp_path, *reports), "emodb")
    assert table.count("| SVC on MFCC statistics |") == 1
    assert table.count("| SVC on the paper's MFCC statistics |") == 1


def test_a_table_says_what_its_intervals_are_drawn_from(tmp_path: Path) -> None:
    table = render_results_table(write_results(tmp_path, KFOLD), "emodb")
    assert "bootstrap interval over recordings." in table and "whole speakers" not in table
    wider = {**LOSO, "recipe": "default", "uar": {**FIGURES, "ci95_speakers": [77.77, 88.88]}}
    table = render_results_table(write_results(tmp_path, wider), "emodb")
    assert "unseen ones: 77.8 to 88.9 (*leave one speaker out*)" in table
    headline = " ".join(card(wider).split())
    assert "95 % interval over speakers 77.77 to 88.88" in headline
    assert "95 % interval over recordings 78.05" in " ".join(card(KFOLD).split())


def test_a_table_tells_apart_the_speakers_that_the_recipe_was_chosen_on(
    tmp_path: Path,
) -> None:
    recalls = {f"{actor:02d}": 70.0 if actor <= 12 else 60.0 for actor in range(1, 25)}
    ravdess = {**LOSO, "corpus": "ravdess", "protocol": "emobox", "per_speaker": recalls}
    across = {f"ravdess:{name}": recall - 30 for name, recall in recalls.items()}
    others = [{**ravdess, "recipe": f"default-{name}"} for name in ("adapted", "plain-tcn")]
    others += [LOSO, {**LOSO, "protocol": "to-ravdess", "per_speaker": across}]
    results = write_results(tmp_path, {**ravdess, "recipe": "default"}, *others)
    (note,) = [
        line
        for line in render_results_table(results, "ravdess").splitlines()
        if "was chosen on" in line
    ]
    assert note.startswith("- `default` was chosen on speakers 01 to 12 of RAVDESS")
    assert note.endswith(
        "70.0 and 60.0 % (*EmoBox folds*), "
        "70.0 and 60.0 % (*EmoBox folds, test speakers enrolled*)."
    )
    (note,) = [
        line
        for line in render_results_table(results, "emodb").splitlines()
        if "was chosen on" in line
    ]
    assert note.endswith("others: 40.0 and 30.0 % (*trained on EMO-DB, tested on RAVDESS*).")


def test_a_table_says_how_far_the_papers_recipe_lies_from_its_authors_figures(
    tmp_path: Path,
) -> None:
    figures = {"pooled": 88.0, "ci95": [85.0, 90.0]}
    paper = {**KFOLD, "recipe": "paper", "uar": {**FIGURES, **figures}}
    paper["war"] = {**FIGURES, **figures}
    table = render_results_table(write_results(tmp_path, paper), "emodb")
    mean = f"88.00 pooled, {FIGURES['fold_mean']:.2f} as mean of folds; theirs"
    assert f"UAR {mean}, 89.19, lies inside the 95 % interval (85.0 to 90.0)" in table
    assert f"WAR {mean}, 90.28, lies **outside** the 95 % interval" in table
    assert "theirs" not in render_results_table(write_results(tmp_path / "new", LOSO), "emodb")
    five = [{**paper, "n_folds": 5}, {**KFOLD, "n_folds": 5}]
    text = fill_markers(
        "<!-- results:begin -->\n<!-- results:end -->", write_results(tmp_path / "five", *five)
    )
    assert "| EMO-DB, random 5-fold | **90.2** | – | 74.5 | 73.5 | – |" in text
    assert "theirs" not in text, "they are of ten folds"


def test_a_table_says_which_results_are_of_a_recipe_that_was_changed_since(tmp_path: Path) -> None:
    earlier = {**LOSO, "recipe": "default-d564eea-adapted"}
    table = render_results_table(write_results(tmp_path, LOSO, earlier), "emodb")
    assert "- *default-d564eea*: that recipe as it was in commit d564eea" in table
    assert table.count("that recipe as it was") == 1
    assert "as it was" not in render_results_table(write_results(tmp_path / "new", LOSO), "emodb")


@pytest.mark.parametrize("recipe", ["default", "default-d564eea"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_table_says_what_an_ablation_lacks_and_gives_its_folds_one_baseline(
    tmp_path: Path, ablation: str, recipe: str
) -> None:
    baselines = {"svc": {"uar": 70.11, "war": 71.78}}
    reports = [
        {**LOSO, "baselines": baselines, "recipe": name}
        for name in (recipe, f"{recipe}-{ablation}")
    ]
    table = render_results_table(write_results(tmp_path, *reports), "emodb")
    assert f"| TIM-Net, `{recipe}` recipe, ablation `{ablation}` | " in table
    assert table.count(f"- *ablation `{ablation}`*: the network with ") == 1
    assert table.count("| SVC on MFCC statistics |") == 1
    reports[1]["baselines"] = {"svc": {"uar": 70.0, "war": 71.7}}  # made on another machine
    assert render_results_table(write_results(tmp_path, *reports), "emodb") == table
    alone = render_results_table(write_results(tmp_path / "new", reports[0]), "emodb")
    assert ablation not in alone


def test_a_report_in_the_wrong_place_or_half_written_is_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path, LOSO) / "emodb" / "loso" / "default" / "report.json"
    moved = tmp_path / "emodb" / "kfold" / "default"
    moved.mkdir(parents=True)
    path.rename(moved / "report.json")
    with pytest.raises(ResultsError, match="says it is of emodb/loso/default"):
        load_reports(tmp_path)
    (moved / "report.json").write_text('{"corpus": "emodb", "protocol": "loso", "recipe": 0}')
    with pytest.raises(ResultsError, match="says it is of emodb/loso/0"):
        load_reports(tmp_path)
    (moved / "report.json").write_text("{")
    with pytest.raises(ResultsError, match="not a report"):
        load_reports(tmp_path)


def test_tables_are_put_between_markers_and_nowhere_else(tmp_path: Path) -> None:
    results = write_results(tmp_path, LOSO)
    text = "a\n<!-- results:begin -->\noutdated\n<!-- results:end -->\nb\n"
    filled = fill_markers(text, results)
    assert filled.startswith("a\n<!-- results:begin -->\n\n| UAR % |")
    assert filled.count("\n### EMO-DB\n") == 1
    assert filled.endswith("\n\n<!-- results:end -->\nb\n")
    assert "outdated" not in filled
    assert fill_markers(filled, results) == filled
    one = fill_markers(text.replace("begin", "begin savee"), results)
    assert "| random 10-fold |" in one and "EMO-DB" not in one


def test_every_table_of_the_project_shows_what_its_json_says(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = repository / "scripts" / "update_tables.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--check"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0, capsys.readouterr().out


def test_the_table_of_channels_shows_what_was_measured_or_says_that_nothing_was(
    tmp_path: Path,
) -> None:
    text = "<!-- channels:begin -->\nold\n<!-- channels:end -->"
    assert NOTHING_MEASURED in fill_channels(text, tmp_path)
    told = {"same_label_percent": 99.44, "mean_difference": 0.00123}
    measured = {
        "n_files": 535,
        "corpus": "emodb",
        "learned": True,
        "model": "timnet-emodb",
        "versions": {"mp3, 128 kbit/s": told},
        "must": {"same_label_percent": 99.0, "mean_difference": 0.02},
        "falls_short": [],
    }
    (tmp_path / "channels.json").write_text(json.dumps(measured))
    filled = fill_channels(text, tmp_path)
    assert "| mp3, 128 kbit/s | 99.44 | 0.0012 |" in filled
    assert "- EMO-DB: aimed at 99 % and 0.02, 8 kHz left out; reached by all." in filled
    assert "about 535 recordings of EMO-DB, which it was trained on:" in filled
    other = {"same_label_percent": 94.6, "mean_difference": 0.0115}
    unheard = {**measured, "n_files": 480, "corpus": "ravdess", "learned": False}
    unheard |= {"versions": {"mp3, 128 kbit/s": other}, "falls_short": ["ogg"]}
    (tmp_path / "channels-unheard.json").write_text(json.dumps(unheard))
    filled = fill_channels(text, tmp_path)
    assert "| mp3, 128 kbit/s | 99.44 | 0.0012 | 94.60 | 0.0115 |" in filled
    assert "and about 480 recordings of RAVDESS, none of which it was trained on:" in filled
    assert "- RAVDESS: aimed at 99 % and 0.02, 8 kHz left out; **missed** by ogg." in filled
    assert "old" not in filled and fill_channels(filled, tmp_path) == filled

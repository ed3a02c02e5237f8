# SPDX-License-Identifier: Apache-2.0
"""The model card and the tables: every figure comes from a report, and the code in it runs."""

from __future__ import annotations

import copy
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard, constants

from timnet_hf.card import build_card, reports_for, template_path
from timnet_hf.configuration_timnet import ABLATIONS
from timnet_hf.measurement_tables import fill_channels
from timnet_hf.model_folder import card_of, read_evaluation, refresh_model_folder
from timnet_hf.published import PUBLISHED
from timnet_hf.tables import (
    NOTHING_MEASURED,
    ResultsError,
    fill_markers,
    load_reports,
    render_results_table,
)

from .fake_hub import check_front_matter, serve
from .model_folders import FIGURES, LABELS, LOSO, RECORD, run_python, write_model_folder

KFOLD = {**LOSO, "protocol": "kfold", "uar": {**FIGURES, "pooled": 90.19}}
CONFIG: dict[str, Any] = {
    "id2label": {str(index): name for index, name in enumerate(LABELS)},
    "num_hidden_layers": 8,
    "hidden_size": 39,
}
EXTRACTOR: dict[str, Any] = {"sampling_rate": 16_000, "feature_size": 39, "hop_length": 320}


def card(*reports: dict[str, Any], record: dict[str, Any] | None = None, **config: Any) -> str:
    return build_card(record or RECORD, {**CONFIG, **config}, EXTRACTOR, reports)


def write_results(folder: Path, *reports: dict[str, Any]) -> Path:
    for report in reports:
        path = folder / report["corpus"] / report["protocol"] / report["recipe"] / "report.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report))
    return folder


# --- front matter -----------------------------------------------------------------------------


def test_the_front_matter_says_what_the_hub_sorts_by() -> None:
    data = ModelCard(card(LOSO)).data
    assert data.pipeline_tag == "audio-classification"
    assert data["library_name"] == "transformers"
    assert data.language == "de"
    assert data.license == "apache-2.0"
    assert data.datasets == ["emodb"]
    assert data.metrics == ["recall", "accuracy", "f1"]
    assert "speech-emotion-recognition" in data.tags
    assert all(widget["src"].endswith(".flac") for widget in data.to_dict()["widget"])


def test_the_model_index_holds_three_figures_and_the_source_of_every_protocol() -> None:
    results = ModelCard(card(KFOLD, LOSO)).data.eval_results
    found = {(one.dataset_config, one.metric_type): one.metric_value for one in results}
    assert found == {
        ("loso", "recall"): 81.23,
        ("loso", "accuracy"): 82.34,
        ("loso", "f1"): 80.56,
        ("kfold", "recall"): 90.19,
        ("kfold", "accuracy"): 82.34,
        ("kfold", "f1"): 80.56,
    }
    assert {one.source_url.rpartition("/")[2] for one in results} == {"loso.json", "kfold.json"}


@pytest.mark.parametrize("corpus", ["casia", "emodb", "emovo", "iemocap", "ravdess", "savee"])
def test_the_card_of_every_corpus_passes_the_hubs_validation(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = card({**LOSO, "corpus": corpus}, record={**RECORD, "corpus": corpus})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        ModelCard(text).validate()
    assert ("POST", "/api/validate-yaml") in hub.requests


def test_the_validation_of_these_tests_does_refuse() -> None:
    text = card(LOSO)
    for good, bad in (
        ("license: apache-2.0", "license: own"),
        ("language: de", "language: German"),
        ("pipeline_tag: audio-classification", "pipeline_tag: emotion"),
        ("      type: emodb\n", ""),
    ):
        assert good in text
        assert check_front_matter(text) == []
        assert check_front_matter(text.replace(good, bad)) != []


@pytest.mark.parametrize(
    ("corpus", "licence"),
    [("ravdess", "cc-by-nc-sa-4.0"), ("iemocap", "other"), ("emovo", "apache-2.0")],
)
def test_the_weights_are_as_free_as_their_recordings(corpus: str, licence: str) -> None:
    data = ModelCard(card(record={**RECORD, "corpus": corpus})).data
    assert data.license == licence
    assert (data.license_name is not None) == (licence == "other")


JOINED = {**RECORD, "corpus": "emodb-ravdess", "data": {"files": 1975, "sha256": "0" * 64}}
LEFT_OUT = [
    {**LOSO, "protocol": "to-ravdess"},
    {**LOSO, "corpus": "ravdess", "protocol": "to-emodb", "uar": {**FIGURES, "pooled": 44.44}},
]


def test_a_model_of_two_corpora_names_both_and_is_as_free_as_the_stricter() -> None:
    data = ModelCard(card(*LEFT_OUT, record=JOINED)).data
    assert data.language == ["de", "en"]
    assert data.datasets == ["emodb", "ravdess"]
    assert data.license == "cc-by-nc-sa-4.0"
    assert data.model_name == "timnet-multi"
    assert {(one.dataset_type, one.dataset_name) for one in data.eval_results} == {
        ("emodb", "trained on RAVDESS, tested on EMO-DB"),
        ("ravdess", "trained on EMO-DB, tested on RAVDESS"),
    }
    assert check_front_matter(card(*LEFT_OUT, record=JOINED)) == []


def test_a_model_of_two_corpora_shows_how_one_does_on_the_other(tmp_path: Path) -> None:
    results = write_results(tmp_path, LOSO, *LEFT_OUT, {**LEFT_OUT[0], "recipe": "paper"})
    reports = reports_for(JOINED, results)
    assert reports == LEFT_OUT
    text = card(*reports, record=JOINED)
    assert "- trained on EMO-DB, tested on RAVDESS: 81.23 % (chance level 25.0)" in text
    assert "- trained on RAVDESS, tested on EMO-DB: 44.44 %" in text
    assert (
        "| trained on RAVDESS, tested on EMO-DB | TIM-Net, `default` recipe, **loses to the "
        "SVC and the logistic regression in UAR** | **44.44**" in text
    )
    assert "trained on EMO-DB and RAVDESS" in text and "34 speakers" in text
    assert "**Expect 81" not in text


def test_a_model_of_two_corpora_that_was_judged_itself_says_so_first(tmp_path: Path) -> None:
    own = {**LOSO, "corpus": "emodb-ravdess", "protocol": "group", "group_by": "speaker"}
    own |= {"n_folds": 5, "n_files": 1975, "uar": {**FIGURES, "pooled": 55.55}}
    reports = reports_for(JOINED, write_results(tmp_path, own, *LEFT_OUT))
    assert reports == [own, *LEFT_OUT]
    text = " ".join(card(*reports, record=JOINED).split())
    assert "**Expect 55.55 % unweighted average recall**" in text
    assert 'under "5 folds by speaker", that is on unseen speakers' in text
    assert "- trained on RAVDESS, tested on EMO-DB: 44.44 %" in text
    assert "| 5 folds by speaker | TIM-Net, `default` recipe" in text


def test_a_model_of_own_recordings_claims_no_licence_language_or_dataset() -> None:
    text = card(record={**RECORD, "corpus": "my-calls"})
    data = ModelCard(text).data
    assert (data.license, data.language, data.datasets) == (None, None, None)
    assert "Their terms apply" in text


# --- text -------------------------------------------------------------------------------------


def test_the_speaker_independent_figure_comes_first() -> None:
    text = card(KFOLD, LOSO)
    headline = text.index("**Expect 81.23 %")
    assert headline < text.index("90.19", text.index("# TIM-Net"))
    table = text[text.index("## Evaluation") :]
    assert table.index("81.23") < table.index("90.19")


def test_without_a_report_the_card_says_that_nothing_was_measured() -> None:
    text = card()
    assert "has not been measured" in text
    assert NOTHING_MEASURED in text
    assert "model-index" not in text
    assert "Expect" not in text


def test_a_report_whose_epoch_was_chosen_on_the_test_fold_is_no_result(tmp_path: Path) -> None:
    leaky = {**LOSO, "recipe": "default-best-on-test", "leaks_test_fold": True}
    assert card(leaky) == card()
    results = write_results(tmp_path, LOSO, *LEFT_OUT)
    for report in (LOSO, *LEFT_OUT):
        place = results / report["corpus"] / report["protocol"] / "default-best-on-test"
        leak = {**report, "recipe": place.name, "leaks_test_fold": True}
        place.mkdir(parents=True)
        (place / "report.json").write_text(json.dumps(leak))
        (place / "run.json").write_text(json.dumps({"fixed": NOTES}))
    assert reports_for(RECORD, results) == [LOSO, LEFT_OUT[0]]
    assert reports_for(JOINED, results) == LEFT_OUT


@pytest.mark.parametrize(
    "statement",
    [
        "Acted speech",
        "trained on German alone",
        "No lie detection",
        "mental state",
        "Regulation (EU) 2024/1689",
        "at work and in education",
        "no clear licence text by the owners",
        "arXiv 2211.08233",
        "Burkhardt",
        "calibration error of the plain softmax is 0.071",
        "from 70.1 to 92.6 %",
        "| boredom | 72.8 |",
        "num_train_epochs=3",
        "1.5 h of training and scoring",
        "openSMILE ComParE, 6,373 features + SVC | 77.08",
    ],
)
def test_the_card_says(statement: str) -> None:
    assert statement in " ".join(card(LOSO).split())


def test_the_card_of_a_converted_checkpoint_does_not_invent_a_training() -> None:
    record = {"corpus": None, "converted_from": "weights.hdf5", "parameters": 1, "labels": LABELS}
    text = card(record=record)
    assert "Keras checkpoint `weights.hdf5`" in text
    assert "not on record" in text
    assert "### Compute" not in text and "own recordings" not in text
    assert "preset" not in text
    assert "\n\n\n" not in text


def test_what_the_loss_and_the_features_are_weighed_by_is_told() -> None:
    def told(**values: Any) -> str:
        record = {**RECORD, "recipe": {**RECORD["recipe"], **values}}
        return " ".join(card(record=record).split())

    assert "Coefficients standardised over the training frames." in told(standardize=True)
    assert "Labels weighted by the inverse of their share." in told(class_weights=True)
    neither = told(standardize=False, class_weights=False)
    assert "standardised over" not in neither and "inverse of their share" not in neither


def test_a_fitted_temperature_is_stated() -> None:
    assert "No temperature was fitted" in card(LOSO)
    assert "A temperature of 1.250 was fitted" in card(LOSO, temperature=1.25)
    told = " ".join(card(LOSO, record={**RECORD, "calibration": 1}, temperature=1.25).split())
    assert "fitted on held-out speakers (1 of 4 inner folds)" in told


def test_what_the_temperature_did_to_recordings_held_out_is_told() -> None:
    found = {"recordings": 1975, "ece_uncalibrated": 0.1234, "ece": 0.0321}
    told = " ".join(card(LOSO, record={**RECORD, "held_out": found}, temperature=1.25).split())
    assert "the 1,975 recordings" in told and "calibration error from 0.123 to 0.032" in told
    assert "recordings of theirs" not in card(LOSO, temperature=1.25)


@pytest.mark.parametrize(("temperature", "told"), [(0.6, "surer, and no more"), (1.7, "less sure")])
def test_what_the_temperature_does_elsewhere_is_told(temperature: float, told: str) -> None:
    text = card(*LEFT_OUT, record=JOINED, temperature=temperature)
    assert f"probabilities there are {told}" in " ".join(text.split())


def test_the_calibration_error_is_given_without_and_with_a_temperature() -> None:
    plain = " ".join(card(LOSO).split())
    assert "error of the plain softmax is 0.071 (0 is perfect)." in plain
    fitted = " ".join(card({**LOSO, "ece_uncalibrated": 0.1234, "temperature": 0.6}).split())
    assert "plain softmax is 0.123 (0 is perfect), and 0.071 with a temperature" in fitted


def test_on_another_corpus_too_the_plain_softmax_is_without_a_temperature() -> None:
    fitted = [{**one, "ece": 0.01, "ece_uncalibrated": 0.234} for one in LEFT_OUT]
    told = " ".join(card(*fitted, record=JOINED).split())
    assert "0.234, trained on EMO-DB, tested on RAVDESS" in told and "0.010" not in told


def test_inner_folds_are_told_as_they_were_made() -> None:
    record = {**RECORD, "calibration": 2, "inner_folds": 3}
    assert "(2 of 3 inner folds)" in " ".join(card(LOSO, record=record, temperature=1.25).split())


def test_no_figure_is_typed_into_the_template() -> None:
    text = template_path().read_text(encoding="utf-8")
    text = re.sub("<!-- results:begin -->.*?<!-- results:end -->", "", text, flags=re.DOTALL)
    template = re.sub(r"\{[{%#].*?[}%#]\}", "", text, flags=re.DOTALL)
    body = re.sub(r"```.*?```", "", template, flags=re.DOTALL)
    body = re.sub(r"\(EU\) 2024/1689|Article \d+\(\d\)(\(\w\))?|Annex III, 1\(c\)", "", body)
    body = body.replace("Apache-2.0", "").replace("SHA-256", "").replace("95 % interval", "")
    assert re.findall(r".*\d.*", body.replace("(0 is perfect)", "")) == []


# --- code -------------------------------------------------------------------------------------


def test_the_code_in_the_card_runs(tmp_path: Path, speech: np.ndarray, ffmpeg: str) -> None:
    folder = write_model_folder(tmp_path / "model")
    soundfile.write(tmp_path / "your.wav", speech, 16_000)
    blocks = re.findall(r"```python\n(.*?)```", card_of(folder), re.DOTALL)
    assert len(blocks) == 3
    for block, package in (("\n".join(blocks[:2]), False), (blocks[2], True)):
        assert ("trust_remote_code=True" in block) is not package
        script = block.replace("org/timnet-emodb", str(folder))
        script += '\nimport json; print(json.dumps({"done": True}))'
        assert run_python(script, cwd=tmp_path, package=package) == {"done": True}


# --- tables -----------------------------------------------------------------------------------


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


def test_the_card_tells_what_the_network_is_made_of() -> None:
    shape = {"num_hidden_layers": 6, "hidden_size": 24}
    one = " ".join(card(**shape).split())
    assert "6 temporal-aware blocks a direction, width 24." in one
    several = " ".join(card(**shape, num_members=4).split())
    assert (
        "width 24; 4 such networks side by side, whose answers are averaged (packed ensemble)."
        in several
    )
    centered = " ".join(card(**shape, num_members=4, num_centered_members=2).split())
    assert "are averaged (packed ensemble); 2 of them with cepstral mean norm" in centered
    assert "statistics pooling" not in centered and "time scale of its own" not in centered
    told = " ".join(card(**shape, pooling="statistics", pool_input=True).split())
    assert "width 24; statistics pooling; the input is a time scale of its own." in told


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


def test_a_report_is_found_by_corpus_and_recipe(tmp_path: Path) -> None:
    write_results(tmp_path, LOSO, {**LOSO, "recipe": "paper"}, {**LOSO, "corpus": "savee"})
    assert [one["corpus"] for one in reports_for(RECORD, tmp_path)] == ["emodb"]
    assert len(load_reports(tmp_path)) == 3
    write_results(tmp_path, {**LOSO, "corpus": "calls [2026]"})
    assert [one["corpus"] for one in load_reports(tmp_path, "calls [2026]")] == ["calls [2026]"]


def test_a_known_voice_is_reported_beside_the_unknown_one_and_never_in_its_place(
    tmp_path: Path,
) -> None:
    known = {**LOSO, "recipe": "default-adapted", "uar": {**FIGURES, "pooled": 88.88}}
    known |= {"transductive": True, "ece": 0.0747}
    gains = {"1": (83.0, 84.0), "3": (85.0, 84.5), "all": (88.88, 81.23)}
    enrolled = {
        count: {"uar": uar, "uar_without": without} for count, (uar, without) in gains.items()
    }
    unknown = {**LOSO, "enrolled": enrolled}
    results = write_results(tmp_path / "results", known, unknown)
    folder = write_model_folder(tmp_path / "model")
    refresh_model_folder(folder, results)
    names = {path.name for path in (folder / "evaluation").iterdir()}
    assert names == {"loso.json", "loso-adapted.json"}
    text = (folder / "README.md").read_text()
    assert "**Expect 81.23 %" in text
    told = " ".join(text.split())
    assert "from 84.00 to 83.00 % with 1, from 84.50 to 85.00 % with 3. With all of them" in told
    assert "themselves tested, it is 88.88 % (calibration error 0.075). Fewer than 3 do" in told
    assert "| TIM-Net, `default` recipe, test speakers enrolled | **88.88**" in text
    assert "*test speakers enrolled*: the statistics of all recordings" in text
    assert text.count("| leave one speaker out | SVC on MFCC statistics |") == 1
    assert text.count("| SVC on MFCC statistics, standardised per speaker |") == 1
    configs = {one.dataset_config for one in ModelCard(text).data.eval_results}
    assert configs == {"loso", "loso-adapted"}


@pytest.mark.parametrize(
    "difference",
    [
        {"overrides": {"num_train_epochs": 1}},
        {"config": {"bidirectional": False}},
        {"data": {"files": 534, "sha256": "0"}},
        {"recipe": None},
    ],
)
def test_a_model_trained_otherwise_gets_no_figures(
    tmp_path: Path, difference: dict[str, Any]
) -> None:
    write_results(tmp_path, LOSO)
    assert reports_for(RECORD, tmp_path) == [LOSO]
    assert reports_for({**RECORD, **difference}, tmp_path) == []


#: What a cross-validation with the recipe of RECORD notes before it begins.
NOTES: dict[str, Any] = {"recipe": RECORD["recipe"], "config": {}, "arguments": {}}


@pytest.mark.parametrize(
    ("notes", "quoted"),
    [
        (NOTES, True),
        ({**NOTES, "recipe": {**RECORD["recipe"], "name": "another"}}, True),
        ({**NOTES, "recipe": {**RECORD["recipe"], "arguments": {"num_train_epochs": 4}}}, False),
        ({**NOTES, "config": {"bidirectional": False}}, False),
        ({**NOTES, "arguments": {"num_train_epochs": 4}}, False),
    ],
)
def test_a_card_quotes_reports_of_the_values_it_was_trained_with_whatever_their_name(
    tmp_path: Path, notes: dict[str, Any], quoted: bool
) -> None:
    reports = [{**LOSO, "recipe": name} for name in ("default-d564eea", "default-d564eea-adapted")]
    folder = write_results(tmp_path, *reports) / "emodb" / "loso" / "default-d564eea"
    assert reports_for(RECORD, tmp_path) == []
    (folder / "run.json").write_text(json.dumps({"fixed": notes}))
    assert reports_for(RECORD, tmp_path) == reports * quoted
    (folder / "run.json").write_text('{"fixed": {}}')
    with pytest.raises(ResultsError, match=r"run\.json: not the notes of a run"):
        reports_for(RECORD, tmp_path)


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


def test_a_folders_card_follows_the_results(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    results = write_results(tmp_path / "results", LOSO, {**LOSO, "recipe": "paper"})
    changed = refresh_model_folder(folder, results)
    assert {path.name for path in changed} == {"loso.json", "README.md"}
    assert read_evaluation(folder) == [LOSO]
    assert "**Expect 81.23 %" in (folder / "README.md").read_text()
    assert refresh_model_folder(folder, results) == []


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

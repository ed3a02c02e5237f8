# SPDX-License-Identifier: Apache-2.0
"""The model card: every figure comes from a report, and the code in it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard, constants

from timnet_hf.card import build_card, reports_for, template_path
from timnet_hf.model_folder import card_of, read_evaluation, refresh_model_folder
from timnet_hf.tables import (
    NOTHING_MEASURED,
    ResultsError,
    load_reports,
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


# --- whose reports ----------------------------------------------------------------------------


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


def test_a_folders_card_follows_the_results(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    results = write_results(tmp_path / "results", LOSO, {**LOSO, "recipe": "paper"})
    changed = refresh_model_folder(folder, results)
    assert {path.name for path in changed} == {"loso.json", "README.md"}
    assert read_evaluation(folder) == [LOSO]
    assert "**Expect 81.23 %" in (folder / "README.md").read_text()
    assert refresh_model_folder(folder, results) == []

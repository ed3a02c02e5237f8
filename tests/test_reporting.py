# SPDX-License-Identifier: Apache-2.0
"""Reports: every figure checked by hand or against scikit-learn, nothing glossed over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from timnet_hf import reporting
from timnet_hf.evaluation import uar, war
from timnet_hf.fold_training import enrolment_order
from timnet_hf.reporting import (
    bootstrap_interval,
    build_report,
    chance_calibration_error,
    expected_calibration_error,
    render_report,
    write_report,
)

from .report_folds import BASELINE, PLAN, make_folds, pooled


@pytest.fixture
def folds() -> list[dict[str, Any]]:
    return make_folds()


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "BOOTSTRAP_ROUNDS", 50)


@pytest.fixture
def report(folds: list[dict[str, Any]]) -> dict[str, Any]:
    return build_report(PLAN, folds)


class TestBuildReport:
    def test_has_what_readers_of_reports_rely_on(self, report: dict[str, Any]) -> None:
        assert {
            "corpus",
            "protocol",
            "recipe",
            "seeds",
            "parameters",
            "n_files",
            "command",
            "uar",
            "war",
            "macro_f1",
            "ece",
            "ece_by_chance",
            "per_class_recall",
            "per_speaker",
        } <= set(report)
        for name in ("uar", "war"):
            figures = {"pooled", "fold_mean", "fold_std", "ci95", "ci95_speakers", "per_seed"}
            assert set(report[name]) == figures
        json.dumps(report, allow_nan=False)

    def test_says_what_was_run(self, report: dict[str, Any]) -> None:
        assert report["corpus"] == "toy"
        assert report["protocol"] == "loso"
        assert report["recipe"] == "tiny"
        assert report["seeds"] == [0, 1]
        assert report["n_folds"] == 2
        assert report["n_files"] == 8
        assert report["parameters"] == 1234
        assert report["command"] == "timnet cross-validate --corpus toy"
        assert report["wall_time_seconds"] == 6

    def test_pools_a_seeds_folds_and_averages_the_seeds(self, report: dict[str, Any]) -> None:
        recalls = [100 * balanced_accuracy_score(*pooled(seed)) for seed in (0, 1)]

        assert report["uar"]["per_seed"] == pytest.approx(recalls, abs=0.005)
        assert report["uar"]["pooled"] == pytest.approx(np.mean(recalls), abs=0.005)
        assert report["war"]["per_seed"] == [75.0, 62.5]
        assert report["war"]["pooled"] == 68.75

    def test_means_and_spreads_over_folds_are_taken_within_a_seed(
        self, report: dict[str, Any]
    ) -> None:
        # Accuracy: seed 0 has 75 and 75, seed 1 has 100 and 25.
        assert report["war"]["fold_mean"] == 75 / 2 + 62.5 / 2
        assert report["war"]["fold_std"] == (0 + 37.5) / 2

    def test_an_interval_holds_its_figure(self, report: dict[str, Any]) -> None:
        for name in ("uar", "war"):
            low, high = report[name]["ci95"]
            assert 0 <= low < report[name]["pooled"] < high <= 100

    def test_macro_f1_is_scikit_learns(self, report: dict[str, Any]) -> None:
        expected = [100 * f1_score(*pooled(seed), average="macro") for seed in (0, 1)]

        assert report["macro_f1"] == pytest.approx(np.mean(expected), abs=0.005)

    def test_recall_of_each_class(self, report: dict[str, Any]) -> None:
        assert report["per_class_recall"] == {
            "angry": round((200 / 3 + 200 / 3) / 2, 2),
            "happy": round((100 + 200 / 3) / 2, 2),
            "sad": 50.0,
        }

    def test_uar_of_each_speaker(self, report: dict[str, Any]) -> None:
        # Of a: 1/2, 1, 1, then all right. Of b: 1, 1, 0, then 0, 1/2, 0.
        assert report["per_speaker"] == {
            "a": round((100 * 2.5 / 3 + 100) / 2, 2),
            "b": round((100 * 2 / 3 + 100 * 0.5 / 3) / 2, 2),
        }

    def test_unknown_speakers_have_no_row(self, folds: list[dict[str, Any]]) -> None:
        for record in folds:
            record["speakers"] = [None] * 4

        report = build_report(PLAN, folds)

        assert report["per_speaker"] == {}
        assert "| speaker |" not in render_report(report)

    def test_confusion_counts_all_seeds(self, report: dict[str, Any]) -> None:
        assert report["confusion"] == [[4, 1, 1], [1, 5, 0], [2, 0, 2]]

    def test_the_baselines_stand_beside(self, report: dict[str, Any]) -> None:
        predictions = np.array(BASELINE["a"] + BASELINE["b"])

        assert set(report["baselines"]) == {"svc", "linear"}
        assert report["baselines"]["svc"]["uar"] == pytest.approx(
            100 * balanced_accuracy_score(pooled(0)[0], predictions), abs=0.005
        )
        assert report["baselines"]["svc"]["war"] == 62.5
        assert report["baselines"]["svc"]["macro_f1"] == pytest.approx(
            100 * f1_score(pooled(0)[0], predictions, average="macro"), abs=0.005
        )
        assert report["verdict"] == ""

    def test_says_where_the_network_loses(self, folds: list[dict[str, Any]]) -> None:
        for record in folds:
            record["baselines"]["linear"] = record["references"]

        report = build_report(PLAN, folds)

        found = "loses to the logistic regression in UAR and WAR"
        assert report["verdict"] == found
        assert f"TIM-Net **{found}**." in render_report(report)

    def test_a_tie_is_no_loss(self, folds: list[dict[str, Any]]) -> None:
        for record in folds:
            record["baselines"]["svc"] = np.argmax(record["logits"], 1).tolist()

        report = build_report(replace(PLAN, seeds=(0,)), folds[:2])

        assert report["verdict"] == "is level with the SVC in UAR and WAR"

    def test_fusion_weights_are_the_models_mean(self, report: dict[str, Any]) -> None:
        assert report["fusion_weights"] == {"1": 0.5, "2": 0.6}

    @pytest.mark.parametrize(
        "change",
        [{"config": {"dynamic_fusion": False}}, {"selection": "best-on-test"}],
        ids=["their mean", "another epoch's"],
    )
    def test_weights_that_are_not_the_reported_models_are_not_told(
        self, change: dict[str, Any], folds: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        (tmp_path / "fusion_weights.png").touch()  # of an earlier version

        report = write_report(tmp_path, replace(PLAN, **change), folds)

        assert report["fusion_weights"] == {}
        assert not (tmp_path / "fusion_weights.png").exists()
        assert "weights" not in (tmp_path / "report.md").read_text()

    @pytest.mark.parametrize(
        ("config", "names"),
        [
            ({"pool_input": True}, ["input", "1", "2"]),
            ({"pool_input": True, "multi_scale": False}, ["input", "2"]),
            ({"multi_scale": False}, []),  # one scale has nothing to weigh
        ],
    )
    def test_scales_are_named_by_their_dilation(
        self, config: dict[str, bool], names: list[str], folds: list[dict[str, Any]]
    ) -> None:
        plan = replace(PLAN, config=config)
        weights = [{**fold, "fusion_weights": [0.1] * plan.network().num_scales} for fold in folds]

        assert list(build_report(plan, weights)["fusion_weights"]) == names

    def test_tells_which_code_trained_how_many_models(self, folds: list[dict[str, Any]]) -> None:
        folds[0]["versions"] = {"torch": "2.13.0"}
        del folds[0]["threads"]

        report = build_report(PLAN, folds)

        assert sorted(report["made_by"], key=len) == [
            {"models": 1, "torch": "2.13.0"},
            {"models": 3, "code": "abc", "torch": "2.14.1", "threads": 2},
        ]
        text = render_report(report)
        assert "3 models by code abc, torch 2.14.1, threads 2" in text
        assert "1 model by code of unrecorded version, torch 2.13.0" in text

    def test_tells_what_a_choice_on_the_test_fold_adds(self, folds: list[dict[str, Any]]) -> None:
        wrong = [(np.eye(3)[np.array(f["references"]) - 1]).tolist() for f in folds]
        chosen = [{**f, "last_logits": w} for f, w in zip(folds, wrong, strict=True)]
        plan = replace(PLAN, selection="best-on-test")

        report = build_report(plan, chosen)

        assert report["last_epoch"] == {"uar": 0.0, "war": 0.0}
        added = report["war"]["pooled"]
        assert f"0.00 % WAR (the choice adds {added:.2f})" in render_report(report)
        assert "last_epoch" not in build_report(PLAN, folds)

    def test_tells_how_far_speakers_lie_apart(self, report: dict[str, Any]) -> None:
        one, other = sorted(report["per_speaker"].values())
        spread = {"lowest": one, "highest": other, "std": round((other - one) / 2, 2)}
        assert report["per_speaker_spread"] == pytest.approx(spread, abs=0.011)
        assert f"From {one:.1f} to {other:.1f} %" in render_report(report)

    @pytest.mark.parametrize("leaks", [False, True])
    def test_a_choice_on_the_test_fold_is_labelled(
        self, leaks: bool, folds: list[dict[str, Any]]
    ) -> None:
        plan = replace(PLAN, selection="best-on-test") if leaks else PLAN

        report = build_report(plan, folds)

        assert report["leaks_test_fold"] is leaks
        assert ("best-on-test" in report["recipe"]) is leaks
        assert (
            "**Leaks: each fold's epoch was chosen on that fold" in render_report(report)
        ) is leaks


class TestCalibrationError:
    def test_by_hand(self) -> None:
        # Two in the bin from 9/15 to 10/15, one of them right; one in the last bin, wrong.
        probabilities = np.array([[0.62, 0.38], [0.36, 0.64], [0.98, 0.02]])
        references = np.array([0, 0, 1])

        error = expected_calibration_error(probabilities, references)

        assert error == pytest.approx(2 / 3 * abs(0.5 - 0.63) + 1 / 3 * 0.98)

    def test_bins_tell_gaps_of_both_signs_apart(self) -> None:
        # One too sure, one not sure enough: the errors add up, and do not cancel out.
        probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])

        assert expected_calibration_error(probabilities, np.array([1, 0])) == pytest.approx(
            0.5 * 0.9 + 0.5 * 0.4
        )

    @pytest.mark.parametrize(("references", "error"), [([0, 1], 0.0), ([1, 0], 1.0)])
    def test_of_certainty(self, references: list[int], error: float) -> None:
        assert expected_calibration_error(np.eye(2), np.array(references)) == error


class TestChanceCalibrationError:
    def test_is_what_right_probabilities_show_on_average(self) -> None:
        # One recording, 0.8 sure: off by 0.2 in four draws of five, by 0.8 in the fifth.
        error = chance_calibration_error(np.array([[0.8, 0.2]]))

        assert error == pytest.approx(0.8 * 0.2 + 0.2 * 0.8, abs=0.1)

    def test_fades_with_the_number_of_recordings(self) -> None:
        few, many = (
            chance_calibration_error(np.tile([[0.7, 0.3]], (count, 1))) for count in (25, 2500)
        )

        assert many == pytest.approx(few / 10, rel=0.4)

    def test_is_zero_for_certainty(self) -> None:
        assert chance_calibration_error(np.eye(3)) == 0.0


class TestBootstrap:
    references = np.arange(40) % 3
    predictions = np.where(np.arange(40) % 5 == 0, 0, np.arange(40) % 3)

    def test_is_the_same_every_time(self) -> None:
        one, other = (bootstrap_interval(uar, self.references, self.predictions) for _ in range(2))

        assert one == other

    def test_surrounds_the_figure(self) -> None:
        low, high = bootstrap_interval(war, self.references, self.predictions)

        assert low < war(self.references, self.predictions) < high

    def test_of_whole_speakers_is_as_wide_as_they_differ(self) -> None:
        references = np.arange(40) % 2
        predictions = np.where(np.arange(40) < 20, references, 1 - references)  # one all, one none
        low, high = bootstrap_interval(war, references, predictions)
        assert 30 < low < 50 < high < 70
        speakers = ["heard"] * 20 + ["unheard"] * 20
        assert bootstrap_interval(war, references, predictions, speakers) == [0.0, 100.0]

    def test_has_no_width_where_nothing_varies(self) -> None:
        assert bootstrap_interval(war, self.references, self.references) == [100.0, 100.0]


class TestWriteReport:
    def test_writes_figures_text_and_plots(
        self, folds: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        report = write_report(tmp_path, PLAN, folds)

        assert json.loads((tmp_path / "report.json").read_text()) == report
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        assert text == render_report(report)
        pictures = {path.name for path in tmp_path.glob("*.png")}
        assert pictures == {
            "confusion.png",
            "reliability.png",
            "fusion_weights.png",
            "tsne.png",
        }
        assert all(f"({name})" in text for name in pictures)

    def test_speakers_that_other_folds_learn_from_are_not_drawn_anew(
        self, folds: list[dict[str, Any]]
    ) -> None:
        for record in folds:
            record["speakers"] = ["a", "a", "b", "b"]
        assert "ci95_speakers" not in build_report(PLAN, folds)["uar"]
        for record in folds:
            record["speakers"] = [None] * 4
        assert "ci95_speakers" not in build_report(PLAN, folds)["uar"]

    def test_what_a_speaker_never_says_is_told(self, folds: list[dict[str, Any]]) -> None:
        assert build_report(PLAN, folds)["labels_not_spoken"] == {}
        for record in folds:
            if record["fold"] == "speaker-b":
                record["references"] = [1, 1, 1, 2]

        report = build_report(PLAN, folds)

        assert report["labels_not_spoken"] == {"b": ["angry"]}
        assert "Speaker b has no recording of angry:" in render_report(report)


class TestACalibratedRun:
    def test_confidence_is_that_at_each_folds_temperature(
        self, folds: list[dict[str, Any]]
    ) -> None:
        plain = build_report(PLAN, folds)
        assert "temperature" not in plain and "ece_uncalibrated" not in plain
        hot = build_report(PLAN, [{**fold, "temperature": 1e6} for fold in folds])
        assert hot["temperature"] == 1e6 and hot["ece_uncalibrated"] == plain["ece"]
        # Infinitely hot, every answer is given with one third of confidence.
        accuracy = hot["war"]["per_seed"]
        gaps = [abs(value / 100 - 1 / 3) for value in accuracy]
        assert hot["ece"] == pytest.approx(np.mean(gaps), abs=1e-3)
        assert hot["uar"] == plain["uar"]
        assert "temperature" in render_report(hot) and "temperature" not in render_report(plain)


class TestTheLastEpochs:
    def test_spread_is_that_of_all_folds_pooled(self, folds: list[dict[str, Any]]) -> None:
        """One epoch is all right, the other all wrong: in both folds, or one after the other."""
        plain = build_report(PLAN, folds)
        assert "last_epochs_spread" not in plain
        together, apart = [], []
        for number, one in enumerate(folds):
            right, wrong = one["references"], [(label + 1) % 3 for label in one["references"]]
            together.append({**one, "last_epochs": [wrong, right]})
            apart.append({**one, "last_epochs": [wrong, right][:: 1 - 2 * (number % 2)]})
        assert build_report(PLAN, together)["last_epochs_spread"] == 100
        assert build_report(PLAN, apart)["last_epochs_spread"] < 20
        assert "the UAR varies by 100.00 points" in render_report(build_report(PLAN, together))
        assert "last epochs" not in render_report(plain)


class TestARunWithEnrolledVoices:
    @pytest.fixture
    def enrolled(self, folds: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """With one recording nothing changes; with all, every answer is right."""
        right = [(np.eye(3)[fold["references"]] * 3).tolist() for fold in folds]
        return [
            {**fold, "enrolled": dict.fromkeys(("1", "3", "10"), fold["logits"]) | {"all": best}}
            for fold, best in zip(folds, right, strict=True)
        ]

    def test_tells_the_gain_by_number_of_recordings(self, enrolled: list[dict[str, Any]]) -> None:
        report = build_report(PLAN, enrolled)
        # Each voice has four recordings here: with ten of them enrolled, none is left to judge.
        assert list(report["enrolled"]) == ["1", "3", "all"]
        one, all_ = report["enrolled"]["1"], report["enrolled"]["all"]
        assert one["uar"] == one["uar_without"] < 100 and one["n_files"] == 6
        assert all_["uar"] == 100 and all_["war_without"] == report["war"]["pooled"]
        assert f"| all | 8 | 100.00 | {report['uar']['pooled']:.2f} |" in render_report(report)

    def test_a_recording_that_is_enrolled_is_not_judged(
        self, enrolled: list[dict[str, Any]]
    ) -> None:
        """Known from one recording, the model gets that one right and all others wrong."""
        for fold in enrolled:
            (known,) = enrolment_order(np.array(fold["rows"]), fold["seed"])[:1]
            right = np.array(fold["rows"]) == known
            answers = (np.array(fold["references"]) + ~right) % 3
            fold["enrolled"]["1"] = np.eye(3)[answers].tolist()
        assert build_report(PLAN, enrolled)["enrolled"]["1"]["war"] == 0

    def test_a_report_of_its_own_lies_beside(
        self, enrolled: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        folder = tmp_path / "toy" / "loso" / PLAN.name
        report = write_report(folder, PLAN, enrolled)
        adapted = json.loads((folder.with_name(f"{PLAN.name}-adapted") / "report.json").read_text())
        assert adapted["recipe"] == f"{PLAN.name}-adapted" and adapted["protocol"] == "loso"
        assert adapted["uar"]["pooled"] == adapted["uar"]["fold_mean"] == 100
        assert adapted["transductive"] and not report["transductive"]
        assert adapted["baselines"]["svc"]["uar"] == 100 > report["baselines"]["svc"]["uar"]
        assert json.loads((folder / "report.json").read_text())["uar"] == report["uar"]
        assert report["uar"]["pooled"] < 100 and report["recipe"] == PLAN.name

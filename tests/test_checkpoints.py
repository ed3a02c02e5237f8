# SPDX-License-Identifier: Apache-2.0
"""The checkpoints that come with the package: whole, current, honest, and better than chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from timnet_hf.corpora import CORPORA
from timnet_hf.model_folder import verify_model_folder
from timnet_hf.prediction import CHECKPOINTS, load_model, predict_files

SHIPPED = sorted(path.name for path in CHECKPOINTS.iterdir() if path.is_dir())
PACKAGE = CHECKPOINTS.parent


def test_the_default_checkpoint_is_shipped() -> None:
    assert "timnet-emodb" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
class TestShipped:
    def test_weights_are_those_of_the_training_record(self, name: str) -> None:
        record = verify_model_folder(CHECKPOINTS / name)
        assert record["recipe"]["name"] == "default"
        assert record["overrides"] == {} and record["config"] == {}

    def test_code_is_the_packages(self, name: str) -> None:
        ours = {path.name: path.read_text() for path in PACKAGE.glob("*_timnet.py")}
        shipped = {path.name: path.read_text() for path in (CHECKPOINTS / name).glob("*.py")}
        assert shipped == ours, "run: python scripts/update_tables.py"

    def test_card_leads_with_speakers_never_heard(self, name: str) -> None:
        card = (CHECKPOINTS / name / "README.md").read_text()
        reports = {
            path.stem: json.loads(path.read_text())
            for path in (CHECKPOINTS / name / "evaluation").glob("*.json")
        }
        if "loso" in reports:
            figure = f"{reports['loso']['uar']['pooled']:.2f}"
            assert f"Expect {figure} % unweighted average recall" in card
            assert "on unseen speakers" in card
        else:  # a model of several corpora: what one of them knows of the other
            plain = {"to-emodb", "to-ravdess"}
            assert set(reports) == plain | {f"{name}-adapted" for name in plain}
            assert "Expect little of it on another corpus" in card
            assert all(f"{reports[name]['uar']['pooled']:.2f} %" in card for name in plain)

    def test_confidence_is_calibrated(self, name: str) -> None:
        config = load_model(name)[0].config
        assert config.apply_temperature and config.temperature != 1.0

    def test_holds_statistics_for_every_coefficient(self, name: str) -> None:
        model, extractor = load_model(name)
        assert extractor.mean is not None and len(extractor.mean) == model.config.input_size


def test_emodb_checkpoint_knows_the_recordings_it_was_trained_on(emodb_dir: Path) -> None:
    """No measure of quality, but weights, labels and features that do not belong together fail."""
    model, extractor = load_model("timnet-emodb")
    assert set(model.config.label2id) == set(CORPORA["emodb"].labels)
    files = sorted((emodb_dir / "wav").glob("*.wav"))[::9]
    codes = dict(
        zip("WLEAFTN", "angry boredom disgust fear happy sad neutral".split(), strict=True)
    )
    with torch.inference_mode():
        found = [one.label for one in predict_files(files, model, extractor)]
    right = sum(label == codes[path.name[5]] for label, path in zip(found, files, strict=True))
    assert right / len(files) > 0.95

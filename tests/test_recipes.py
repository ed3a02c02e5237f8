# SPDX-License-Identifier: Apache-2.0
"""Recipes: the published one as published, ours complete, both fit for records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from timnet_hf.feature_extraction_timnet import PRESETS
from timnet_hf.recipes import RECIPES, Recipe, RecipeError, get_recipe
from timnet_hf.training import build_arguments, build_extractor, build_model

EMODB = ["angry", "boredom", "disgust", "fear", "happy", "neutral", "sad"]


@pytest.mark.parametrize("name", RECIPES)
class TestEveryRecipe:
    def test_is_found_by_its_name(self, name: str) -> None:
        assert get_recipe(name) is RECIPES[name]
        assert RECIPES[name].name == name

    def test_names_only_what_the_libraries_know(self, name: str, tmp_path: Path) -> None:
        recipe = RECIPES[name]

        arguments = build_arguments(recipe, tmp_path, seed=3)
        model = build_model(recipe, EMODB)

        assert recipe.preset in PRESETS
        assert arguments.seed == 3
        for key, value in recipe.arguments.items():
            assert getattr(arguments, key) == value, key
        for key, value in recipe.config.items():
            assert getattr(model.config, key) == value, key
        assert list(model.config.id2label.values()) == EMODB

    def test_augments_at_the_recordings_own_speed_too(self, name: str) -> None:
        assert 1.0 in RECIPES[name].augmentation.speeds

    def test_can_be_written_down_whole(self, name: str) -> None:
        record = json.loads(json.dumps(RECIPES[name].to_dict()))

        assert set(record) == {field.name for field in dataclasses.fields(Recipe)}
        assert record["augmentation"]["speeds"] == list(RECIPES[name].augmentation.speeds)

    def test_cannot_be_changed_by_accident(self, name: str) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            RECIPES[name].preset = "other"  # type: ignore[misc]


class TestPaper:
    """The authors' settings; whoever changes one no longer reproduces the paper."""

    def test_network_is_the_published_one(self) -> None:
        model = build_model(RECIPES["paper"], EMODB)

        assert model.num_parameters(only_trainable=True) == 104_496

    def test_optimiser_is_adam_as_published(self, tmp_path: Path) -> None:
        arguments = build_arguments(RECIPES["paper"], tmp_path, seed=0)

        assert arguments.num_train_epochs == 500
        assert arguments.per_device_train_batch_size == 64
        assert arguments.learning_rate == 1e-3
        assert (arguments.adam_beta1, arguments.adam_beta2) == (0.93, 0.98)
        assert arguments.adam_epsilon == 1e-8
        assert arguments.weight_decay == 0.0
        assert arguments.max_grad_norm == 0.0
        assert str(arguments.lr_scheduler_type.value) == "constant"
        assert arguments.label_smoothing_factor == 0.1

    def test_leaves_features_and_recordings_as_they_are(self) -> None:
        recipe = RECIPES["paper"]

        assert not recipe.standardize
        assert not recipe.class_weights
        assert recipe.augmentation.speeds == (1.0,)
        assert recipe.augmentation.mixup == recipe.augmentation.offset_std == 0
        assert recipe.augmentation.max_seconds is None

    def test_takes_each_corpus_at_its_published_length(self) -> None:
        assert build_extractor(RECIPES["paper"], "emodb").num_samples == 96_000
        assert build_extractor(RECIPES["paper"], "ravdess").num_samples == 110_000
        assert build_extractor(RECIPES["paper"], "ravdess", "emodb").num_samples == 110_000
        assert build_extractor(RECIPES["paper"]).num_samples == 96_000
        assert build_extractor(RECIPES["default"], "emodb").num_samples is None

    def test_is_deeper_for_iemocap(self) -> None:
        deep = RECIPES["paper"].for_corpus("iemocap")

        assert build_model(deep, EMODB[:4]).config.num_hidden_layers == 10
        assert RECIPES["paper"].for_corpus("emodb") is RECIPES["paper"]
        assert RECIPES["default"].for_corpus("iemocap") is RECIPES["default"]


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="Unknown recipe 'best'.*paper, default"):
        get_recipe("best")

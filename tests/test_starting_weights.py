# SPDX-License-Identifier: Apache-2.0
"""What a training starts from, and that it has heard nothing of what it is judged on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from timnet_hf.corpus_table import CORPORA
from timnet_hf.recipes import OTHER_CORPORA, RECIPES, RecipeError
from timnet_hf.starting_weights import LEARNED, STARTS, load_start, save_start, with_start
from timnet_hf.training import build_arguments, build_model, train

from .tiny_training import tiny_recipe, tiny_store

DEFAULT = RECIPES["default"]


class TestWithStart:
    @pytest.mark.parametrize(
        ("corpora", "start"),
        [
            ((), "emodb-ravdess"),
            (("casia",), "emodb-ravdess"),
            (("emodb",), "ravdess"),
            (("ravdess",), "emodb"),
            (("emodb", "savee"), "ravdess"),
            (("emodb", "ravdess"), None),
        ],
    )
    def test_most_is_learned_but_nothing_of_these_corpora(
        self, corpora: tuple[str, ...], start: str | None
    ) -> None:
        assert with_start(DEFAULT, corpora).start == start

    @pytest.mark.parametrize("corpus", CORPORA)
    def test_no_corpus_starts_from_weights_that_heard_it(self, corpus: str) -> None:
        start = with_start(DEFAULT, [corpus]).start

        assert start is not None
        assert corpus not in LEARNED[start]

    def test_another_network_starts_from_scratch(self) -> None:
        assert with_start(DEFAULT, [], {"bidirectional": False}).start is None

    @pytest.mark.parametrize("name", ["from-scratch", "paper"])
    def test_other_recipes_stay_as_they_are(self, name: str) -> None:
        assert with_start(RECIPES[name], []) is RECIPES[name]


@pytest.mark.parametrize("start", LEARNED)
class TestEveryStart:
    def test_fits_the_default_network_whatever_the_labels(self, start: str) -> None:
        model = build_model(DEFAULT, ["yes", "no"])
        classifier = model.classifier.weight.clone()
        embed = model.timnet.embed.weight.clone()

        load_start(model, start)

        assert not torch.equal(model.timnet.embed.weight, embed)
        assert torch.equal(model.classifier.weight, classifier)
        assert all(value.isfinite().all() for value in model.state_dict().values())

    def test_says_what_it_has_learned_and_how(self, start: str) -> None:
        with safe_open(STARTS / f"{start}.safetensors", "pt") as file:
            record = json.loads(file.metadata()["training_record"])

        assert set(record["corpus"].split("-")) == LEARNED[start]
        recipe = json.loads(json.dumps(RECIPES["from-scratch"].to_dict()))
        assert {**record["recipe"], "name": "", "start": None} == {**recipe, "name": ""}
        assert record["data"]["files"] == sum(CORPORA[name].n_files for name in LEARNED[start])

    def test_is_other_weights_than_the_others(self, start: str) -> None:
        contents = {(STARTS / f"{name}.safetensors").read_bytes() for name in LEARNED}

        assert len(contents) == len(LEARNED)


class TestLoadStart:
    def test_unknown_names_are_refused_with_the_known_ones(self) -> None:
        with pytest.raises(RecipeError, match="'other corpora' is no start.*ravdess"):
            load_start(build_model(DEFAULT, ["a", "b"]), OTHER_CORPORA)

    def test_another_network_is_refused(self) -> None:
        with pytest.raises(RecipeError, match="another network.*from-scratch"):
            load_start(build_model(tiny_recipe(), ["a", "b"]), "ravdess")

    def test_a_missing_file_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("timnet_hf.starting_weights.STARTS", tmp_path)

        with pytest.raises(RecipeError, match=r"ravdess\.safetensors: is missing"):
            load_start(build_model(DEFAULT, ["a", "b"]), "ravdess")

    def test_a_training_begins_with_these_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("timnet_hf.starting_weights.STARTS", tmp_path)
        recipe, store = tiny_recipe(learning_rate=0.0, num_train_epochs=1), tiny_store()
        known = build_model(recipe, ["other", "labels"])
        save_start(known, "emodb", {"corpus": "emodb"}, tmp_path)
        recipe = replace(recipe, start="emodb")

        arguments = build_arguments(recipe, tmp_path / "run", seed=0)
        trained = train(store, range(len(store)), recipe, _extractor(), arguments)

        for name, value in known.timnet.named_parameters():
            assert torch.equal(trained.model.timnet.get_parameter(name), value), name


def _extractor():  # type: ignore[no-untyped-def]
    from timnet_hf.training import build_extractor

    return build_extractor(tiny_recipe())

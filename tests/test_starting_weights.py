# SPDX-License-Identifier: Apache-2.0
"""What a training starts from, and that it has heard nothing of what it is judged on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors import safe_open

from timnet_hf.corpus_table import CORPORA
from timnet_hf.experiment import load_data
from timnet_hf.recipes import OTHER_CORPORA, RECIPES, RecipeError
from timnet_hf.starting_weights import (
    CHECKSUMS,
    DIGITS,
    LEARNED,
    RECORDINGS,
    STARTS,
    describe_start,
    known_corpora,
    load_start,
    save_start,
    with_start,
)
from timnet_hf.training import build_arguments, build_extractor, build_model, train

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

    def test_a_start_that_was_chosen_is_checked_too(self) -> None:
        chosen = replace(DEFAULT, start="emodb-ravdess")

        assert with_start(chosen, ["casia"]) == chosen
        with pytest.raises(RecipeError, match="have learned ravdess"):
            with_start(chosen, ["ravdess"])

    @pytest.mark.parametrize("corpora", ["emodb", ["EMO-DB"], ["own"]])
    def test_corpora_go_by_their_short_names(self, corpora: Any) -> None:
        with pytest.raises(RecipeError, match="is no corpus: name some of casia, emodb"):
            with_start(DEFAULT, corpora)

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
        assert {"start": None, **record["recipe"], "name": ""} == {**recipe, "name": ""}
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

    def test_weights_that_were_changed_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        content = (STARTS / "ravdess.safetensors").read_bytes()
        (tmp_path / "ravdess.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        monkeypatch.setattr("timnet_hf.starting_weights.STARTS", tmp_path)

        with pytest.raises(RecipeError, match=r"ravdess\.safetensors: is not the file that came"):
            load_start(build_model(DEFAULT, ["a", "b"]), "ravdess")

    def test_a_training_begins_with_these_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("timnet_hf.starting_weights.STARTS", tmp_path)
        recipe, store = tiny_recipe(learning_rate=0.0, num_train_epochs=1), tiny_store()
        known = build_model(recipe, ["other", "labels"])
        path = save_start(known, "emodb", {"corpus": "emodb"}, tmp_path)
        monkeypatch.setitem(CHECKSUMS, "emodb", hashlib.sha256(path.read_bytes()).hexdigest())
        recipe = replace(recipe, start="emodb")

        arguments = build_arguments(recipe, tmp_path / "run", seed=0)
        trained = train(store, range(len(store)), recipe, build_extractor(recipe), arguments)

        for name, value in known.timnet.named_parameters():
            assert torch.equal(trained.model.timnet.get_parameter(name), value), name


@pytest.mark.parametrize(
    "record",
    [
        {"corpus": "emodb", "recipe": {"start": "ravdess"}},
        {"corpus": "emodb-ravdess", "recipe": {"start": None}},
        {"corpus": "emodb", "overrides": {"num_train_epochs": 1}},
    ],
)
def test_only_what_was_trained_from_scratch_on_just_its_corpora_is_a_start(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="emodb: was "):
        save_start(build_model(tiny_recipe(), ["a", "b"]), "emodb", record, tmp_path)
    assert not list(tmp_path.iterdir())


class TestKnownCorpora:
    def test_one_recording_is_enough(self) -> None:
        heard = json.loads(RECORDINGS.read_text())

        assert known_corpora(["0" * 64]) == ()
        assert known_corpora(["0" * 64, heard["ravdess"][3] + "f" * 48]) == ("ravdess",)
        assert known_corpora(heard["emodb"] + heard["ravdess"]) == ("emodb", "ravdess")

    def test_all_recordings_of_every_start_are_listed(self) -> None:
        heard = json.loads(RECORDINGS.read_text())

        assert set(heard) == set().union(*LEARNED.values())
        for corpus, digests in heard.items():
            assert len(digests) == CORPORA[corpus].n_files
            assert {len(digest) for digest in digests} == {DIGITS}

    def test_a_folder_of_ones_own_that_holds_some_is_told(
        self, tmp_path: Path, emodb_dir: Path
    ) -> None:
        for number, path in enumerate(sorted(emodb_dir.rglob("*.wav"))[:4]):
            copy = tmp_path / ["sad", "angry"][number % 2] / f"{number}.flac"
            copy.parent.mkdir(exist_ok=True)
            samples, rate = soundfile.read(path, dtype="int16")
            soundfile.write(copy, samples, rate)

        data = load_data(tmp_path)

        assert data.corpus is None
        assert data.corpora == ("emodb",)


class TestDescribeStart:
    def test_names_the_terms(self) -> None:
        text = describe_start(with_start(DEFAULT, ["emodb"]))

        assert "RAVDESS: CC BY-NC-SA 4.0" in text
        assert describe_start(RECIPES["paper"]) == "It starts from scratch."

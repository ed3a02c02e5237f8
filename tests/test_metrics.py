# SPDX-License-Identifier: Apache-2.0
"""UAR and WAR: `evaluate` modules that load from disk and say what scikit-learn says."""

from __future__ import annotations

import doctest
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import gradio as gr
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score

import timnet_hf.metrics
from timnet_hf.metrics import METRICS, load_metric, metric_path, space_files


@pytest.fixture(scope="module")
def uar() -> evaluate.Metric:
    return load_metric("uar")


@pytest.fixture(scope="module")
def war() -> evaluate.Metric:
    return load_metric("war")


class TestAgainstScikitLearn:
    """For any labels the answers are scikit-learn's, also where folds lack classes."""

    labels = st.integers(0, 6)
    weights = st.floats(0.01, 100)

    @given(items=st.lists(st.tuples(labels, labels), min_size=1, max_size=40))
    def test_equal_weights(
        self, uar: evaluate.Metric, war: evaluate.Metric, items: list[tuple[int, int]]
    ) -> None:
        predictions, references = map(list, zip(*items, strict=True))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn remarks on classes that are absent
            expected = balanced_accuracy_score(references, predictions)
        result = uar.compute(predictions=predictions, references=references)
        assert result == {"uar": pytest.approx(expected, abs=1e-12)}

        result = war.compute(predictions=predictions, references=references)
        assert result == {"war": pytest.approx(accuracy_score(references, predictions), abs=1e-12)}

    @given(items=st.lists(st.tuples(labels, labels, weights), min_size=1, max_size=40))
    def test_sample_weight(
        self, uar: evaluate.Metric, war: evaluate.Metric, items: list[tuple[int, int, float]]
    ) -> None:
        predictions, references, weight = map(list, zip(*items, strict=True))
        arguments = {"predictions": predictions, "references": references, "sample_weight": weight}

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = balanced_accuracy_score(references, predictions, sample_weight=weight)
        assert uar.compute(**arguments)["uar"] == pytest.approx(expected, abs=1e-9)

        expected = accuracy_score(references, predictions, sample_weight=weight)
        assert war.compute(**arguments)["war"] == pytest.approx(expected, abs=1e-9)


class TestMeaning:
    """What the two figures say, in small numbers."""

    def test_every_class_counts_the_same_in_uar_and_by_its_size_in_war(
        self, uar: evaluate.Metric, war: evaluate.Metric
    ) -> None:
        always_zero = {"predictions": [0] * 10, "references": [0] * 9 + [1]}

        assert uar.compute(**always_zero) == {"uar": 0.5}
        assert war.compute(**always_zero) == {"war": 0.9}

    def test_a_class_absent_from_the_references_is_left_out_without_a_warning(
        self, uar: evaluate.Metric
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert uar.compute(predictions=[0, 2], references=[0, 1]) == {"uar": 0.5}

    def test_a_class_without_weight_is_left_out(self, uar: evaluate.Metric) -> None:
        result = uar.compute(
            predictions=[0, 0, 1], references=[0, 1, 1], sample_weight=[1.0, 0.0, 0.0]
        )
        assert result == {"uar": 1.0}

    def test_arrays_of_numpy_score_as_lists_do(self, war: evaluate.Metric) -> None:
        logits = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])

        result = war.compute(predictions=logits.argmax(axis=-1), references=np.array([0, 1, 1]))

        assert result == {"war": pytest.approx(2 / 3)}

    @pytest.mark.parametrize("name", METRICS)
    def test_results_are_plain_floats_that_json_can_hold(self, name: str) -> None:
        assert type(load_metric(name).compute(predictions=[0], references=[0])[name]) is float


class TestBadInput:
    @pytest.mark.parametrize("name", METRICS)
    def test_no_items(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name}: there are no items to score"):
            load_metric(name).compute(predictions=[], references=[])

    @pytest.mark.parametrize("name", METRICS)
    def test_lengths_that_differ(self, name: str) -> None:
        with pytest.raises(ValueError, match="Mismatch"):
            load_metric(name).compute(predictions=[0, 1], references=[0])

    @pytest.mark.parametrize("name", METRICS)
    def test_logits_where_class_indices_belong(self, name: str) -> None:
        with pytest.raises(ValueError, match="Predictions and/or references don't match"):
            load_metric(name).compute(predictions=[[0.2, 0.8]], references=[1])

    @pytest.mark.parametrize("name", METRICS)
    def test_weights_that_are_all_zero(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name}: every sample_weight is zero"):
            load_metric(name).compute(predictions=[0], references=[0], sample_weight=[0.0])

    def test_a_metric_that_does_not_exist(self) -> None:
        for function in (metric_path, load_metric, space_files):
            with pytest.raises(ValueError, match="'f1' is not a metric; choose one of uar, war"):
                function("f1")


class TestAsEvaluateModule:
    """The ways `evaluate` is used, all without a network."""

    @pytest.mark.parametrize("name", METRICS)
    def test_loads_from_its_folder_and_from_its_file(self, name: str) -> None:
        folder = metric_path(name)

        for path in (folder, folder / f"{name}.py"):
            metric = evaluate.load(str(path))
            assert metric.compute(predictions=[1, 0], references=[1, 1]) == {name: 0.5}

    @pytest.mark.parametrize("name", METRICS)
    def test_describes_itself(self, name: str) -> None:
        metric = load_metric(name)

        assert metric.name == name
        assert "recall" in metric.description
        assert "INTERSPEECH" in metric.citation
        assert list(metric.features) == ["predictions", "references"]

    @pytest.mark.parametrize("name", METRICS)
    def test_the_examples_in_its_description_run(self, name: str) -> None:
        text = load_metric(name).inputs_description
        examples = doctest.DocTestParser().get_doctest(text, {}, name, None, None)

        assert len(examples.examples) >= 4
        assert doctest.DocTestRunner().run(examples).failed == 0

    def test_batches_add_up(self, uar: evaluate.Metric) -> None:
        predictions, references = [0, 0, 1, 1, 2], [0, 0, 0, 1, 2]

        for start in range(0, 5, 2):
            part = slice(start, start + 2)
            uar.add_batch(predictions=predictions[part], references=references[part])

        assert uar.compute() == {"uar": pytest.approx((2 / 3 + 1 + 1) / 3)}

    def test_two_processes_gather_one_score(self, tmp_path: Path) -> None:
        """Each rank adds its shard; the first computes over all, the other answers None."""
        shards = [([0, 0], [0, 0]), ([1, 1, 2], [0, 1, 2])]

        def run(rank: int) -> dict[str, float] | None:
            metric = load_metric(
                "uar",
                num_process=2,
                process_id=rank,
                experiment_id="ranks",
                cache_dir=str(tmp_path),
            )
            predictions, references = shards[rank]
            metric.add_batch(predictions=predictions, references=references)
            return metric.compute()

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(run, range(2))

        assert first == {"uar": pytest.approx((2 / 3 + 1 + 1) / 3)}
        assert second is None

    def test_both_combine_into_one(self) -> None:
        both = evaluate.combine([load_metric(name) for name in METRICS])

        result = both.compute(predictions=[0] * 4, references=[0, 0, 0, 1])

        assert result == {"uar": 0.5, "war": 0.75}


@pytest.fixture(scope="module", params=METRICS)
def space(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A metric's Space as it would be published."""
    folder = tmp_path_factory.mktemp(request.param)
    for name, source in space_files(request.param).items():
        shutil.copy(source, folder / name)
    return folder


class TestAsSpace:
    """The folder that is published: card, script and a page that runs under Gradio 6."""

    def test_front_matter_is_what_a_space_needs(self, space: Path) -> None:
        front = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---")[1])

        assert front["sdk"] == "gradio" and front["sdk_version"].startswith("6.")
        assert (space / front["app_file"]).is_file()
        assert {"evaluate", "metric"} <= set(front["tags"])
        assert front["license"] == "apache-2.0"
        assert len(front["short_description"]) <= 60  # the Hub refuses longer ones

    def test_the_folder_loads_like_the_packaged_metric(self, space: Path) -> None:
        (script,) = (path for path in space.glob("*ar.py"))

        metric = evaluate.load(str(script))

        assert metric.compute(predictions=[0], references=[0]) == {script.stem: 1.0}

    def test_the_page_computes_and_refuses_what_is_no_class(self, space: Path) -> None:
        from timnet_hf.metrics.app import build_app

        (script,) = (path for path in space.glob("*ar.py"))
        page = build_app(script)
        (compute,) = (block.fn for block in page.fns.values() if block.api_name == "compute")

        def table(*rows: list[object]) -> pd.DataFrame:
            return pd.DataFrame(rows, columns=["predictions", "references"])

        expected = {"uar": 0.75, "war": 2 / 3}[script.stem]
        assert compute(table(["0", "0"], [1, 0], [1, 1], ["", ""])) == pytest.approx(expected)
        with pytest.raises(gr.Error, match="at least one row"):
            compute(table(["", ""]))
        for wrong in ("happy", 0.5, float("inf")):
            with pytest.raises(gr.Error, match="whole numbers"):
                compute(table([wrong, 0]))


def test_docstring_examples_run() -> None:
    assert doctest.testmod(timnet_hf.metrics).failed == 0
    assert doctest.testmod(timnet_hf.metrics).attempted >= 3

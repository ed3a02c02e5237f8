# SPDX-License-Identifier: Apache-2.0
"""What a TIM-Net configuration promises: the published defaults, round trips, clear refusals."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from timnet_hf.configuration_timnet import ABLATIONS, TimNetConfig


def test_the_defaults_are_the_published_network():
    config = TimNetConfig()
    assert (config.input_size, config.hidden_size, config.num_hidden_layers) == (39, 39, 8)
    assert (config.kernel_size, config.hidden_dropout_prob) == (2, 0.1)
    assert (config.batch_norm_eps, config.batch_norm_momentum) == (1e-3, 0.01)
    assert config.bidirectional and config.multi_scale and config.dynamic_fusion
    assert (config.num_streams, config.num_scales, config.pooled_size) == (2, 8, 39)


@pytest.mark.parametrize(
    ("settings", "streams", "scales", "size"),
    [
        ({"bidirectional": False}, 1, 8, 39),
        ({"multi_scale": False}, 2, 1, 39),
        ({"pool_input": True}, 2, 9, 39),
        ({"multi_scale": False, "pool_input": True}, 2, 2, 39),
        ({"pooling": "statistics"}, 2, 8, 234),
        ({"pooling": "statistics", "bidirectional": False}, 1, 8, 117),
        ({"hidden_size": 64, "num_hidden_layers": 10}, 2, 10, 64),
    ],
)
def test_sizes_follow_from_the_switches(settings, streams, scales, size):
    config = TimNetConfig(**settings)
    assert (config.num_streams, config.num_scales, config.pooled_size) == (streams, scales, size)


def test_the_papers_four_ablations_are_switches():
    assert set(ABLATIONS) == {
        "no-backward",
        "no-multi-scale",
        "no-dynamic-fusion",
        "plain-tcn",
    }
    for switches in ABLATIONS.values():
        config = TimNetConfig(**switches)
        assert all(getattr(config, name) is value is False for name, value in switches.items())


UNUSUAL = {
    "input_size": 20,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "kernel_size": 3,
    "hidden_dropout_prob": 0.25,
    "classifier_dropout": 0.5,
    "bidirectional": False,
    "multi_scale": False,
    "dynamic_fusion": False,
    "pooling": "statistics",
    "pool_input": True,
    "fusion_init": "mean",
    "batch_norm_eps": 1e-5,
    "batch_norm_momentum": 0.1,
    "temperature": 1.7,
    "apply_temperature": True,
    "num_members": 3,
    "num_centered_members": 2,
    "normalize_scales": True,
}


def test_every_setting_is_among_those_tried_here():
    settings = {name for name in TimNetConfig.__annotations__ if name in vars(TimNetConfig)}
    assert set(UNUSUAL) == settings - {"attribute_map", "model_type"}


def test_every_setting_survives_json(tmp_path: Path):
    labels = {0: "anger", 1: "joy", 2: "neutral"}
    config = TimNetConfig(**UNUSUAL, id2label=labels, label2id={v: k for k, v in labels.items()})
    config.save_pretrained(tmp_path)
    loaded = TimNetConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in UNUSUAL} == UNUSUAL
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.id2label, loaded.num_labels) == (labels, 3)

    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "timnet"
    assert TimNetConfig.from_dict(stored).to_dict() == config.to_dict()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_is_equal_and_independent(duplicate):
    config = TimNetConfig(**UNUSUAL)
    twin = duplicate(config)
    assert twin.to_dict() == config.to_dict()
    twin.hidden_size = 7
    assert config.hidden_size == 12


def test_another_head_does_not_take_over_the_temperature(tmp_path: Path):
    TimNetConfig(id2label={0: "calm", 1: "tense"}, **UNUSUAL).save_pretrained(tmp_path)
    load = TimNetConfig.from_pretrained
    same = load(tmp_path, num_labels=2, id2label={"0": "calm", "1": "tense"})
    assert (same.temperature, same.apply_temperature) == (1.7, True)
    for others in (
        {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}},
        {"id2label": {0: "happy", 1: "sad"}},
        {"num_labels": 3},
    ):
        config = load(tmp_path, **others)
        assert (config.temperature, config.apply_temperature) == (1.0, False)
        names = others.get("id2label", {at: f"LABEL_{at}" for at in range(3)})
        assert config.id2label == names
        assert config.label2id == {name: at for at, name in names.items()}
        assert config.kernel_size == UNUSUAL["kernel_size"]
    assert load(tmp_path, id2label={0: "a", 1: "b"}, temperature=2.0).temperature == 2.0


def test_unknown_settings_are_kept_as_the_library_keeps_them():
    assert TimNetConfig.from_dict(TimNetConfig(note="mine").to_dict()).note == "mine"


def test_labels_give_the_number_of_classes_and_no_class_is_refused():
    assert TimNetConfig(num_labels=7).id2label[6] == "LABEL_6"
    assert TimNetConfig(id2label={"0": "a", "1": "b", "2": "c"}).num_labels == 3
    with pytest.raises(ValueError, match="gives 'a' to several outputs; rename them"):
        TimNetConfig(id2label={0: "a", 1: "b", 2: "a"})
    for settings in ({"num_labels": 0}, {"num_labels": -1}, {"id2label": {}}):
        with pytest.raises(ValueError, match="at least one label"):
            TimNetConfig(**settings)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("input_size", [0, -1, 8193, 39.0, True, "39", None]),
        ("hidden_size", [0, -1, 10**9, 39.5, False, "39", None]),
        ("num_hidden_layers", [0, -8, 33, 8.0, True, None]),
        ("kernel_size", [0, -2, 2.0, True, "2"]),
        ("hidden_dropout_prob", [-0.1, 1, 1.5, math.nan, None, True, "0.1"]),
        ("classifier_dropout", [-1, 1.0, math.inf, math.nan]),
        ("bidirectional", [None, 1, 0, "true"]),
        ("multi_scale", [None, 2]),
        ("dynamic_fusion", [None, "no"]),
        ("pool_input", [None, 0.0]),
        ("apply_temperature", [None, 1]),
        ("pooling", ["max", "", None, 3]),
        ("fusion_init", ["zeros", None]),
        ("batch_norm_eps", [0, -1e-3, 2, math.nan, None]),
        ("batch_norm_momentum", [-0.1, 1.1, math.nan, None]),
        ("temperature", [0, -1.0, math.inf, math.nan, None, "1"]),
    ],
)
def test_a_value_of_the_wrong_kind_or_range_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be .* not "):
            TimNetConfig(**{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labels": 3_000_000}, "num_labels must be an integer up to 10000"),
        ({"num_labels": 2.5}, "num_labels must be an integer"),
        ({"id2label": {"0": "a", "2": "b"}}, "name the outputs from 0 to 1"),
        ({"id2label": {"-1": "a", "0": "b"}}, "name the outputs from 0 to 1"),
    ],
)
def test_labels_that_no_network_can_have_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TimNetConfig(**settings)


@pytest.mark.parametrize(
    "settings", [{"num_hidden_layers": 22}, {"kernel_size": 2**14}, {"kernel_size": 2**62}]
)
def test_a_layer_that_would_look_back_for_days_is_refused(settings):
    with pytest.raises(ValueError, match="looks back more than 1048576 frames"):
        TimNetConfig(**settings)


def test_the_ends_of_the_ranges_are_allowed():
    TimNetConfig(num_hidden_layers=21)
    TimNetConfig(input_size=1, hidden_size=1, num_hidden_layers=1, kernel_size=1, num_labels=1)
    TimNetConfig(hidden_dropout_prob=0, batch_norm_momentum=1, batch_norm_eps=1, temperature=1)
    TimNetConfig(temperature=np.float64(1.25))

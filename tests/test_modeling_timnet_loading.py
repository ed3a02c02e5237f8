# SPDX-License-Identifier: Apache-2.0
"""How the library makes, fills, switches and moves a model: its exam of loading, asked of ours.

The rest of that exam stands in `test_modeling_timnet_library`; `README.md` beside this file maps
each of the library's own checks to ours.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import pipeline
from transformers.modeling_layers import GradientCheckpointingLayer

from timnet_hf import TimNetConfig, TimNetFeatureExtractor
from timnet_hf.modeling_timnet import TimNetForAudioClassification
from timnet_hf.pipeline_timnet import TASK

from .test_modeling_timnet_library import (  # noqa: F401  (batch is a fixture)
    CLASSES,
    LABELS,
    batch,
    check_initial,
    first,
    make_config,
    make_model,
)

#: The published network, and every kind of module that a setting adds to it.
SETTINGS = [{}, {"pooling": "statistics", "pool_input": True, "normalize_scales": True}]


def same(one: nn.Module, other: nn.Module) -> bool:
    first_state, other_state = one.state_dict(), other.state_dict()
    return first_state.keys() == other_state.keys() and all(
        torch.equal(first_state[name], other_state[name]) for name in first_state
    )


# --- initial weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_checkpoint_that_lacks_everything_gives_a_new_model(cls, settings):
    filled = cls.from_pretrained(
        None, config=make_config(hidden_size=24, **settings), state_dict={}
    )
    assert {tensor.device.type for tensor in filled.state_dict().values()} == {"cpu"}
    check_initial(filled)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_buffers_can_be_filled_after_the_meta_device(cls, settings):
    made = cls(make_config(**settings))
    with torch.device("meta"):
        empty = cls(make_config(**settings))
    empty.to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.fill_(77)  # what happens to lie in the memory
    empty.init_weights()
    wanted = dict(made.named_buffers())
    assert wanted and wanted.keys() == dict(empty.named_buffers()).keys()
    assert all(torch.equal(wanted[name], buffer) for name, buffer in empty.named_buffers())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_no_tensor_hides_outside_parameters_and_buffers(cls, settings, batch):  # noqa: F811
    with torch.device("meta"):
        model = cls(make_config(**settings)).eval()
    model.to_empty(device="cpu")
    model.init_weights()
    with torch.no_grad():
        assert torch.isfinite(first(model(**batch))).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_state_dict_will_do_for_a_checkpoint(cls):
    model = make_model(cls)
    loaded = cls.from_pretrained(None, config=make_config(), state_dict=model.state_dict())
    assert same(model, loaded)


def test_no_weights_are_tied_or_left_out(tmp_path: Path):
    model = make_model()
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(set(pointers)) == len(pointers)
    assert not model.all_tied_weights_keys
    assert not model._keys_to_ignore_on_save and not model._keys_to_ignore_on_load_missing
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_loaded_weights_are_contiguous(cls, tmp_path: Path):
    make_model(cls).save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())


def test_shards_are_put_together_again(tmp_path: Path):
    model = make_model(hidden_size=16)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same(model, TimNetForAudioClassification.from_pretrained(tmp_path))


def test_torchs_own_state_file_loads_without_running_what_is_in_it(tmp_path: Path):
    model = make_model()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    twin = make_model(seed=1)
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert same(model, twin)


@pytest.mark.parametrize("part", ["timnet.embed.weight", "timnet.fusion.weight"])
def test_weights_of_another_shape_are_refused_or_made_anew(part, tmp_path: Path):
    model = make_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[part] = torch.zeros([size + 1 for size in weights[part].shape])
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="mismatch"):
        TimNetForAudioClassification.from_pretrained(tmp_path)
    loaded, report = TimNetForAudioClassification.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in report["mismatched_keys"]} == {part}
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert theirs[part].shape == ours[part].shape and theirs[part].any()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != part)


def test_unknown_weights_are_reported(tmp_path: Path):
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    _, report = TimNetForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {"extra"} and not report["missing_keys"]


# --- devices and types --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_loading_places_every_tensor_on_the_device_in_force(cls, tmp_path: Path):
    model = make_model(cls)
    model.save_pretrained(tmp_path)
    with torch.device("cpu"):
        loaded = cls.from_pretrained(tmp_path)
    mapped = cls.from_pretrained(tmp_path, device_map="cpu")
    assert same(model, loaded) and same(model, mapped)
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device"):
        cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_type_is_named_or_given_or_taken_from_the_checkpoint(dtype, tmp_path: Path):
    load = TimNetForAudioClassification.from_pretrained
    make_model().to(getattr(torch, dtype)).save_pretrained(tmp_path)
    named, given = load(tmp_path, dtype=dtype), load(tmp_path, dtype=getattr(torch, dtype))
    assert same(named, given) and same(named, load(tmp_path, dtype="auto"))
    types = {p.dtype for p in named.parameters()} | {
        b.dtype for b in named.buffers() if b.is_floating_point()
    }
    assert types == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moving_to_another_type_and_back_keeps_what_the_type_can_hold(dtype):
    model = make_model()
    moved = copy.deepcopy(model).to(dtype).to(torch.float32)
    for name, tensor in moved.state_dict().items():
        wanted = model.state_dict()[name]
        if tensor.is_floating_point():
            wanted = wanted.to(dtype).float()
        assert torch.equal(tensor, wanted), name


def test_counts_stay_integers_in_short_types():
    model = make_model().half()
    counts = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and all(count.dtype == torch.int64 for count in counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipelines_run_in_short_types(dtype, speech):
    torch.manual_seed(0)
    model = TimNetForAudioClassification(TimNetConfig(hidden_size=8, num_labels=3)).eval()
    nn.init.uniform_(model.classifier.weight, -30, 30)  # so that the labels differ
    extractor = TimNetFeatureExtractor(mean=[-5.0] * 39, std=[30.0] * 39)
    wanted = pipeline("audio-classification", model=model, feature_extractor=extractor)(speech)
    assert wanted[0]["score"] - wanted[-1]["score"] > 0.1
    short = copy.deepcopy(model).to(dtype)
    stock = pipeline("audio-classification", model=short, feature_extractor=extractor, dtype=dtype)
    for one in wanted:
        (got,) = [other for other in stock(speech) if other["label"] == one["label"]]
        assert abs(got["score"] - one["score"]) < 0.02
    (event,) = pipeline(TASK, model=short, feature_extractor=extractor)(speech)
    assert abs(sum(event["scores"].values()) - 1) < 0.01


# --- switches of training -----------------------------------------------------------------------


def switch(model: nn.Module, on: bool) -> None:
    """Under its name in this version of transformers, or in those before."""
    name = f"checkpointing_{'enable' if on else 'disable'}"
    kind = "activation" if hasattr(model, f"activation_{name}") else "gradient"
    getattr(model, f"{kind}_{name}")()


def is_on(model: nn.Module) -> bool:
    if hasattr(model, "is_activation_checkpointing"):
        return model.is_activation_checkpointing
    return model.is_gradient_checkpointing


@pytest.mark.parametrize("cls", CLASSES)
def test_activation_checkpointing_is_off_then_on_then_off_everywhere(cls):
    model = make_model(cls)
    switches = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    assert any(isinstance(module, GradientCheckpointingLayer) for module in switches)
    assert not is_on(model)
    switch(model, True)
    assert is_on(model)
    assert all(module.gradient_checkpointing for module in switches)
    switch(model, False)
    assert not is_on(model)
    assert not any(module.gradient_checkpointing for module in switches)


@pytest.mark.parametrize("cls", CLASSES)
def test_adapters_switch_activation_checkpointing_too(cls):
    model = make_model(cls)
    model._hf_peft_config_loaded = True  # what loading an adapter leaves; it asks for more
    switch(model, True)
    assert is_on(model)
    switch(model, False)
    assert not is_on(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_reaches_the_first_layer_from_an_input_that_asks_for_it(
    checkpointing,
    batch,  # noqa: F811
):
    model = make_model().train()
    if checkpointing:
        switch(model, True)
    model.enable_input_require_grads()
    model(**batch, labels=LABELS).loss.backward()
    gradient = model.timnet.embed.weight.grad
    assert gradient is not None and torch.isfinite(gradient).all() and gradient.any()
    model.disable_input_require_grads()


@pytest.mark.parametrize("cls", CLASSES)
def test_the_input_layer_can_be_replaced(cls):
    model = make_model(cls)
    other = copy.deepcopy(model.get_input_embeddings())
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other


# --- calling with as little as possible ---------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_of_the_configuration_are_those_of_the_call(cls, batch):  # noqa: F811
    model = make_model(cls)
    with torch.no_grad():
        spoken = model(**batch, output_hidden_states=False, return_dict=True)
        unspoken = model(**batch)
    assert spoken.keys() == unspoken.keys()
    assert torch.equal(first(spoken), first(unspoken))


@pytest.mark.parametrize("cls", CLASSES)
def test_return_dict_may_stand_in_the_configuration(cls, batch):  # noqa: F811
    model = make_model(cls, return_dict=False)
    with torch.no_grad():
        assert isinstance(model(**batch), tuple)


def test_a_model_of_the_tests_is_small():
    assert make_model().num_parameters() < 10_000

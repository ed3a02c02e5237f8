# SPDX-License-Identifier: Apache-2.0
"""The transformers library's own exam: what it asks of each of its models, asked of ours.

What the network computes stands in `test_modeling_timnet`.
"""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from timnet_hf.configuration_timnet import ABLATIONS, TimNetConfig
from timnet_hf.modeling_timnet import (
    TimNetForAudioClassification,
    TimNetModel,
    TimNetModelOutput,
)

CLASSES = [TimNetModel, TimNetForAudioClassification]
LABELS = torch.tensor([0, 2, 1])


def make_config(**settings) -> TimNetConfig:
    small = {"input_size": 5, "hidden_size": 6, "num_hidden_layers": 4, "num_labels": 3}
    return TimNetConfig(**{**small, **settings})


def make_model(cls: type = TimNetForAudioClassification, seed: int = 0, **settings):
    torch.manual_seed(seed)
    return cls(make_config(**settings)).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three clips of 20, 20 and 12 valid frames."""
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[2, 12:] = 0
    values = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(1))
    return {"input_values": values, "attention_mask": mask}


def first(output) -> torch.Tensor:
    """The answer: logits, or the fused vector of the model without a head."""
    return output.pooler_output if isinstance(output, TimNetModelOutput) else output.logits


# --- calling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_the_main_input_comes_first_and_the_mask_second(cls):
    assert list(inspect.signature(cls.forward).parameters)[1:3] == [
        "input_values",
        "attention_mask",
    ]
    assert (cls.main_input_name, cls.base_model_prefix) == ("input_values", "timnet")
    assert cls.config_class is TimNetConfig and "audio" in cls.input_modalities


@pytest.mark.parametrize("cls", CLASSES)
def test_an_answer_is_determined_by_weights_and_input(cls, batch):
    model, twin = make_model(cls), make_model(cls)
    with torch.no_grad():
        answers = [first(m(**batch)) for m in (model, model, twin, copy.deepcopy(model))]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("hidden", [False, True])
def test_the_tuple_holds_what_the_fields_hold(cls, hidden, batch):
    model = make_model(cls)
    with torch.no_grad():
        fields = model(**batch, output_hidden_states=hidden)
        values = model(**batch, output_hidden_states=hidden, return_dict=False)
    assert isinstance(values, tuple) and len(values) == len(fields)
    for one, other in zip(values, fields.to_tuple(), strict=True):
        pairs = [(one, other)] if torch.is_tensor(one) else zip(one, other, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("streams", [1, 2])
def test_hidden_states_are_the_input_and_each_block(cls, streams, batch):
    model = make_model(cls, bidirectional=streams == 2)
    assert model(**batch).hidden_states is None
    asked = model(**batch, output_hidden_states=True)
    assert [tuple(state.shape) for state in asked.hidden_states] == [(3, 20, 6 * streams)] * 5
    model.config.output_hidden_states = True
    for one, other in zip(model(**batch).hidden_states, asked.hidden_states, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("masked", [False, True])
def test_asking_for_hidden_states_changes_no_answer(masked, batch):
    if not masked:
        del batch["attention_mask"]
    model = make_model(TimNetModel)
    with torch.no_grad():
        plain, asked = model(**batch), model(**batch, output_hidden_states=True)
    assert torch.equal(plain.pooler_output, asked.pooler_output)
    assert torch.equal(plain.last_hidden_state, asked.last_hidden_state)
    assert torch.equal(asked.hidden_states[-1], asked.last_hidden_state)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("masked", [False, True])
def test_every_hidden_state_can_retain_its_gradient(cls, masked, batch):
    if not masked:
        del batch["attention_mask"]
    output = make_model(cls)(**batch, output_hidden_states=True)
    for state in output.hidden_states:
        state.retain_grad()
    first(output).sum().backward()
    assert all(state.grad is not None and state.grad.any() for state in output.hidden_states)


def test_the_input_embedding_is_the_1x1_convolution():
    for cls in CLASSES:
        embed = make_model(cls).get_input_embeddings()
        assert isinstance(embed, nn.Conv1d) and embed.kernel_size == (1,)


# --- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels", "loss"),
    [
        ("single_label_classification", 3, LABELS, nn.functional.cross_entropy),
        ("multi_label_classification", 3, torch.eye(3), nn.BCEWithLogitsLoss()),
        ("regression", 1, torch.tensor([0.5, -1.0, 2.0]), nn.MSELoss()),
        ("regression", 2, torch.ones(3, 2), nn.MSELoss()),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_the_loss_fits_the_problem_type(problem, num_labels, labels, loss, named, batch):
    settings = {"problem_type": problem} if named or num_labels == 2 else {}
    model = make_model(num_labels=num_labels, **settings)
    output = model(**batch, labels=labels)
    wanted = loss(output.logits.squeeze(-1) if num_labels == 1 else output.logits, labels)
    assert torch.allclose(output.loss, wanted)
    assert model.config.problem_type == problem


def test_the_trainers_arguments_reach_the_loss(batch):
    model = make_model()
    mean = model(**batch, labels=LABELS).loss
    share = model(**batch, labels=LABELS, num_items_in_batch=6).loss
    assert torch.allclose(share, mean * 3 / 6)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_batch_in_parts_has_the_loss_of_the_whole_whatever_the_problem(problem, batch):
    model = make_model(problem_type=problem)
    labels = torch.rand(3, model.num_labels).round()
    whole = model(**batch, labels=labels).loss
    parts = [
        model(
            **{name: value[rows] for name, value in batch.items()},
            labels=labels[rows],
            num_items_in_batch=labels.numel(),
        ).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert torch.allclose(sum(parts), whole)


@pytest.mark.parametrize("switches", [{}, *ABLATIONS.values(), {"pooling": "statistics"}])
def test_every_parameter_learns(switches, batch):
    model = make_model(**switches).train()
    model(**batch, labels=LABELS).loss.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias in front of batch norm is taken out again by it, up to rounding.
    assert [name for name in still if not name.endswith("conv.bias")] == []


def test_a_few_steps_fit_a_few_clips(batch):
    model = make_model(hidden_dropout_prob=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch, labels=LABELS).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_activation_checkpointing_trains_the_same_network(reentrant, masked, batch):
    """Same gradients, and no clip counts twice in the running statistics of batch norm."""
    if not masked:
        del batch["attention_mask"]
    plain = make_model(hidden_dropout_prob=0.3).train()
    saving = copy.deepcopy(plain)
    saving._set_gradient_checkpointing(
        True,
        lambda *args: torch.utils.checkpoint.checkpoint(*args, use_reentrant=reentrant),
    )
    for _ in range(2):
        for model in (plain, saving):
            torch.manual_seed(3)
            model(**batch, labels=LABELS).loss.backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6), name
    for (name, one), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other), name
    assert saving.timnet.blocks[0].layer1.norm.num_batches_tracked == 2


def test_activation_checkpointing_is_switched_as_the_trainer_does_it():
    model = make_model()
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    assert all(block.gradient_checkpointing for block in model.timnet.blocks)


# --- initial weights ----------------------------------------------------------------------------


def check_initial(model: nn.Module, only: str = "") -> None:
    """Glorot-uniform kernels of each group, zero biases, neutral batch norm, w in ±0.05."""
    for name, tensor in model.state_dict().items():
        if only not in name:
            continue
        if name.endswith(("bias", "running_mean", "num_batches_tracked")):
            assert not tensor.any(), name
        elif name.endswith(("norm.weight", "running_var")):
            assert (tensor == 1).all(), name
        elif name.endswith("fusion.weight"):
            assert tensor.any() and tensor.abs().max() <= 0.05, name
        else:
            outputs, inputs, taps = (*tensor.shape, 1)[:3]
            groups = model.config.num_streams if tensor.ndim == 3 else 1
            bound = math.sqrt(6 / ((inputs + outputs / groups) * taps))
            assert 0.8 * bound < tensor.abs().max() <= bound, name


@pytest.mark.parametrize("settings", [{}, {"bidirectional": False}, {"kernel_size": 3}])
def test_a_new_model_starts_as_the_published_one(settings):
    check_initial(make_model(hidden_size=24, **settings))


def test_fusion_can_start_at_the_mean():
    fusion = make_model(fusion_init="mean", pool_input=True).timnet.fusion
    assert torch.equal(fusion.weight, torch.full((5,), 0.2))


@pytest.mark.parametrize(
    "missing",
    ["timnet.embed", "blocks.1.layer2.conv", "blocks.0.layer1.norm", "fusion", "classifier"],
)
def test_what_a_checkpoint_lacks_gets_our_initial_values(missing, tmp_path: Path):
    model = make_model(hidden_size=24)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(file).items() if missing not in k}, file, {"format": "pt"}
    )
    loaded, report = TimNetForAudioClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert report["missing_keys"] and all(missing in key for key in report["missing_keys"])
    check_initial(loaded, only=missing)
    kept = [v for k, v in loaded.state_dict().items() if missing not in k]
    assert all((tensor == 7).all() for tensor in kept)


def test_every_buffer_is_saved():
    model = make_model()
    assert {name for name, _ in model.named_buffers()} <= set(model.state_dict())


# --- saving and loading -------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_saved_and_loaded_it_is_the_same(cls, tmp_path: Path, batch):
    model = make_model(cls)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded, report = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not loaded.training
    for (name, one), other in zip(
        model.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    with torch.no_grad():
        assert torch.equal(first(model(**batch)), first(loaded(**batch)))


def test_body_and_head_load_from_each_others_checkpoint(tmp_path: Path, batch):
    head = make_model()
    head.save_pretrained(tmp_path / "head")
    body = TimNetModel.from_pretrained(tmp_path / "head")
    with torch.no_grad():
        assert torch.equal(body(**batch).pooler_output, head.timnet(**batch).pooler_output)
    body.save_pretrained(tmp_path / "body")
    again, report = TimNetForAudioClassification.from_pretrained(
        tmp_path / "body", num_labels=3, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(again.timnet.embed.weight, head.timnet.embed.weight)


def test_another_number_of_classes_needs_to_be_asked_for(tmp_path: Path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        TimNetForAudioClassification.from_pretrained(tmp_path, num_labels=5)
    model = TimNetForAudioClassification.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True
    )
    assert model.classifier.out_features == model.num_labels == 5
    check_initial(model, only="classifier.bias")
    bound = math.sqrt(6 / (6 + 5))
    assert 0.5 * bound < model.classifier.weight.abs().max() <= bound


def test_a_pickle_can_be_refused(tmp_path: Path):
    model = make_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        TimNetForAudioClassification.from_pretrained(tmp_path, use_safetensors=True)


# --- devices and types --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_it_can_be_built_without_memory_and_filled_later(cls, batch):
    model = make_model(cls)
    with torch.device("meta"):
        empty = cls(make_config())
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    empty.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(first(empty.eval()(**batch)), first(model(**batch)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-6), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": "statistics", "dynamic_fusion": False},
        {"num_members": 2, "num_centered_members": 1},
    ],
)
def test_it_runs_in_other_types(dtype, tolerance, settings, batch):
    model = make_model(**settings)
    with torch.no_grad():
        wanted = model(**batch).logits
        moved = copy.deepcopy(model).to(dtype)
        got = moved(batch["input_values"].to(dtype), batch["attention_mask"]).logits
    assert got.dtype == dtype
    assert (got.float() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_padding_costs_no_accuracy_in_short_types(dtype):
    """A count of frames does not fit bfloat16, nor their sum float16."""
    model = make_model(TimNetModel).to(dtype)
    nn.init.constant_(model.embed.bias, 60.0)
    values = torch.randn(1, 1501, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    batch = torch.cat([values, torch.zeros(1, 499, 5, dtype=dtype)], dim=1)
    mask = torch.arange(2000)[None] < 1501
    with torch.no_grad():
        alone, padded = model(values).scale_vectors, model(batch, mask).scale_vectors
    assert torch.isfinite(padded).all()
    assert ((padded - alone) / alone).abs().max() <= 2 * torch.finfo(dtype).eps


def test_a_checkpoint_loads_in_another_type(tmp_path: Path, batch):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = TimNetForAudioClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.classifier.weight, model.classifier.weight.bfloat16())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_it_runs_under_autocast(training, masked, batch):
    if not masked:
        del batch["attention_mask"]
    model = make_model(hidden_dropout_prob=0.0).train(training)
    wanted = copy.deepcopy(model)(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch, labels=LABELS)
    output.loss.backward()
    assert (output.logits.float() - wanted).abs().max() <= 5e-2 * wanted.abs().max()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# --- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"pooling": "statistics", "pool_input": True}])
@pytest.mark.parametrize("masked", [False, True])
def test_it_exports_with_any_batch_and_length(settings, masked, batch):
    if not masked:
        del batch["attention_mask"]
    model = make_model(**settings, num_hidden_layers=2)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("frames", min=3)}
    program = torch.export.export(
        model, (), kwargs=batch, dynamic_shapes={name: sizes for name in batch}
    )
    other = {"input_values": torch.randn(5, 33, 5), "attention_mask": torch.ones(5, 33).long()}
    other["attention_mask"][1, 9:] = 0
    other = {name: other[name] for name in batch}
    with torch.no_grad():
        assert torch.allclose(program.module()(**other)["logits"], model(**other).logits, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "statistics"])
@pytest.mark.parametrize(("masked", "training"), [(True, False), (False, True), (True, True)])
def test_it_compiles_in_one_graph(masked, training, pooling, batch):
    if not masked:
        del batch["attention_mask"]
    shape = {"num_hidden_layers": 1, "pooling": pooling}
    model = make_model(hidden_dropout_prob=0.0, **shape).train(training)
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for one in (compiled, twin):
        one(**batch, labels=LABELS).loss.backward()
    assert torch.allclose(compiled(**batch).logits, twin(**batch).logits, atol=1e-6)
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6), name
    for (name, one), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name

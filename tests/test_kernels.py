# SPDX-License-Identifier: Apache-2.0
"""The compiled passes give what PyTorch's operations give, and are used where they are faster."""

from __future__ import annotations

import contextlib
import copy
import sys
import types

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from timnet_hf import TimNetConfig, TimNetForAudioClassification, fused_timnet, kernels
from timnet_hf.compiled_passes import COMPILED
from timnet_hf.folded_network import FoldedTimNet
from timnet_hf.fused_timnet import passes_for
from timnet_hf.passes_timnet import PLAIN
from timnet_hf.recipes import RECIPES

STREAMS, FRAMES, BATCH, SIZE = 3, 20, 5, 6


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def frames():
    return torch.randn(STREAMS, FRAMES, BATCH, SIZE)


def channels():
    return torch.randn(STREAMS, 1, SIZE)


def mask_of(*lengths):
    return (torch.arange(FRAMES).unsqueeze(1) < torch.tensor(lengths)).float().unsqueeze(-1)


def factors():
    return torch.nn.functional.dropout(torch.ones(STREAMS, 1, BATCH, SIZE), 0.3)


#: None, of clips, empty, full, in another order in memory, with holes.
MASKS = [
    None,
    mask_of(20, 9, 1, 3, 20),
    mask_of(0, 0, 0, 0, 0),
    mask_of(20, 20, 20, 20, 20),
    mask_of(20, 9, 1, 3, 20).transpose(0, 1).contiguous().transpose(0, 1),
    (torch.arange(FRAMES * BATCH).view(FRAMES, BATCH, 1) % 3 > 0).float(),
]


def agree(name, *given):
    """Whether a compiled pass and the plain one in float64 agree to float32's rounding."""

    def exact(value):
        return value.double() if isinstance(value, torch.Tensor) else value

    found = getattr(COMPILED, name)(*copy.deepcopy(given))
    wanted = getattr(PLAIN, name)(*map(exact, given))
    if isinstance(found, torch.Tensor):
        found, wanted = (found,), (wanted,)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5, equal_nan=True), name


@pytest.mark.parametrize("mask", MASKS)
def test_normalisation(mask):
    agree("normalize", frames(), mask, channels(), channels(), factors(), 1e-3)


def test_gate_and_gradients_of_gate_and_relu():
    agree("gate", frames().relu(), frames())
    gate = frames().relu().sigmoid()
    agree("gate_gradient", frames(), frames(), gate, frames(), factors())
    agree("relu_gradient", frames(), frames().relu(), frames(), factors())


@pytest.mark.parametrize("mask", MASKS)
def test_gradient_of_the_normalisation(mask):
    agree("norm_gradient", frames(), frames(), mask, factors(), *(channels() for _ in range(3)))


@pytest.mark.parametrize("mask", MASKS)
def test_pooling_and_its_gradient(mask):
    if mask is None:
        counts = FRAMES, FRAMES - 1
    else:
        counts = mask.sum(0).clamp(min=1), mask[1:].sum(0).clamp(min=1)
    hidden = frames()
    hidden[:, 5] = hidden[:, 4]  # where nothing moves, nothing is handed on
    agree("pool", hidden, mask, *counts)
    agree("pool_gradient", hidden, mask, *torch.randn(3, STREAMS, BATCH, SIZE))


def test_numbers_may_lie_in_any_order_in_memory():
    def turned(values):
        return values.transpose(0, 2).contiguous().transpose(0, 2)

    given = [turned(frames()) for _ in range(4)]
    assert not given[0].is_contiguous()
    agree("normalize", given[0], MASKS[1], channels(), channels(), factors(), 1e-3)
    agree("gate", given[0].relu(), given[1])
    agree("gate_gradient", *given, factors())
    agree("relu_gradient", *given[:3], factors())
    agree("norm_gradient", *given[:2], MASKS[1], factors(), *(channels() for _ in range(3)))
    agree("pool_gradient", given[0], MASKS[1], *torch.randn(3, STREAMS, BATCH, SIZE))


def test_what_is_no_number_stays_none():
    """A training that diverges must be seen to."""
    values = frames()
    values[0, 3, 2, 1] = float("nan")
    normed, mean, variance = COMPILED.normalize(
        values, None, channels(), channels(), factors() + 1, 1e-3
    )
    assert mean[0, 0, 1].isnan() and variance[0, 0, 1].isnan() and normed[0, :, :, 1].isnan().all()
    assert normed[1:].isfinite().all()
    gate = torch.full_like(values, 0.75)
    active, _, _ = COMPILED.gate_gradient(values, frames(), gate, frames(), factors())
    assert active[0, 3, 2, 1].isnan()
    active, _, _ = COMPILED.relu_gradient(values.clone(), gate, frames(), factors())
    assert active[0, 3, 2, 1].isnan()
    given = (None, factors() + 1, *(channels() for _ in range(3)))
    assert COMPILED.norm_gradient(frames(), values, *given)[0, 3, 2, 1].isnan()
    assert COMPILED.pool(values, None, FRAMES, FRAMES - 1)[:, 0, 2, 1].isnan().all()
    given = torch.randn(3, STREAMS, BATCH, SIZE)
    assert COMPILED.pool_gradient(values, None, *given)[0, 3, 2, 1].isnan()


def test_gates_are_exact_to_the_last_digits_and_know_no_overflow():
    active = torch.cat((torch.linspace(0, 20, 10_001), torch.tensor([1e-30, 90.0, 1e30])))
    hidden = torch.randn(len(active))
    wanted = hidden.double() * active.double().sigmoid()
    kernels.gate(active.numpy(), hidden.numpy())
    assert ((hidden - wanted) / wanted).abs().max() < 3e-7
    unknown = torch.tensor([float("nan"), 1.0])
    kernels.gate(unknown.numpy(), hidden[:2].numpy())
    assert hidden[0].isnan() and hidden[1].isfinite()


@pytest.mark.parametrize("shift", [6, 30, 114])
def test_activation_adds_both_taps_and_the_bias(shift):
    newest, older = torch.randn(3, 120), torch.randn(3, 120 - shift)
    bias = torch.randn(3, 6)
    wanted = newest + bias.repeat(1, 20)
    wanted[:, shift:] += older
    kernels.activate(newest.numpy(), older.numpy(), bias.repeat(1, 8).numpy())
    assert torch.allclose(newest, wanted.relu(), atol=1e-6)


def test_they_are_for_few_threads_of_a_cpu_in_float32():
    hidden = frames()
    for threads in (2, 1):
        torch.set_num_threads(threads)
        assert passes_for(hidden) is COMPILED
    assert passes_for(hidden.double()) is PLAIN
    assert passes_for(hidden.to("meta")) is PLAIN
    torch.set_num_threads(3)
    assert passes_for(hidden) is PLAIN


@pytest.fixture
def no_numba(monkeypatch):
    """As if the extra were not installed; nothing of what was found before is remembered."""
    for name in ("compiled_passes", "kernels"):
        monkeypatch.delattr(f"timnet_hf.{name}")
        monkeypatch.delitem(sys.modules, f"timnet_hf.{name}")
    fused_timnet.find_compiled.cache_clear()
    yield
    fused_timnet.find_compiled.cache_clear()


@pytest.mark.parametrize("broken", [False, True])
def test_without_numba_all_works_as_before(no_numba, broken, monkeypatch):
    model = TimNetForAudioClassification(TimNetConfig(num_labels=4, **RECIPES["default"].config))
    features, labels = torch.randn(9, 80, 39), torch.arange(9) % 4
    if broken:  # llvmlite raises OSError where its library does not load
        finder = types.SimpleNamespace(find_spec=lambda name, *_: name == "numba" and fail())
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
        for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
            monkeypatch.delitem(sys.modules, name)
        context = pytest.warns(UserWarning, match="numba is installed but does not work")
    else:
        monkeypatch.setitem(sys.modules, "numba", None)
        context = contextlib.nullcontext()
    with context:
        model.train()(features, labels=labels).loss.backward()
        assert passes_for(features) is PLAIN
        folded = FoldedTimNet(model.eval())
        for batch in (features, features[:1]):
            wanted = model(batch).logits
            assert torch.allclose(folded(list(batch)), wanted, atol=1e-4)


def fail():
    raise OSError("libllvmlite.so: cannot open shared object file")


def test_what_watches_operations_sees_them_all():
    """Tracers would take what a compiled loop writes for a constant."""
    shape = {"input_size": 7, "hidden_size": 8, "num_hidden_layers": 2, "num_labels": 4}
    config = TimNetConfig(**shape, hidden_dropout_prob=0.0, classifier_dropout=0.0)
    model = TimNetForAudioClassification(config).train()
    features, other = torch.randn(2, 6, 20, 7)
    with torch.no_grad():
        traced = make_fx(lambda given: model(given).logits)(features)
        assert torch.allclose(traced(other), model(other).logits, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_of_training_is_the_same_to_rounding(pooling, masked, monkeypatch):
    config = TimNetConfig(
        input_size=7,
        hidden_size=8,
        num_hidden_layers=3,
        num_labels=4,
        pooling=pooling,
        pool_input=True,
        num_members=2,
        hidden_dropout_prob=0.0,
        classifier_dropout=0.0,
    )
    model = TimNetForAudioClassification(config).train()
    features, labels = torch.randn(6, 20, 7), torch.arange(6) % 4
    mask = (torch.arange(20) < torch.tensor([20, 9, 1, 3, 20, 8]).unsqueeze(1)).long()
    used = []
    monkeypatch.setattr(
        fused_timnet, "passes_for", lambda hidden: used.append(passes_for(hidden)) or used[-1]
    )
    results = []
    for dtype in (torch.float32, torch.float64):
        copied = copy.deepcopy(model).to(dtype)
        given = {"labels": labels, "attention_mask": mask if masked else None}
        output = copied(features.to(dtype), **given)
        output.loss.backward()
        gradients = [parameter.grad for parameter in copied.parameters()]
        results.append([output.loss, output.logits, *gradients, *copied.buffers()])
    assert set(map(id, used)) == {id(COMPILED), id(PLAIN)}
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours.to(theirs.dtype), theirs, rtol=1e-3, atol=1e-5)

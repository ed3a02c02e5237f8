# SPDX-License-Identifier: Apache-2.0
"""A block and a pooling with gradients written out are the plain ones, gradients included."""

from __future__ import annotations

import copy

import pytest
import torch

from timnet_hf import TimNetConfig, TimNetForAudioClassification, layers_timnet
from timnet_hf.layers_timnet import TimNetPooling
from timnet_hf.modeling_timnet import TimNetBlock, TimNetModel


def run(block, hidden, mask, monkeypatch, fused):
    """Output, gradients and buffers of one training step of a copy of the block."""
    block, hidden = copy.deepcopy(block), hidden.clone().requires_grad_()
    if not fused:
        monkeypatch.setattr(TimNetBlock, "fuses", lambda *_: False)
    torch.manual_seed(1)
    output = block(hidden, mask)
    monkeypatch.undo()
    valid = 1 if mask is None else mask
    (output * valid * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
    return [
        output * valid,
        hidden.grad * valid,
        *[parameter.grad for parameter in block.parameters()],
        *block.buffers(),
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dilation", [1, 4, 20, 64])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_fused_and_plain_block_agree_to_rounding(masked, dilation, dropout, monkeypatch):
    torch.manual_seed(0)
    config = TimNetConfig(hidden_size=8, hidden_dropout_prob=dropout)
    block = TimNetBlock(config, dilation).double().train()
    for layer in (block.layer1, block.layer2):
        torch.nn.init.normal_(layer.norm.weight)
        torch.nn.init.normal_(layer.norm.bias)
        torch.nn.init.normal_(layer.conv.bias)
    hidden, mask = torch.randn(2, 20, 5, 8).double(), None
    if masked:  # what stands in the padding is anything but zero, as behind a bias
        lengths = torch.tensor([20, 10, 5, 1, 20])
        mask = (torch.arange(20).unsqueeze(1) < lengths).double().unsqueeze(-1)
    assert block.fuses(hidden)
    fused = run(block, hidden, mask, monkeypatch, fused=True)
    plain = run(block, hidden, mask, monkeypatch, fused=False)
    for ours, theirs in zip(fused, plain, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
@pytest.mark.parametrize("states", [False, True])
def test_channels_added_for_speed_change_nothing(pooling, states, monkeypatch):
    torch.manual_seed(0)
    config = TimNetConfig(
        input_size=7, hidden_size=5, num_hidden_layers=3, num_labels=4, pooling=pooling
    )
    model = TimNetForAudioClassification(config).double().train()
    features = torch.randn(6, 20, 7).double()
    mask = (torch.arange(20) < torch.tensor([20, 9, 1, 3, 20, 8]).unsqueeze(1)).long()
    results, widths = [], []
    for aligned in (True, False):
        copied = copy.deepcopy(model)
        if not aligned:
            monkeypatch.setattr(TimNetModel, "_aligned", lambda _, hidden: hidden)
        copied.timnet.blocks[0].register_forward_pre_hook(
            lambda _, given: widths.append(given[0].shape[-1])
        )
        torch.manual_seed(1)
        labels = torch.tensor([0, 1, 2, 3, 0, 1])
        output = copied(features, mask, labels=labels, output_hidden_states=states)
        output.loss.backward()
        gradients = [parameter.grad for parameter in copied.parameters()]
        shown = output.hidden_states or ()
        results.append([output.logits, *shown, *gradients, *copied.buffers()])
    assert widths == [8, 5]
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def make(**settings):
    """A model in training whose 5 channels are aligned to 8 where all blocks fuse, and a batch."""
    torch.manual_seed(0)
    shape = {"input_size": 7, "hidden_size": 5, "num_hidden_layers": 3, "num_labels": 4}
    model = TimNetForAudioClassification(TimNetConfig(**shape, **settings)).train()
    return model, {"input_values": torch.randn(6, 20, 7), "labels": torch.arange(6) % 4}


@pytest.mark.parametrize(
    "frozen", ["blocks.0", "blocks.2.layer1", "blocks.1.layer2", "blocks.1.layer1.norm"]
)
def test_what_is_set_to_score_keeps_its_statistics_in_training(frozen):
    """As batch normalisation is frozen, alone or with what it belongs to."""
    model, batch = make()
    part = model.timnet.get_submodule(frozen).eval()
    before = copy.deepcopy(model.state_dict())
    model(**batch).loss.backward()
    for name, buffer in model.named_buffers():
        moved = not torch.equal(buffer, before[name])
        assert moved != any(buffer is one for one in part.buffers()), name
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["blocks.0", "blocks.1.layer1", "blocks.2.layer2"])
def test_hooks_are_called_in_training_and_change_nothing(name):
    model, batch = make(hidden_dropout_prob=0.0)
    wanted = model(**batch).logits
    called = []
    watched = model.timnet.get_submodule(name)
    watched.register_forward_hook(lambda module, given, output: called.append(output))
    assert torch.allclose(model(**batch).logits, wanted, atol=1e-5)
    assert len(called) == 1


def test_a_hook_may_change_what_a_block_says():
    model, batch = make()
    model.timnet.blocks[0].register_forward_hook(lambda module, given, output: output.mul_(0.5))
    model(**batch).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_blocks_may_be_compiled_one_by_one():
    """As accelerate's regional compilation does."""
    model, batch = make(hidden_dropout_prob=0.0)
    wanted = model(**batch).logits
    for block in model.timnet.blocks:
        block.compile(backend="eager")
    assert torch.allclose(model(**batch).logits, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_gradients_may_be_asked_for_in_or_out_of_autocast(forward, backward, dtype):
    """What autocast rounds, it rounds on the way there; float64 it leaves alone."""
    torch.manual_seed(0)
    config = TimNetConfig(hidden_size=8, hidden_dropout_prob=0.0)
    block = TimNetBlock(config, dilation=2).to(dtype).train()
    hidden = torch.randn(2, 20, 5, 8, dtype=dtype)
    gradients = []
    for there, back in ((False, False), (forward, backward)):
        given = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=there):
            output = block(given)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=back):
            (output * output.detach().sin()).sum().backward()
        gradients.append(given.grad)
    exact, found = gradients
    assert found.dtype == dtype
    if forward and dtype == torch.float32:
        assert 0 < (found - exact).abs().mean() < 0.02
    else:
        assert torch.equal(found, exact)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 20])
def test_fused_and_plain_statistics_agree_to_rounding(masked, frames, monkeypatch):
    torch.manual_seed(0)
    hidden, mask = torch.randn(2, frames, 3, 4).double(), None
    if masked:
        lengths = torch.tensor([frames, 1, (frames + 1) // 2])
        mask = (torch.arange(frames).unsqueeze(1) < lengths).double().unsqueeze(-1)
    hidden[..., 0] = 1.0 if mask is None else mask[..., 0]  # a channel that never varies
    pooling = TimNetPooling(TimNetConfig(pooling="statistics", hidden_size=4)).train()
    results = []
    for fused in (True, False):
        monkeypatch.setattr(layers_timnet, "is_plain", lambda _, fused=fused: fused)
        values = hidden.clone().requires_grad_()
        pooled = pooling(values, mask)
        (pooled * torch.arange(pooled.numel()).view_as(pooled).sin()).sum().backward()
        results.append((pooled, values.grad))
    assert results[0][0].shape == (3, 3 * 2 * 4)
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_under_autocast_only_the_products_lose_digits(masked, monkeypatch):
    torch.manual_seed(0)
    block = TimNetBlock(TimNetConfig(hidden_size=8, hidden_dropout_prob=0.0), 2).train()
    hidden, mask = torch.randn(2, 20, 5, 8), None
    if masked:
        mask = (torch.arange(20).unsqueeze(1) < torch.tensor([20, 9, 1, 3, 20])).float()[..., None]
        hidden = hidden * mask
    exact = run(block, hidden, mask, monkeypatch, fused=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = run(block, hidden, mask, monkeypatch, fused=True)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == theirs.dtype
        scale = theirs.float().abs().max().clamp(min=1.0)
        assert (ours.float() - theirs.float()).abs().mean() / scale < 0.05
    assert not torch.equal(rounded[0], exact[0])

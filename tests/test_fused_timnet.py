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
    if masked:
        lengths = torch.tensor([20, 10, 5, 1, 20])
        mask = (torch.arange(20).unsqueeze(1) < lengths).double().unsqueeze(-1)
        hidden = hidden * mask
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


@pytest.mark.parametrize("frozen", ["blocks.0", "blocks.2.layer1", "blocks.1.layer2"])
def test_layers_that_are_set_to_score_keep_their_statistics_in_training(frozen):
    """As one freezes batch normalisation; 5 channels are aligned where all layers train."""
    torch.manual_seed(0)
    config = TimNetConfig(input_size=7, hidden_size=5, num_hidden_layers=3, num_labels=4)
    model = TimNetForAudioClassification(config).train()
    part = model.timnet.get_submodule(frozen).eval()
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(6, 20, 7), labels=torch.tensor([0, 1, 2, 3, 0, 1])).loss.backward()
    for name, buffer in model.named_buffers():
        moved = not torch.equal(buffer, before[name])
        assert moved != any(buffer is one for one in part.buffers()), name


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 20])
def test_fused_and_plain_statistics_agree_to_rounding(masked, frames, monkeypatch):
    torch.manual_seed(0)
    hidden, mask = torch.randn(2, frames, 3, 4).double(), None
    if masked:
        lengths = torch.tensor([frames, 1, (frames + 1) // 2])
        mask = (torch.arange(frames).unsqueeze(1) < lengths).double().unsqueeze(-1)
        hidden = hidden * mask
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
    for fused in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = run(block, hidden, mask, monkeypatch, fused=fused)
        for ours, theirs in zip(rounded, exact, strict=True):
            assert ours.dtype == theirs.dtype
            scale = theirs.float().abs().max().clamp(min=1.0)
            assert (ours.float() - theirs.float()).abs().mean() / scale < 0.1
        assert not torch.equal(rounded[0], exact[0])

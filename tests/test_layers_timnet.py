# SPDX-License-Identifier: Apache-2.0
"""The layers in their plain form, and where the gradients written out stand in for them."""

from __future__ import annotations

import copy

import pytest
import torch

from timnet_hf import TimNetConfig
from timnet_hf.layers_timnet import TimNetCausalLayer, TimNetConv


def test_a_convolution_is_that_of_torch_with_one_group_a_stream():
    torch.manual_seed(0)
    conv = TimNetConv(3, 4, streams=2, taps=3, dilation=2).double()
    hidden = torch.randn(2, 9, 5, 3).double()  # (streams, frames, batch, size)
    flat = hidden.permute(2, 0, 3, 1).flatten(1, 2)  # (batch, streams · size, frames)
    wanted = torch.nn.Conv1d.forward(conv, torch.nn.functional.pad(flat, (4, 0)))
    wanted = wanted.unflatten(1, (2, 4)).permute(1, 3, 0, 2)
    assert torch.allclose(conv(hidden), wanted, atol=1e-12)


def test_a_layer_is_fused_where_it_learns_eagerly_with_two_taps(monkeypatch):
    layer = TimNetCausalLayer(TimNetConfig(hidden_size=3), dilation=2)
    hidden = torch.randn(2, 4, 1, 3)
    assert layer.can_fuse(hidden)
    assert not layer.can_fuse(hidden.double())
    assert not layer.eval().can_fuse(hidden)
    layer.train().norm.eval()
    assert not layer.can_fuse(hidden)
    assert layer.train().double().can_fuse(hidden.double())
    assert not layer.bfloat16().can_fuse(hidden.bfloat16())
    wider = TimNetCausalLayer(TimNetConfig(hidden_size=3, kernel_size=3), dilation=2)
    assert not wider.can_fuse(hidden)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not layer.float().can_fuse(hidden)


@pytest.mark.parametrize("masked", [False, True])
def test_under_autocast_only_the_products_of_a_plain_layer_lose_digits(masked):
    torch.manual_seed(0)
    layer = TimNetCausalLayer(TimNetConfig(hidden_size=8, hidden_dropout_prob=0.0), 2).train()
    hidden, mask, valid = torch.randn(2, 20, 5, 8), None, 1
    if masked:
        mask = (torch.arange(20).unsqueeze(1) < torch.tensor([20, 9, 1, 3, 20])).float()[..., None]
        hidden, valid = hidden * mask, mask
    results = []
    for autocast in (False, True):
        copied, given = copy.deepcopy(layer), hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = copied(given, mask)
        (output * valid * torch.arange(output.numel()).view_as(output).sin()).sum().backward()
        gradients = [parameter.grad for parameter in copied.parameters()]
        results.append([output * valid, given.grad * valid, *gradients, *copied.buffers()])
    exact, rounded = results
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == theirs.dtype
        scale = theirs.float().abs().max().clamp(min=1.0)
        assert (ours.float() - theirs.float()).abs().mean() / scale < 0.05
    assert not torch.equal(rounded[0], exact[0])

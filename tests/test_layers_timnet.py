# SPDX-License-Identifier: Apache-2.0
"""The layers in their plain form, and where the gradients written out stand in for them."""

from __future__ import annotations

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

# SPDX-License-Identifier: Apache-2.0
"""What the TIM-Net network computes, told as a specification.

How it behaves as a citizen of the transformers library stands in `test_modeling_timnet_library`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from timnet_hf.configuration_timnet import ABLATIONS, TimNetConfig
from timnet_hf.layers_timnet import TimNetBatchNorm, TimNetPooling
from timnet_hf.modeling_timnet import (
    TimNetForAudioClassification,
    TimNetModel,
)

SMALL = {"input_size": 5, "hidden_size": 6, "num_hidden_layers": 4, "num_labels": 3}


def make_model(seed: int = 0, **settings) -> TimNetForAudioClassification:
    """A model in evaluation mode whose every parameter and statistic has left its initial value."""
    torch.manual_seed(seed)
    model = TimNetForAudioClassification(TimNetConfig(**{**SMALL, **settings}))
    with torch.no_grad():
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand_like(tensor))
    return model.eval()


def frames(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(clips: list[torch.Tensor], side: str, filler: float) -> dict[str, torch.Tensor]:
    """Clips of unequal length as one batch with its mask."""
    longest = max(len(clip) for clip in clips)
    values = torch.full((len(clips), longest, clips[0].shape[1]), filler)
    mask = torch.zeros(len(clips), longest, dtype=torch.int64)
    for row, clip in enumerate(clips):
        where = slice(longest - len(clip), None) if side == "left" else slice(len(clip))
        values[row, where] = clip
        mask[row, where] = 1
    return {"input_values": values, "attention_mask": mask}


# --- the published network ----------------------------------------------------------------------


def test_with_seven_labels_it_has_104496_parameters():
    model = TimNetForAudioClassification(TimNetConfig(num_labels=7))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 104_496


def test_it_equals_a_plain_reading_of_the_paper():
    """Two separate streams, block by block, written out with functional calls."""
    model = make_model().timnet
    config, x = model.config, frames(2, 30, 5)
    width, functional = config.hidden_size, torch.nn.functional
    streams = [x.transpose(1, 2), x.flip(1).transpose(1, 2)]
    parts = [slice(0, width), slice(width, None)]
    streams = [
        functional.conv1d(stream, model.embed.weight[part], model.embed.bias[part])
        for stream, part in zip(streams, parts, strict=True)
    ]
    fused = 0
    for index, block in enumerate(model.blocks):
        dilation = 2**index
        for number, part in enumerate(parts):
            gate = streams[number]
            for layer in (block.layer1, block.layer2):
                conv, norm = layer.conv, layer.norm
                gate = functional.pad(gate, (dilation, 0))
                gate = functional.conv1d(
                    gate, conv.weight[part], conv.bias[part], dilation=dilation
                )
                gate = functional.batch_norm(
                    gate,
                    norm.running_mean[part],
                    norm.running_var[part],
                    norm.weight[part],
                    norm.bias[part],
                    eps=1e-3,
                ).relu()
            streams[number] = streams[number] * gate.sigmoid()
        fused = fused + model.fusion.weight[index] * (streams[0] + streams[1]).mean(-1)
    with torch.no_grad():
        assert torch.allclose(model(x).pooler_output, fused, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("multi_scale", [True, False])
@pytest.mark.parametrize("dynamic_fusion", [True, False])
def test_every_combination_of_the_ablations_runs_and_trains(
    bidirectional, multi_scale, dynamic_fusion
):
    model = make_model(
        bidirectional=bidirectional, multi_scale=multi_scale, dynamic_fusion=dynamic_fusion
    ).train()
    output = model(frames(3, 20, 5), labels=torch.tensor([0, 1, 2]))
    output.loss.backward()
    assert output.logits.shape == (3, 3)
    assert all(p.grad is not None for p in model.parameters())


def test_each_ablation_leaves_out_what_it_names():
    full = TimNetForAudioClassification(TimNetConfig(num_labels=7))
    size = {
        name: TimNetForAudioClassification(TimNetConfig(num_labels=7, **switches)).num_parameters()
        for name, switches in ABLATIONS.items()
    }
    one_stream = (full.num_parameters() - 8 - 280) // 2  # all but fusion weights and classifier
    assert size["no-backward"] == one_stream + 8 + 280
    assert size["no-multi-scale"] == full.num_parameters() - 8
    assert size["no-dynamic-fusion"] == full.num_parameters() - 8
    assert size["plain-tcn"] == one_stream + 280


def test_without_multi_scale_only_the_last_block_counts():
    model = make_model(multi_scale=False).timnet
    output = model(frames(2, 20, 5))
    forward, backward = output.last_hidden_state.mean(1).chunk(2, dim=-1)
    assert torch.allclose(output.pooler_output, forward + backward, atol=1e-6)


def test_without_dynamic_fusion_the_scales_have_equal_weight():
    output = make_model(dynamic_fusion=False).timnet(frames(2, 20, 5))
    assert output.fusion_weights.tolist() == [0.25] * 4
    assert torch.allclose(output.pooler_output, output.scale_vectors.mean(1), atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
@pytest.mark.parametrize("pool_input", [True, False])
def test_the_fused_vector_is_the_weighted_sum_of_the_scale_vectors(pooling, pool_input):
    model = make_model(pooling=pooling, pool_input=pool_input).timnet
    output = model(frames(2, 20, 5))
    assert output.scale_vectors.shape == (2, 4 + pool_input, 36 if pooling == "statistics" else 6)
    assert output.fusion_weights.shape == (4 + pool_input,)
    summed = (output.scale_vectors * output.fusion_weights[:, None]).sum(1)
    assert torch.allclose(output.pooler_output, summed, atol=1e-6)


def test_statistics_pooling_is_mean_deviation_and_change_of_each_channel():
    pooling = TimNetPooling(TimNetConfig(pooling="statistics", hidden_size=2))
    hidden = frames(3, 4, 9)  # (batch, streams · size, frames)
    laid_out = hidden.unflatten(1, (2, 2)).permute(1, 3, 0, 2)
    mean, deviation, change = pooling(laid_out, None).chunk(3, dim=1)
    assert torch.allclose(mean, hidden.mean(-1), atol=1e-6)
    assert torch.allclose(deviation, hidden.std(-1, correction=0), atol=1e-4)
    assert torch.allclose(change, hidden.diff(dim=-1).abs().mean(-1), atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2, 9])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_any_blocks_kernel_and_length_even_below_the_dilation(blocks, kernel, length):
    model = make_model(num_hidden_layers=blocks, kernel_size=kernel, hidden_size=3, input_size=2)
    output = model(frames(2, length, 2), attention_mask=torch.ones(2, length))
    assert torch.isfinite(output.logits).all()


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [2, 3])
def test_one_stream_hears_only_the_past_the_other_only_the_future(kernel):
    model = make_model(kernel_size=kernel).timnet
    x = frames(1, 24, 5)
    changed = x.clone()
    changed[:, 12] += 1
    with torch.no_grad():
        difference = (model(x).last_hidden_state - model(changed).last_hidden_state)[0].abs()
    forward, backward = difference.chunk(2, dim=-1)
    assert forward[:12].max() == 0 and forward[12].max() > 0 and forward[13:].max() > 0
    assert backward[13:].max() == 0 and backward[12].max() > 0 and backward[:12].max() > 0


def test_a_block_with_dilation_d_reaches_two_d_frames_back():
    """Two layers of two taps a block: block j reaches 2 · 2^(j-1) frames further than the last."""
    model = make_model().timnet
    x = frames(1, 64, 5)
    changed = x.clone()
    changed[:, 20] += 5
    with torch.no_grad():
        before = model(x, output_hidden_states=True).hidden_states
        after = model(changed, output_hidden_states=True).hidden_states
    reach = [
        int((a - b)[0, :, :6].abs().amax(-1).nonzero().max()) - 20
        for a, b in zip(before, after, strict=True)
    ]
    assert reach == [0, 2, 6, 14, 30]


# --- padding ------------------------------------------------------------------------------------

LENGTHS = (1, 2, 3, 17, 40, 41)


@pytest.mark.parametrize("filler", [0.0, 1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pooling": "statistics", "pool_input": True},
        {"num_members": 3, "num_centered_members": 2},
        *(ABLATIONS.values()),
    ],
    ids=["full", "statistics", "members", *ABLATIONS],
)
def test_a_clip_scores_in_a_batch_as_it_does_alone(settings, side, filler):
    model = make_model(**settings)
    clips = [frames(length, 5, seed=length) for length in LENGTHS]
    with torch.no_grad():
        batch = model(**padded(clips, side, filler)).logits
        alone = torch.cat([model(clip[None]).logits for clip in clips])
    assert (batch - alone).abs().max() <= 1e-5


def test_that_holds_for_the_published_size_and_feature_like_values():
    model = make_model(input_size=39, hidden_size=39, num_hidden_layers=8)
    clips = [20 * frames(length, 39, seed=length) for length in (5, 90, 188)]
    with torch.no_grad():
        batch = model(**padded(clips, "right", 0.0)).logits
        alone = torch.cat([model(clip[None]).logits for clip in clips])
    assert (batch - alone).abs().max() <= 1e-5


def test_padding_between_the_frames_is_left_out_too():
    model = make_model()
    clip = frames(20, 5)
    values = torch.full((1, 30, 5), float("nan"))
    where = torch.tensor(sorted(np.random.default_rng(0).choice(30, 20, replace=False)))
    values[0, where] = clip
    mask = torch.zeros(1, 30)
    mask[0, where] = 1
    with torch.no_grad():
        gaps, alone = model(values, attention_mask=mask), model(clip[None])
    assert (gaps.logits - alone.logits).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool, torch.float32])
def test_a_mask_of_ones_of_any_kind_changes_nothing(kind):
    model, x = make_model(), frames(2, 20, 5)
    with torch.no_grad():
        masked = model(x, attention_mask=torch.ones(2, 20, dtype=kind)).logits
        assert (masked - model(x).logits).abs().max() <= 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_states_stand_in_time_order_and_are_zero_in_the_padding(side):
    model = make_model().timnet
    clips = [frames(7, 5), frames(12, 5)]
    batch = padded(clips, side, float("nan"))
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
        alone = [model(clip[None], output_hidden_states=True).hidden_states for clip in clips]
    for depth, state in enumerate(states):
        for row in range(2):
            valid = batch["attention_mask"][row].bool()
            assert torch.allclose(state[row, valid], alone[row][depth][0], atol=1e-5)
            assert (state[row, ~valid] == 0).all()


def test_a_row_without_a_valid_frame_gives_a_finite_answer():
    values, mask = frames(2, 9, 5), torch.tensor([[1] * 9, [0] * 9])
    values[1] = float("nan")
    output = make_model()(values, attention_mask=mask)
    assert torch.isfinite(output.logits).all()


def test_gradients_ignore_the_padding():
    model = make_model(pooling="statistics")
    batch = padded([frames(4, 5), frames(9, 5)], "right", float("nan"))
    values = batch["input_values"].requires_grad_()
    model(values, batch["attention_mask"], labels=torch.tensor([0, 1])).loss.backward()
    assert torch.isfinite(values.grad).all() and (values.grad[0, 4:] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# --- batch statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_batch_statistics_leave_padding_out(offset):
    """A masked batch trains batch norm as the valid frames alone, packed into one row, would."""
    clips = [offset + frames(length, 6, seed=length) for length in (2, 9, 30)]
    batch = padded(clips, "right", 1e3)
    mask = batch["attention_mask"].unsqueeze(1).float()
    ours, plain = TimNetBatchNorm(6, 1e-3, 0.01).train(), nn.BatchNorm1d(6, 1e-3, 0.01).train()
    with torch.no_grad():
        ours.weight.copy_(plain.weight.uniform_(0.5, 2))
        ours.bias.copy_(plain.bias.normal_())
    values = batch["input_values"].transpose(1, 2).masked_fill(mask == 0, 0).requires_grad_()
    packed = torch.cat(clips).T[None].clone().requires_grad_()
    got = ours(values.permute(2, 0, 1)[None], mask.permute(2, 0, 1))[0].permute(1, 2, 0)
    wanted = plain(packed)
    taken = torch.cat([got[row, :, : len(clip)] for row, clip in enumerate(clips)], dim=1)
    tolerance = 1e-5 if not offset else 2e-3
    assert torch.allclose(taken, wanted[0], atol=tolerance)
    assert torch.allclose(ours.running_mean, plain.running_mean, atol=1e-5)
    assert torch.allclose(ours.running_var, plain.running_var, atol=1e-4)
    assert ours.num_batches_tracked == plain.num_batches_tracked == 1

    (taken**3).sum().backward()
    (wanted**3).sum().backward()
    gradient = torch.cat([values.grad[row, :, : len(c)] for row, c in enumerate(clips)], dim=1)
    assert torch.allclose(gradient, packed.grad[0], atol=1e-3 if not offset else 0.2)


def test_channels_that_never_vary_stay_finite_however_much_is_padding():
    norm = TimNetBatchNorm(2, 1e-3, 0.01).train()
    mask = torch.zeros(4000, 1, 1)
    mask[:40] = 1
    output = norm(torch.full((1, 4000, 1, 2), 1000.3) * mask, mask)
    assert torch.isfinite(output).all() and torch.isfinite(norm.running_var).all()
    assert (norm.running_var >= 0).all()


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
def test_training_is_independent_of_how_much_a_batch_is_padded(pooling):
    clips = [frames(length, 5, seed=length) for length in (6, 11)]
    logits = []
    for extra in (0, 25):
        model = make_model(hidden_dropout_prob=0.0, pooling=pooling).train()
        batch = padded([*clips, torch.zeros(11 + extra, 5)], "right", 0.0)
        batch["attention_mask"][2] = 0
        logits.append(model(**batch).logits[:2])
    assert torch.allclose(*logits, atol=1e-5)


def test_dropout_silences_whole_channels():
    model = make_model(hidden_dropout_prob=0.5, hidden_size=32).train()
    layer = model.timnet.blocks[0].layer1
    nn.init.constant_(layer.norm.bias, 10.0)  # nothing but dropout makes a zero now
    torch.manual_seed(0)
    output = layer(frames(2, 50, 4, 32), None)
    silent = (output == 0).all(1)
    assert torch.equal(silent, (output == 0).any(1)) and 0.3 < silent.float().mean() < 0.7


# --- the head and the input ---------------------------------------------------------------------


def test_temperature_divides_the_logits_only_where_asked():
    x = frames(2, 20, 5)
    model = make_model(temperature=2.0)
    with torch.no_grad():
        plain, scaled = model(x).logits, model(x, apply_temperature=True).logits
        model.config.apply_temperature = True
        assert torch.equal(model(x).logits, scaled) and torch.equal(scaled, plain / 2)
        assert torch.equal(model(x, apply_temperature=False).logits, plain)


def test_temperature_has_no_part_in_training():
    x = frames(2, 20, 5)
    model = make_model(temperature=2.0, apply_temperature=True, classifier_dropout=0.0).train()
    model.timnet.eval()
    with torch.no_grad():
        assert torch.equal(model(x).logits, model(x, apply_temperature=False).logits)


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((2, 20, 6), r"\(batch, frames, 5\), not \(2, 20, 6\).*TimNetFeatureExtractor"),
        ((20, 5), r"not \(20, 5\)"),
        ((1, 2, 20, 5), "must have shape"),
        ((2, 0, 5), "no frame"),
        ((0, 3, 5), "no clip"),
    ],
)
def test_an_input_of_the_wrong_shape_is_refused(shape, match):
    with pytest.raises(ValueError, match=match):
        make_model()(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 19), (2, 20, 1), (3, 20), (20,)])
def test_a_mask_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match="attention_mask"):
        make_model()(torch.zeros(2, 20, 5), attention_mask=torch.ones(shape))


def test_saved_and_loaded_it_answers_bit_for_bit_the_same(tmp_path: Path):
    model, x = make_model(), frames(3, 20, 5)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = TimNetForAudioClassification.from_pretrained(tmp_path)
    body = TimNetModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, model(x).logits)
        assert torch.equal(body(x).pooler_output, model.timnet(x).pooler_output)

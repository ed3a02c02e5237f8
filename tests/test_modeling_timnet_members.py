# SPDX-License-Identifier: Apache-2.0
"""Several networks in one: members share the input and the fusion weights, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from timnet_hf.configuration_timnet import TimNetConfig
from timnet_hf.modeling_timnet import TimNetForAudioClassification
from timnet_hf.training_steps import SoftTargetLoss

from .test_modeling_timnet import SMALL, frames, make_model, padded

SHAPES: dict[str, dict[str, Any]] = {
    "mean": {},
    "statistics": {"pooling": "statistics", "pool_input": True, "normalize_scales": True},
    "one direction": {"bidirectional": False, "pooling": "statistics"},
    "mean of one direction": {"bidirectional": False},
}


def pack(members: list[TimNetForAudioClassification], **settings: Any) -> Any:
    """One model of several networks: their weights side by side, and their classifiers' mean."""
    config = TimNetConfig(**{**SMALL, **settings, "num_members": len(members)})
    packed = TimNetForAudioClassification(config).eval()
    directions, size = config.num_directions, config.hidden_size
    states = [member.state_dict() for member in members]
    state = {}
    for name, wanted in packed.state_dict().items():
        parts = [one[name] for one in states]
        if name.startswith("timnet.fusion") or not wanted.ndim:
            state[name] = parts[0]
        elif name == "classifier.bias":
            state[name] = torch.stack(parts).mean(0)
        elif name == "classifier.weight":
            kinds = [part.view(len(part), -1, 1, size) for part in parts]
            state[name] = torch.cat(kinds, dim=2).flatten(1) / len(parts)
        elif name.startswith("timnet.scale_norm"):
            state[name] = torch.cat([part.view(-1, 1, size) for part in parts], dim=1).flatten()
        else:  # a group a stream: all that read forwards, then all that read backwards
            streams = [part.unflatten(0, (directions, 1, -1)) for part in parts]
            state[name] = torch.cat(streams, dim=1).flatten(0, 2)
        assert state[name].shape == wanted.shape, name
    packed.load_state_dict(state)
    return packed


def some_members(count: int = 3, **settings: Any) -> list[TimNetForAudioClassification]:
    """Networks that differ in everything but their fusion weights."""
    members = [make_model(seed, **settings) for seed in range(count)]
    for member in members[1:]:
        member.timnet.fusion.load_state_dict(members[0].timnet.fusion.state_dict())
    return members


def trained_alone(model: Any, member: int, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of one member's answer."""
    model.train().zero_grad()
    model(**batch).member_logits[:, member].square().sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_the_logits_are_the_mean_of_what_the_members_say_alone(settings: dict[str, Any]) -> None:
    members = some_members(**settings)
    batch = padded([frames(9, 5), frames(23, 5, seed=2)], "left", float("nan"))

    with torch.no_grad():
        expected = torch.stack([member(**batch).logits for member in members])
        logits = pack(members, **settings)(**batch).logits

    assert expected.std(0).min() > 1e-4, "members that agree would show nothing"
    torch.testing.assert_close(logits, expected.mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_hidden_states_hold_each_direction_of_all_members_in_time_order(
    settings: dict[str, Any],
) -> None:
    members = some_members(2, **settings)
    batch = padded([frames(9, 5), frames(23, 5, seed=2)], "right", 0.0)
    with torch.no_grad():
        state = pack(members, **settings)(**batch, output_hidden_states=True).hidden_states[2]
        alone = [member(**batch, output_hidden_states=True).hidden_states[2] for member in members]
    parts = [one.chunk(members[0].config.num_directions, dim=-1) for one in alone]
    expected = torch.cat(
        [member for direction in zip(*parts, strict=True) for member in direction], -1
    )
    torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_in_training_each_member_answers_alone(settings: dict[str, Any]) -> None:
    model = make_model(num_members=3, hidden_dropout_prob=0.0, **settings).train()
    outputs = model(frames(4, 20, 5))
    assert outputs.member_logits.shape == (4, 3, 3)
    torch.testing.assert_close(outputs.member_logits.mean(1), outputs.logits)


def test_in_evaluation_and_with_one_member_there_is_one_answer() -> None:
    assert make_model(num_members=3)(frames(4, 20, 5)).member_logits is None
    assert make_model().train()(frames(4, 20, 5)).member_logits is None


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_no_member_learns_from_anothers_answer(settings: dict[str, Any]) -> None:
    model = make_model(num_members=2, hidden_dropout_prob=0.0, **settings)
    size, streams = model.config.hidden_size, model.config.num_streams
    gradients = trained_alone(model, 0, input_values=frames(4, 20, 5))
    for name, gradient in gradients.items():
        if name.startswith("timnet.fusion") or name == "classifier.bias":
            continue
        if name == "classifier.weight" or "scale_norm" in name:
            of_member = gradient.view(-1, 2, size).abs().amax((0, 2))
        else:
            of_stream = gradient.view(streams, -1).abs().amax(1)
            of_member = of_stream.view(-1, 2).amax(0)
        assert of_member[1] == 0, name
        if "conv.bias" not in name:  # it cancels in the normalisation behind it
            assert of_member[0] > 0, name


def test_the_loss_is_the_mean_of_the_members_losses() -> None:
    model = make_model(num_members=2, hidden_dropout_prob=0.0).train()
    labels = torch.tensor([0, 1, 2, 0])
    outputs = model(frames(4, 20, 5), labels=labels)
    expected = [F.cross_entropy(own, labels) for own in outputs.member_logits.unbind(1)]
    torch.testing.assert_close(outputs.loss, torch.stack(expected).mean())
    assert outputs.loss > F.cross_entropy(outputs.logits, labels), "the mean alone would be better"

    targets = F.one_hot(labels, 3).float()
    soft = SoftTargetLoss(torch.ones(3))(outputs, targets)
    torch.testing.assert_close(soft, outputs.loss)


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_centered_members_do_not_see_a_recordings_mean(settings: dict[str, Any]) -> None:
    members = some_members(**settings)
    clips = [3 + frames(9, 5), frames(23, 5, seed=2)]
    batch = padded(clips, "left", float("nan"))
    without = padded([clip - clip.mean(0) for clip in clips], "left", float("nan"))

    with torch.no_grad():
        seen = (without, without, batch)
        alone = [member(**one).logits for member, one in zip(members, seen, strict=True)]
        logits = pack(members, num_centered_members=2, **settings)(**batch).logits

    assert (members[0](**batch).logits - alone[0]).abs().max() > 1e-3
    torch.testing.assert_close(logits, torch.stack(alone).mean(0), atol=1e-5, rtol=1e-5)


def test_what_a_microphone_does_to_all_frames_alike_reaches_no_centered_member() -> None:
    microphone = torch.linspace(-4, 4, 5)
    clip = frames(1, 20, 5)
    for centered, reached in ((2, False), (1, True), (0, True)):
        model = make_model(num_members=2, num_centered_members=centered)
        with torch.no_grad():
            moved = (model(clip + microphone).logits - model(clip).logits).abs().max()
        assert bool(moved > 1e-5) == reached


@pytest.mark.parametrize("count", [0, -1, 1.5, True, 65])
def test_a_number_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(ValueError, match="num_members must be an integer from 1 to 64"):
        TimNetConfig(num_members=count)


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_so_is_a_number_of_centered_ones(count: Any) -> None:
    with pytest.raises(ValueError, match="num_centered_members must be an integer of at least 0"):
        TimNetConfig(num_centered_members=count)


def test_no_more_members_are_centered_than_there_are() -> None:
    with pytest.raises(ValueError, match="num_centered_members is 3, and num_members only 2"):
        TimNetConfig(num_members=2, num_centered_members=3)

# SPDX-License-Identifier: Apache-2.0
"""The network in the form that bulk scoring uses gives the network's own answers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from timnet_hf import (
    TimNetConfig,
    TimNetForAudioClassification,
    folded_clip,
    folded_network,
    kernels,
    load_audio,
)
from timnet_hf.configuration_timnet import ABLATIONS
from timnet_hf.folded_network import FoldedTimNet
from timnet_hf.prediction import load_model
from timnet_hf.recipes import RECIPES

SHAPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "default recipe": RECIPES["default"].config,
    "three taps": {"kernel_size": 3, "num_hidden_layers": 4},
    "one tap": {"kernel_size": 1, "num_hidden_layers": 2},
    "statistics, one stream": {"pooling": "statistics", "bidirectional": False},
    "statistics, one scale": {"pooling": "statistics", "multi_scale": False, "hidden_size": 9},
    "members": {"num_members": 3, "hidden_size": 8, "pooling": "statistics", "pool_input": True},
    "members, mean": {"num_members": 2, "hidden_size": 8},
    "centered members": {"num_members": 3, "num_centered_members": 2, "hidden_size": 8},
    "a centered member": {"num_centered_members": 1, "bidirectional": False},
    "members, one direction": {"num_members": 2, "hidden_size": 8, "bidirectional": False},
    "own temperature": {"temperature": 2.5, "apply_temperature": True},
    **ABLATIONS,
}


def trained(**config: Any) -> TimNetForAudioClassification:
    """A network whose every parameter and running statistic has been moved."""
    torch.manual_seed(0)
    model = TimNetForAudioClassification(TimNetConfig(num_labels=5, **config)).eval()
    with torch.no_grad():
        for values in [*model.parameters(), *model.buffers()]:
            if values.is_floating_point():
                values.add_(0.2 * torch.rand_like(values))
    return model


def clips(*lengths: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(length, 39) for length in lengths]


@torch.inference_mode()
def one_by_one(model: TimNetForAudioClassification, batch: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([model(clip[None]).logits for clip in batch])


@pytest.fixture(params=["in one call each", "in batches"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short clips are read in one compiled call each, or as long ones are."""
    if request.param == "in batches":
        monkeypatch.setattr(folded_network, "_ONE_CALL", 0)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_defaults_of_the_caller_do_not_reach_the_answers(default: torch.dtype) -> None:
    folded = FoldedTimNet(trained(**SHAPES["default recipe"]))
    for batch in (clips(90, 80), clips(90), clips(*[80] * 9)):
        expected = folded(batch)
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(default)
            with torch.device("meta"):
                assert torch.equal(folded(batch), expected)
        finally:
            torch.set_default_dtype(before)


def test_logits_of_real_recordings_are_the_networks(emodb_dir: Path) -> None:
    model, extractor = load_model()
    paths = sorted(emodb_dir.rglob("*.wav"))[::11][:48]
    assert len(paths) == 48
    batch = [extractor.normalize(extractor.extract(load_audio(path, 16_000))) for path in paths]
    expected, folded = one_by_one(model, batch), FoldedTimNet(model)
    for together in (1, 16):
        found = torch.cat([folded(batch[at : at + together]) for at in range(0, 48, together)])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [(300,), (120, 150), (300, 280, 310, 290)])
@pytest.mark.parametrize("shape", ["default recipe", "paper", "no-multi-scale"])
def test_scales_pooled_at_once_or_one_by_one_give_the_same(
    shape: str, lengths: tuple[int, ...]
) -> None:
    model = trained(**SHAPES[shape])
    batch = clips(*lengths)
    expected = one_by_one(model, batch)
    torch.testing.assert_close(FoldedTimNet(model)(batch), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("streams", [1, 3, None])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_answers_as_the_network_does_to_each_clip_alone(
    config: dict[str, Any], streams: int | None, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many streams are put through at a time, with compiled loops or without."""
    called: list[int] = []
    monkeypatch.setattr(folded_network, "_ONE_CALL", 0)
    if compiled:
        gate = kernels.gate
        monkeypatch.setattr(kernels, "gate", lambda *given: called.append(1) or gate(*given))
    else:
        monkeypatch.setattr(folded_network, "find_compiled", lambda _: None)
    model = trained(**config)
    batch = clips(1, 2, 7, 64, 90)
    if streams:
        state = 90 * len(batch) * model.config.hidden_size
        monkeypatch.setattr(folded_network, "_CACHED", streams * state)

    expected = one_by_one(model, batch)
    assert float(expected.std()) > 0.01
    for small in (folded_network._SMALL, 0):  # scales pooled at once, and one by one
        monkeypatch.setattr(folded_network, "_SMALL", small)
        folded = FoldedTimNet(model)
        torch.testing.assert_close(folded(batch), expected, atol=1e-4, rtol=1e-5)
        if streams:
            assert list(folded._parts) == [min(streams, model.config.num_streams)]
    assert bool(called) == compiled


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_short_clips_are_read_in_one_call_each(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the network is of the default recipe's kind, and all clips take some seconds."""
    called: list[int] = []
    read = kernels.read_clip
    monkeypatch.setattr(folded_clip, "read_clip", lambda *given: called.append(1) or read(*given))
    model = trained(**config)
    folded = FoldedTimNet(model)
    known = model.config.pooling == "statistics" and model.config.kernel_size == 2
    for lengths, calls in (
        ((1,), 1),
        ((2,), 1),
        ((5,), 1),
        ((31, 32, 33, 64, 65), 5),
        ((100, 1), 2),
        ((3_000,), 0),
        ((90, 3_000), 0),
    ):
        called.clear()
        batch = clips(*lengths)
        expected = one_by_one(model, batch)
        torch.testing.assert_close(folded(batch), expected, atol=1e-4, rtol=1e-5)
        assert len(called) == calls * known
        strided = [torch.stack((clip, clip), -1)[..., 0] for clip in batch]
        torch.testing.assert_close(folded(strided), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("lengths", [(1,), (40,), (50, 50, 50), [80] * 9, (1, 1)])
def test_a_batch_may_hold_one_clip_or_equal_ones(lengths: tuple[int, ...]) -> None:
    model = trained(**RECIPES["default"].config)
    batch = clips(*lengths)

    torch.testing.assert_close(
        FoldedTimNet(model)(batch), one_by_one(model, batch), atol=1e-4, rtol=1e-5
    )


@pytest.mark.usefixtures("either_way")
def test_a_constant_input_does_not_drown_in_rounding() -> None:
    """Deviations near zero are what single precision loses first."""
    model = trained(**RECIPES["default"].config)
    for count in (1, 2, 12):
        batch = [torch.full((80 + 10 * number, 39), 3.0) for number in range(count)]
        torch.testing.assert_close(
            FoldedTimNet(model)(batch), one_by_one(model, batch), atol=1e-4, rtol=1e-5
        )


@pytest.mark.parametrize("wrong", [torch.zeros(0, 39), torch.zeros(9, 38), torch.zeros(9)])
def test_what_is_no_clip_is_refused_with_numba_as_without(wrong: torch.Tensor) -> None:
    model = trained(**SHAPES["default recipe"])
    for compiled in (True, False):
        with pytest.raises((RuntimeError, ArithmeticError)):
            FoldedTimNet(model, compiled)([wrong])


@pytest.mark.parametrize("shape", ["paper", "default recipe"])
def test_a_batch_of_nothing_is_refused(shape: str) -> None:
    with pytest.raises(ValueError):
        FoldedTimNet(trained(**SHAPES[shape]))([])


def test_loops_on_one_thread_leave_large_batches_to_many(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = FoldedTimNet(trained(**SHAPES["default recipe"]))
    batch = clips(*[80] * 9)
    expected = folded(batch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(kernels, "gate", None)
    monkeypatch.setattr(folded_clip, "read_clip", None)
    torch.testing.assert_close(folded(batch), expected, atol=1e-4, rtol=1e-5)


def test_wide_networks_go_without_threads_of_another_library() -> None:
    """SciPy's BLAS starts its own for large products."""
    folded = FoldedTimNet(trained(**SHAPES["default recipe"]))
    assert folded._suits_one_call(torch.zeros(430, 39))
    assert not folded._suits_one_call(torch.zeros(460, 39))
    folded = FoldedTimNet(trained(pooling="statistics", hidden_size=128, num_hidden_layers=1))
    assert not folded._suits_one_call(torch.zeros(78, 39))


def test_leaves_model_and_clips_as_they_are() -> None:
    model = trained()
    weights = {name: values.clone() for name, values in model.state_dict().items()}
    batch = clips(12, 9)
    copies = [clip.clone() for clip in batch]

    FoldedTimNet(model)(batch)

    assert all(bool((model.state_dict()[name] == weights[name]).all()) for name in weights)
    assert all(bool((one == other).all()) for one, other in zip(batch, copies, strict=True))


@pytest.mark.usefixtures("either_way")
def test_travels_to_other_processes() -> None:
    model = trained(**SHAPES["default recipe"])
    folded = FoldedTimNet(model)
    fresh = len(pickle.dumps(folded))
    for batch in (clips(20, 30), clips(20), clips(*[80] * 9)):
        folded(batch)
    copy = pickle.loads(pickle.dumps(folded))
    assert len(pickle.dumps(folded)) == fresh, "no weight travels twice"

    torch.testing.assert_close(copy(clips(20, 30)), folded(clips(20, 30)), atol=0, rtol=0)

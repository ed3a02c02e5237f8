# SPDX-License-Identifier: Apache-2.0
"""What the feature extractor promises: the paper's features, and features that do not flinch."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from timnet_hf import TimNetConfig, TimNetForAudioClassification, load_audio, resample
from timnet_hf import mfcc_timnet as mfcc
from timnet_hf.feature_extraction_timnet import (
    PAPER_NUM_SAMPLES,
    PRESETS,
    TimNetFeatureExtractor,
)

RATE = 16_000


@pytest.fixture(scope="module")
def extractor() -> TimNetFeatureExtractor:
    return TimNetFeatureExtractor()


@pytest.fixture(scope="module")
def paper() -> TimNetFeatureExtractor:
    return TimNetFeatureExtractor.from_preset("paper")


@pytest.fixture(scope="module")
def clips(make_speech) -> list[np.ndarray]:
    """Three clips of unequal length."""
    return [make_speech(duration, seed=i) for i, duration in enumerate((0.5, 1.3, 0.8))]


# --- the paper's preset -------------------------------------------------------------------------


def test_the_papers_features_equal_librosas(reference_dir: Path, emodb_dir: Path, paper):
    reference = np.load(reference_dir / "librosa_mfcc_emodb.npz")
    assert len(reference.files) == 20
    for name in reference.files:
        waveform = load_audio(emodb_dir / "wav" / name, paper.sampling_rate)
        features = paper(waveform, sampling_rate=22_050, return_tensors="np")["input_values"][0]
        assert features.shape == (188, 39)
        assert np.abs(features - reference[name]).max() <= 5e-3, name


def test_they_do_at_iemocaps_length_too(reference_dir: Path, emodb_dir: Path):
    reference = np.load(reference_dir / "keras_timnet_4class.npz")
    paper = TimNetFeatureExtractor.from_preset("paper", corpus="iemocap")
    for name, wanted in zip(reference["names"], reference["mfcc"], strict=True):
        waveform = load_audio(emodb_dir / "wav" / str(name), paper.sampling_rate)
        assert np.abs(paper.extract(waveform).numpy() - wanted).max() <= 5e-3, name


def test_the_definition_written_out_in_numpy(paper, make_speech):
    """STFT 2048/512, Hann, centred, power → 128 Slaney bands → dB, floor 80 under → DCT-II."""
    librosa_filters = pytest.importorskip("librosa.filters")
    waveform = make_speech(4.0, 22_050)
    padded = np.pad(waveform, (96_000 - len(waveform)) // 2)
    padded = np.pad(padded, 1024)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2048)[::512]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    bands = power @ librosa_filters.mel(sr=22_050, n_fft=2048, n_mels=128).T
    decibel = 10 * np.log10(np.maximum(bands, 1e-10))
    decibel = np.maximum(decibel, decibel.max() - 80)
    angles = np.pi / 128 * (np.arange(128)[:, None] + 0.5) * np.arange(39)
    dct = np.cos(angles) * np.sqrt(np.where(np.arange(39) == 0, 1, 2) / 128)
    assert np.abs(paper.extract(waveform).numpy() - decibel @ dct).max() <= 5e-3


@pytest.mark.parametrize(("corpus", "samples"), sorted(PAPER_NUM_SAMPLES.items()))
def test_each_corpus_has_its_clip_length(corpus, samples):
    paper = TimNetFeatureExtractor.from_preset("paper", corpus=corpus)
    assert paper.num_samples == samples
    assert paper.extract(np.ones(300, np.float32)).shape == (samples // 512 + 1, 39)


@pytest.mark.parametrize("length", [1, 95_999, 96_000, 96_001, 150_001])
def test_it_pads_and_crops_evenly_at_both_ends(length, paper):
    waveform = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    excess = length - 96_000
    if excess > 0:
        centred = waveform[excess // 2 : excess // 2 + 96_000]
    else:
        centred = np.pad(waveform, (-excess // 2, -excess - (-excess // 2)))
    assert torch.equal(paper.extract(waveform), paper.extract(centred))


def test_a_preset_can_be_altered_and_an_unknown_one_is_refused():
    assert TimNetFeatureExtractor.from_preset("paper", num_samples=1000).num_samples == 1000
    other = TimNetFeatureExtractor.from_preset("paper", corpus="mine")
    assert other.num_samples == PAPER_NUM_SAMPLES["emodb"]
    with pytest.raises(ValueError, match="Unknown preset 'best'. Choose one of default, paper"):
        TimNetFeatureExtractor.from_preset("best")


# --- the default preset: same clip, same answer -------------------------------------------------


def answer(extractor: TimNetFeatureExtractor, waveform: np.ndarray) -> torch.Tensor:
    """Logits, of about 1, of a fixed network on a waveform."""
    torch.manual_seed(0)
    model = TimNetForAudioClassification(TimNetConfig(num_labels=4)).eval()
    torch.nn.init.uniform_(model.classifier.weight, -30, 30)
    scaled = TimNetFeatureExtractor(mean=[-10.0] + [0.0] * 38, std=[60.0] + [20.0] * 38)
    with torch.no_grad():
        return model(**scaled(waveform, sampling_rate=RATE, return_tensors="pt")).logits[0]


@pytest.mark.parametrize("gain_db", [-40, -12, 12, 30])
def test_the_level_does_not_matter(gain_db, extractor, speech):
    louder = speech * np.float32(10 ** (gain_db / 20))
    plain, other = extractor.extract(speech), extractor.extract(louder)
    assert plain.shape == other.shape and (plain - other).abs().max() <= 1e-3


@pytest.mark.parametrize("start", [0, 300, 1000])
@pytest.mark.parametrize("end", [0, 300])
def test_silence_at_the_ends_does_not_matter(start, end, extractor, speech):
    """Whole frame steps of digital silence leave every frame as it was."""
    padded = np.pad(speech, (start * RATE // 1000, end * RATE // 1000))
    plain, other = extractor.extract(speech), extractor.extract(padded)
    assert plain.shape == other.shape and (plain - other).abs().max() <= 1e-3


def test_silence_of_any_length_hardly_matters(extractor, speech):
    wanted = answer(extractor, speech)
    for start in (77, 160, 250):  # parts of a frame step
        assert (answer(extractor, np.pad(speech, (start, 0))) - wanted).abs().max() <= 0.02


@pytest.mark.parametrize("rate", [22_050, 24_000, 44_100, 48_000])
def test_the_sampling_rate_of_the_source_does_not_matter(rate, extractor, make_speech):
    """Every coefficient stays within 0.1 (they reach -258), every logit within 0.001."""
    sound = make_speech(2.0, 48_000)
    at_16k = resample(sound, 48_000, RATE)
    other = resample(resample(sound, 48_000, rate) if rate != 48_000 else sound, rate, RATE)
    one, two = extractor.extract(at_16k), extractor.extract(other)
    assert abs(len(one) - len(two)) <= 1
    shared = min(len(one), len(two))
    assert (one[:shared] - two[:shared]).abs().max() <= 0.1
    assert (answer(extractor, at_16k) - answer(extractor, other)).abs().max() <= 1e-3


def test_real_speech_scores_alike_through_every_rate(emodb_dir: Path, extractor):
    for name in ("03a01Fa.wav", "16b03Ad.wav"):
        waveform = load_audio(emodb_dir / "wav" / name, RATE)
        wanted = answer(extractor, waveform)
        for rate in (22_050, 44_100, 48_000):
            other = resample(resample(waveform, RATE, rate), rate, RATE)
            assert (answer(extractor, other) - wanted).abs().max() <= 1e-3, (name, rate)


# --- awkward clips ------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("length", [1, 2, 319, 320, 321, 799, 1023, 1024, 5000])
def test_any_clip_has_finite_frames_however_short(preset, length):
    extractor = TimNetFeatureExtractor.from_preset(preset)
    waveform = np.random.default_rng(0).uniform(-1, 1, length).astype(np.float32)
    features = extractor.extract(waveform)
    assert features.dtype == torch.float32 and features.shape[1] == 39 and len(features) >= 1
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-12])
def test_silence_gives_frames_that_are_all_alike(preset, level):
    extractor = TimNetFeatureExtractor.from_preset(preset)
    features = extractor.extract(np.full(8000, level, np.float32))
    assert torch.isfinite(features).all() and (features == features[0]).all()
    assert len(features) == (8000 // 320 + 1 if preset == "default" else 188)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize(
    "waveform",
    [
        np.ones(8000),
        np.sign(np.sin(np.arange(8000) / 9)),
        32768 * np.sin(np.arange(8000) / 9),
        np.eye(1, 8000, 4000)[0],
        1e-6 * np.sin(np.arange(8000) / 9),
    ],
    ids=["constant", "clipped", "unscaled 16 bits", "one click", "whisper of a whisper"],
)
def test_odd_signals_have_finite_frames(preset, waveform):
    features = TimNetFeatureExtractor.from_preset(preset).extract(waveform)
    assert torch.isfinite(features).all() and len(features) >= 1


@pytest.mark.parametrize(
    ("waveform", "match"),
    [
        (np.zeros(0, np.float32), "empty"),
        ([], "empty"),
        (np.array([0.1, np.nan]), "NaN or infinite"),
        (np.array([0.1, np.inf]), "NaN or infinite"),
        (np.array([0.1, 1e30]), "reaches 1e.30. Scale it"),
        (np.zeros((2, 100), np.int16)[0], "int16.*divided by 32768"),
        (np.zeros(100, np.complex64), "complex64"),
        (np.zeros((100, 2, 1)), "mono"),
        ([np.zeros((2, 100))], "mono"),
        ([np.zeros(100), np.zeros((2, 100))], "mono"),
        (np.zeros((0, 100)), "batch is empty"),
    ],
)
def test_what_is_no_waveform_is_refused(waveform, match, extractor):
    with pytest.raises(ValueError, match=match):
        extractor(waveform, sampling_rate=RATE)


def test_another_sampling_rate_is_refused_with_the_way_out(extractor, speech):
    with pytest.raises(ValueError, match=r"16000 Hz, not at 44100 Hz.*load_audio.*resample"):
        extractor(speech, sampling_rate=44_100)


def test_a_missing_sampling_rate_is_warned_about(extractor, speech, caplog, monkeypatch):
    logger = logging.getLogger("timnet_hf.feature_extraction_timnet")
    monkeypatch.setattr(logger, "propagate", True)
    logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        extractor(speech)
    assert "Pass sampling_rate" in caplog.text


# --- forms of input and output ------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        torch.from_numpy,
        lambda x: x.tolist(),
        lambda x: tuple(x.tolist()),
        lambda x: x.astype(np.float64),
        lambda x: torch.from_numpy(x).double().requires_grad_(),
        lambda x: x[::-1][::-1],
    ],
    ids=["numpy", "torch", "list", "tuple", "float64", "with gradient", "negative strides"],
)
def test_one_clip_may_come_in_any_form(form, extractor, clips):
    wanted = extractor.extract(clips[0])
    for given in (form(clips[0]), [form(clips[0])]):
        got = extractor(given, sampling_rate=RATE, return_tensors="pt")["input_values"]
        assert torch.equal(got[0], wanted)


def test_a_batch_may_be_a_list_a_tuple_or_an_array(extractor, clips):
    equal = [clip[:8000] for clip in clips]
    forms = [
        equal,
        tuple(equal),
        np.stack(equal),
        torch.tensor(np.stack(equal)),
        [*map(list, equal)],
    ]
    outputs = [extractor(f, sampling_rate=RATE, return_tensors="pt").input_values for f in forms]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_a_clip_has_the_same_frames_in_a_batch_and_alone(extractor, clips):
    batch = extractor(clips, sampling_rate=RATE, return_tensors="pt")
    lengths = batch["attention_mask"].sum(1).tolist()
    for row, clip in enumerate(clips):
        alone = extractor(clip, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        assert len(alone) == lengths[row]
        assert torch.equal(batch["input_values"][row, : lengths[row]], alone)
        assert (batch["input_values"][row, lengths[row] :] == 0).all()


LENGTHS = [26, 66, 41]  # frames of the three clips: duration / 20 ms + 1


@pytest.mark.parametrize(
    ("options", "frames", "valid"),
    [
        ({}, 66, LENGTHS),
        ({"padding": True}, 66, LENGTHS),
        ({"padding": "longest"}, 66, LENGTHS),
        ({"padding": "longest", "pad_to_multiple_of": 32}, 96, LENGTHS),
        ({"padding": "max_length", "max_length": 80}, 80, LENGTHS),
        ({"padding": "max_length", "max_length": 40, "truncation": True}, 40, [26, 40, 40]),
        ({"padding": "longest", "max_length": 50, "truncation": True}, 50, [26, 50, 41]),
        ({"max_length": 5, "truncation": True}, 5, [5, 5, 5]),
    ],
)
@pytest.mark.parametrize("tensors", ["np", "pt"])
def test_padding_and_truncation(options, frames, valid, tensors, clips):
    extractor = TimNetFeatureExtractor(trim_db=None)
    batch = extractor(clips, sampling_rate=RATE, return_tensors=tensors, **options)
    assert isinstance(batch["input_values"], np.ndarray if tensors == "np" else torch.Tensor)
    assert tuple(batch["input_values"].shape) == (3, frames, 39)
    assert tuple(batch["attention_mask"].shape) == (3, frames)
    assert [int(row.sum()) for row in batch["attention_mask"]] == valid
    whole = extractor(clips, sampling_rate=RATE, return_tensors=tensors)["input_values"]
    for row, length in enumerate(valid):
        assert bool((batch["input_values"][row][:length] == whole[row][:length]).all())


def test_without_padding_each_clip_keeps_its_length(clips):
    extractor = TimNetFeatureExtractor(trim_db=None)
    batch = extractor(clips, sampling_rate=RATE, padding=False)
    assert [features.shape for features in batch["input_values"]] == [(n, 39) for n in LENGTHS]
    with pytest.raises(ValueError):
        extractor(clips, sampling_rate=RATE, padding=False, return_tensors="pt")


@pytest.mark.parametrize("options", [{"truncation": True}, {"padding": "max_length"}])
def test_a_length_must_be_given_to_cut_or_fill_to(options, extractor, clips):
    with pytest.raises(ValueError, match="max_length"):
        extractor(clips, sampling_rate=RATE, **options)


def test_clips_can_be_padded_on_the_left_and_score_the_same(clips):
    torch.manual_seed(0)
    model = TimNetForAudioClassification(TimNetConfig(num_labels=4)).eval()
    logits = []
    for side in ("left", "right"):
        extractor = TimNetFeatureExtractor(padding_side=side, padding_value=-7.0)
        batch = extractor(clips, sampling_rate=RATE, return_tensors="pt")
        assert bool(batch["attention_mask"][0, 0] == 1) == (side == "right")
        with torch.no_grad():
            logits.append(model(**batch).logits)
    assert (logits[0] - logits[1]).abs().max() <= 1e-4


def test_the_mask_can_be_left_out(extractor, clips):
    batch = extractor(clips, sampling_rate=RATE, return_attention_mask=False, return_tensors="pt")
    assert list(batch) == ["input_values"]
    assert extractor.model_input_names == ["input_values", "attention_mask"]


# --- normalisation ------------------------------------------------------------------------------


def test_each_coefficient_is_normalised_where_statistics_are_given(extractor, speech):
    plain = extractor.extract(speech)
    mean, std = plain.mean(0), plain.std(0)
    scaling = TimNetFeatureExtractor(mean=mean.tolist(), std=std.tolist())
    got = scaling(speech, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
    assert torch.allclose(got, (plain - mean) / std, atol=1e-5)
    scaling.do_normalize = False
    off = scaling(speech, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
    assert torch.equal(off, plain)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"feature_size": 0}, "feature_size"),
        ({"feature_size": 65}, "num_mel_bins"),
        ({"feature_size": 39.0}, "feature_size"),
        ({"win_length": 0}, "win_length"),
        ({"win_length": 2048}, "n_fft"),
        ({"n_fft": 10**9}, "n_fft"),
        ({"num_mel_bins": 10**6}, "num_mel_bins"),
        ({"num_mel_bins": "64"}, "num_mel_bins"),
        ({"hop_length": 0}, "hop_length"),
        ({"sampling_rate": 0}, "sampling_rate"),
        ({"sampling_rate": 15_000}, "mel range"),
        ({"min_frequency": -1}, "mel range"),
        ({"min_frequency": 7600}, "mel range"),
        ({"max_frequency": math.nan}, "mel range"),
        ({"max_frequency": 8001}, "mel range"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 10**12}, "num_samples"),
        ({"top_db": -1}, "top_db"),
        ({"top_db": math.nan}, "top_db"),
        ({"trim_db": 0}, "trim_db"),
        ({"trim_db": math.inf}, "trim_db"),
        ({"padding_value": math.nan}, "padding_value"),
        ({"mean": [0.0] * 39}, "both mean and std"),
        ({"std": [1.0] * 39}, "both mean and std"),
        ({"mean": [0.0] * 38, "std": [1.0] * 39}, "mean has 38 values, not 39"),
        ({"mean": [0.0] * 39, "std": [0.0] * 39}, "std must be above 0"),
        ({"mean": [math.nan] * 39, "std": [1.0] * 39}, "mean must be finite"),
        ({"mean": [0.0] * 39, "std": [math.inf] * 39}, "std must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        TimNetFeatureExtractor(**settings)


# --- saving -------------------------------------------------------------------------------------

UNUSUAL = {
    "feature_size": 20,
    "sampling_rate": 8000,
    "padding_value": -1.0,
    "n_fft": 512,
    "win_length": 400,
    "hop_length": 100,
    "num_mel_bins": 40,
    "min_frequency": 20.0,
    "max_frequency": 3800.0,
    "top_db": None,
    "normalize_level": False,
    "trim_db": 25.0,
    "num_samples": 16_000,
    "do_normalize": True,
    "mean": [float(i) for i in range(20)],
    "std": [1.0 + i for i in range(20)],
}


def test_every_setting_survives_json_and_nothing_else_is_in_it(tmp_path: Path, speech):
    extractor = TimNetFeatureExtractor(**UNUSUAL)
    before = extractor(speech, sampling_rate=8000, return_tensors="np")["input_values"]
    extractor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    extra = {"feature_extractor_type", "padding_side", "return_attention_mask"}
    assert set(stored) == set(UNUSUAL) | extra
    assert {name: stored[name] for name in UNUSUAL} == UNUSUAL

    loaded = TimNetFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    after = loaded(speech, sampling_rate=8000, return_tensors="np")["input_values"]
    assert np.array_equal(before, after)
    assert TimNetFeatureExtractor.from_dict(extractor.to_dict()).to_dict() == extractor.to_dict()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_copy_gives_the_same_features(duplicate, speech):
    extractor = TimNetFeatureExtractor(mean=[1.0] * 39, std=[2.0] * 39)
    twin = duplicate(extractor)
    assert twin.to_dict() == extractor.to_dict()
    assert torch.equal(twin.extract(speech), extractor.extract(speech))


def test_statistics_may_come_as_arrays(tmp_path: Path):
    extractor = TimNetFeatureExtractor(mean=np.zeros(39, np.float32), std=np.ones(39))
    extractor.save_pretrained(tmp_path)
    assert TimNetFeatureExtractor.from_pretrained(tmp_path).std == [1.0] * 39


def test_frames_per_second(extractor):
    assert extractor.frames_per_second == 50


def test_a_read_only_waveform_is_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    clip = np.zeros(16_000, dtype=np.float32)
    clip.flags.writeable = False
    TimNetFeatureExtractor().extract(clip)
    assert not recwarn.list


def test_the_default_analysis_is_librosas_but_for_level_and_silence(emodb_dir: Path) -> None:
    librosa = pytest.importorskip("librosa")
    extractor = TimNetFeatureExtractor(normalize_level=False, trim_db=None)
    paths = sorted(emodb_dir.rglob("*.wav"))[::27]
    assert len(paths) >= 19
    for path in paths:
        waveform = load_audio(path, 16_000)
        power = librosa.feature.melspectrogram(
            y=waveform, sr=16_000, n_fft=1024, win_length=800, hop_length=320, n_mels=64,
            fmin=50, fmax=7_600,
        )  # fmt: skip
        expected = librosa.feature.mfcc(S=librosa.power_to_db(power, top_db=60), n_mfcc=39).T
        np.testing.assert_allclose(extractor.extract(waveform), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_defaults_of_the_caller_do_not_reach_the_features(default: torch.dtype) -> None:
    clip = np.sin(np.arange(8_000) / 7).astype(np.float32)
    extractor = TimNetFeatureExtractor()
    expected = extractor.extract(clip)
    caches = (mfcc.analysis_window, mfcc.mel_filters, mfcc.cosine_transform)
    for constant in caches:
        constant.cache_clear()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        with torch.device("meta"):
            assert torch.equal(extractor.extract(clip), expected)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(extractor.extract(clip), expected)


@pytest.mark.parametrize("given", ["a.wav", {"array": np.zeros(9)}, None])
def test_what_is_no_waveform_is_called_by_its_kind(given: Any) -> None:
    with pytest.raises(ValueError, match=f"got {type(given).__name__}"):
        TimNetFeatureExtractor()(given)

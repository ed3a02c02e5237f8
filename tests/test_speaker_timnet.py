# SPDX-License-Identifier: Apache-2.0
"""Know the voice: profiles, what they are blended with, and what adapting does to the features."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from timnet_hf import TimNetConfig, TimNetFeatureExtractor, TimNetForAudioClassification
from timnet_hf.speaker_timnet import (
    LARGEST_SHARE,
    PRIOR_FRAMES,
    PRIOR_RECORDINGS,
    SpeakerError,
    SpeakerProfile,
    blend,
    logit_offset,
    make_profile,
)


def noise(seed: int, seconds: float = 1.0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(int(16_000 * seconds))
    return (0.1 * samples).astype("float32")


@pytest.fixture
def extractor():
    return TimNetFeatureExtractor(mean=[1.0] * 39, std=[2.0] * 39)


def test_a_profile_is_mean_and_deviation_over_all_frames_of_all_recordings():
    clips = [np.random.default_rng(seed).normal(3, 2, (50, 4)) for seed in range(3)]
    profile = make_profile("anna", clips, {})
    frames = np.concatenate(clips)
    assert profile.frames == 150 and profile.recordings == 3
    assert np.allclose(profile.mean, frames.mean(0), atol=1e-6)
    assert np.allclose(profile.std, frames.std(0), atol=1e-6)


def test_few_frames_weigh_little_and_many_weigh_three_quarters():
    def blended(frames):
        return blend(SpeakerProfile("a", [10.0], [3.0], frames, 1, {}), [0.0], [1.0])

    mean, std = blended(PRIOR_FRAMES)
    share = LARGEST_SHARE / 2
    assert np.allclose(mean, 10 * share)
    assert np.allclose(std, np.sqrt(9 * share + 1 * (1 - share)))
    assert blended(1)[0] < 0.1 and np.allclose(blended(10**7)[0], 10 * LARGEST_SHARE, atol=1e-3)


def test_the_usual_answer_is_taken_off_the_more_the_more_recordings_it_is_of():
    usual = [3.0, 0.0, -3.0]
    assert np.allclose(logit_offset(usual, PRIOR_RECORDINGS), [-1.5, 0, 1.5])
    assert np.abs(logit_offset(usual, 1)).max() < 0.5
    assert np.allclose(logit_offset(usual, 10**6), [-3, 0, 3], atol=1e-3)
    assert np.allclose(logit_offset([2.0, 2.0], 10), 0)  # no label above another


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = TimNetConfig(hidden_size=8, num_hidden_layers=2, num_labels=3, temperature=2.0)
    return TimNetForAudioClassification(config).eval()


def test_an_adapted_model_takes_its_usual_answer_off(extractor, model, tmp_path):
    clips = [noise(seed) for seed in range(3)]
    profile = model.describe_speaker("anna", clips, extractor)
    profile.save(tmp_path / "anna.json")
    features = extractor.adapted_to(profile)
    inputs = [features(clip, sampling_rate=16_000, return_tensors="pt") for clip in clips]
    adapted = model.adapted_to(tmp_path / "anna.json")
    with torch.no_grad():
        before = np.array([model(**one).logits[0].numpy() for one in inputs])
        after = np.array([adapted(**one).logits[0].numpy() for one in inputs])
        again = np.array([model(**one).logits[0].numpy() for one in inputs])
    assert np.allclose(profile.usual_logits, before.mean(0), atol=1e-5)
    assert np.allclose(after, before + logit_offset(before.mean(0), 3), atol=1e-5)
    assert np.array_equal(again, before)
    weights, own = model.state_dict(), adapted.state_dict()
    differing = {name for name in weights if not torch.equal(own[name], weights[name])}
    assert differing == {"classifier.bias"}


def test_answers_are_the_plain_ones_whatever_the_model_is_set_to(extractor, model):
    plain = model.describe_speaker("anna", [noise(0)], extractor)
    warm = copy.deepcopy(model).train()
    warm.config.apply_temperature = True
    again = warm.describe_speaker("anna", [noise(0)], extractor)
    assert np.allclose(again.usual_logits, plain.usual_logits)
    assert warm.training
    warm.classifier.eval()  # frozen while the rest learns
    warm.describe_speaker("anna", [noise(0)], extractor)
    assert warm.training and not warm.classifier.training


def test_a_model_of_a_short_type_is_asked_in_that_type(extractor, model):
    plain = model.describe_speaker("anna", [noise(0)], extractor)
    short = copy.deepcopy(model).bfloat16().describe_speaker("anna", [noise(0)], extractor)
    assert np.allclose(short.usual_logits, plain.usual_logits, atol=0.1)


def test_the_answers_of_another_model_are_refused(extractor, model):
    profile = model.describe_speaker("anna", [noise(0)], extractor)
    other = TimNetForAudioClassification(model.config).eval()
    with pytest.raises(SpeakerError, match="enrolled with another model"):
        other.adapted_to(profile)


def test_a_profile_without_answers_adapts_the_features_alone(extractor, model):
    profile = extractor.describe_speaker("anna", [noise(0)])
    assert profile.usual_logits is None
    assert torch.equal(model.adapted_to(profile).classifier.bias, model.classifier.bias)


def test_labels_that_do_not_stand_against_each_other_are_left_alone(extractor, model):
    each = copy.deepcopy(model)
    each.config.problem_type = "multi_label_classification"
    assert each.describe_speaker("anna", [noise(0)], extractor).usual_logits is None


def test_a_profile_survives_its_file_and_holds_no_sound(extractor, tmp_path):
    profile = extractor.describe_speaker("anna", [noise(0), noise(1)])
    path = tmp_path / "anna.json"
    profile.save(path)
    assert SpeakerProfile.load(path) == profile
    assert path.stat().st_size < 5_000 and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_adapting_standardises_by_the_voice_and_leaves_the_original_alone(extractor):
    clips = [noise(seed, 20) for seed in range(3)]
    profile = extractor.describe_speaker("anna", clips)
    common, adapted = (
        np.asarray(one(clips[0], sampling_rate=16_000)["input_values"][0])
        for one in (extractor, extractor.adapted_to(profile))
    )
    mean, std = blend(profile, extractor.mean, extractor.std)
    assert np.allclose(adapted * std + mean, common * 2 + 1, atol=1e-3)
    assert np.abs(adapted.mean(0)).mean() < 0.5 * np.abs(common.mean(0)).mean()
    assert extractor.mean == [1.0] * 39 and extractor.std == [2.0] * 39


def test_adapting_takes_a_file_a_dictionary_or_a_profile(extractor, tmp_path):
    profile = extractor.describe_speaker("anna", [noise(0)])
    profile.save(tmp_path / "anna.json")
    values = json.loads((tmp_path / "anna.json").read_text())
    wanted = extractor.adapted_to(profile).mean
    assert extractor.adapted_to(values).mean == wanted
    assert extractor.adapted_to(tmp_path / "anna.json").mean == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"name": "a", "mean": [0], "std": [0], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [0], "std": [1, 1], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [NaN], "std": [1], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [0], "std": [1], "frames": 0, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [0], "std": [1], "frames": 5, "recordings": 0, "features": {}}',
        '{"name": "a", "mean": [0], "std": [1], "frames": 5, "recordings": 1, "features": {},'
        ' "usual_logits": [NaN]}',
        '{"name": "a", "mean": "x", "std": [1], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [0], "std": ["1"], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [false], "std": [1], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": 5, "mean": [0], "std": [1], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [1e9], "std": [1], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [0], "std": [1e9], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [0], "std": [1e-9], "frames": 5, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [0], "std": [1], "frames": true, "recordings": 1, "features": {}}',
        '{"name": "a", "mean": [0], "std": [1], "frames": 1%s, "recordings": 1, "features": {}}'
        % ("0" * 400),
        '{"name": "a", "mean": [0], "std": [1], "frames": 5, "recordings": 1, "features": {},'
        ' "usual_logits": [1e30]}',
    ],
)
def test_what_is_no_profile_is_named_and_refused(text, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(SpeakerError, match=r"broken\.json.*timnet enroll"):
        SpeakerProfile.load(path)


def test_a_profile_of_other_features_is_refused(extractor):
    profile = TimNetFeatureExtractor(hop_length=160).describe_speaker("anna", [noise(0)])
    with pytest.raises(SpeakerError, match="another hop_length"):
        extractor.adapted_to(profile)


def test_a_model_without_statistics_cannot_be_adapted(extractor):
    profile = extractor.describe_speaker("anna", [noise(0)])
    with pytest.raises(SpeakerError, match="does not standardise"):
        TimNetFeatureExtractor().adapted_to(profile)


def test_no_recording_makes_no_profile(extractor):
    with pytest.raises(SpeakerError, match="Give at least one"):
        extractor.describe_speaker("anna", [])


def test_adapting_anew_forgets_the_voice_before(extractor, model):
    anna, otto = (model.describe_speaker("x", [noise(seed)], extractor) for seed in (0, 1))
    both, alone = (one.adapted_to(otto) for one in (extractor.adapted_to(anna), extractor))
    assert (both.mean, both.std) == (alone.mean, alone.std)
    twice, once = (one.adapted_to(otto) for one in (model.adapted_to(anna), model))
    assert torch.equal(twice.classifier.bias, once.classifier.bias)
    assert not torch.equal(once.classifier.bias, model.adapted_to(anna).classifier.bias)
    assert set(both.to_dict()) == {*extractor.to_dict(), "adapted_to_speaker"}


def test_what_is_done_to_an_adapted_copy_leaves_the_model_alone(extractor, model):
    profile = model.describe_speaker("anna", [noise(0)], extractor)
    base = copy.deepcopy(model).requires_grad_(False).train()
    adapted = base.adapted_to(profile).bfloat16().eval()
    assert base.dtype == torch.float32 and all(part.training for part in base.modules())
    assert not adapted.classifier.bias.requires_grad
    assert not getattr(base.config, "adapted_to_speaker", False)


def test_what_was_saved_adapted_is_not_adapted_once_more(extractor, model, tmp_path):
    profile = model.describe_speaker("anna", [noise(0)], extractor)
    for part, message in ((model, "This model was saved"), (extractor, "extractor was saved")):
        part.adapted_to(profile).save_pretrained(tmp_path)
        loaded = type(part).from_pretrained(tmp_path)
        with pytest.raises(SpeakerError, match=message):
            loaded.adapted_to(profile)


def test_a_model_loaded_in_bfloat16_is_still_the_same(extractor, model):
    profile = model.describe_speaker("anna", [noise(0)], extractor)
    rounded = copy.deepcopy(model).bfloat16()
    assert rounded.adapted_to(profile).classifier.bias.dtype == torch.bfloat16

# SPDX-License-Identifier: Apache-2.0
"""From a model to one ONNX file that hears waveforms: features, network and labels in it.

Whoever has ONNX Runtime, in any language, can name emotions with the file and nothing else. All
that is affine is multiplied out on the way: batch normalisation into the convolution before it, the
mean and deviation of the features and their cosine transform into the first layer, and the scales'
normalisation, fusion, classifier and temperature into one matrix.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .output_folder import in_one_step
from .prediction import ModelError, load_model, resolve_model

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import TimNetForAudioClassification
    from .onnx_features import Analysis
    from .onnx_network import Network

#: How far probabilities of an ONNX file may lie from PyTorch's, on the clips it is checked with.
TOLERANCE = 1e-4
INT8_TOLERANCE = 0.05


class ExportError(ValueError):
    """A model cannot be exported; the message says why, and what to do."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        size: In bytes.
        deviation: Largest difference of a probability from PyTorch's on generated clips.
    """

    path: Path
    size: int
    deviation: float


def export_onnx(
    model: str | Path | None,
    output: str | Path,
    *,
    features_in: str | Path | None = None,
    int8: bool = False,
    revision: str | None = None,
    speaker: str | Path | None = None,
) -> list[Exported]:
    """Write a model as ONNX, and check the files against PyTorch before they take their names.

    Args:
        model: A shipped checkpoint (None: the default one), a folder, or a Hub id.
        output: The file that hears waveforms, see `onnx_network.waveform_model`.
        features_in: Also write one that takes the feature extractor's output, with this name.
        int8: Store and multiply the network's weights as 8-bit integers. The features stay exact.
            What is multiplied is rounded on a scale that the whole batch shares, so a clip's
            probabilities depend a little on those beside it.
        revision: Branch, tag or commit on the Hub.
        speaker: The profile of an enrolled voice; the file then takes every recording to be of it.

    Returns:
        A record of each file.

    Raises:
        ExportError: A name does not end in ``.onnx``, or a file deviates too much from PyTorch.
        ModelError: There is no such model, or it is broken.
        SpeakerError: The profile is none, or does not fit the model.
        ImportError: onnx or onnxruntime is not installed.
    """
    from .onnx_network import features_model, waveform_model

    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'Exporting needs {error.name}: pip install "timnet-hf[onnx]".'
        ) from error
    paths = [Path(output)] if features_in is None else [Path(output), Path(features_in)]
    for path in paths:
        if path.suffix.lower() != ".onnx":
            raise ExportError(f"{path}: the name must end in .onnx; that is how it is recognised.")
    if len({path.absolute() for path in paths}) < len(paths):
        raise ExportError(f"{paths[0]}: both files have this name. Give them different ones.")
    network, extractor = load_model(model, revision)
    if speaker is not None:
        network, extractor = network.adapted_to(speaker), extractor.adapted_to(speaker)
    metadata = _metadata(network, extractor, _weights_checksum(model, revision))
    metadata["weights"] = "int8" if int8 else "float32"
    graphs = [
        waveform_model(
            _analysis(extractor),
            _folded(network, extractor),
            {"input": "waveform", **metadata},
        )
    ]
    if features_in is not None:
        graphs.append(features_model(_folded(network), {"input": "features", **metadata}))
    checked = []
    for path, graph in zip(paths, graphs, strict=True):
        content = _quantized(graph) if int8 else graph.SerializeToString(deterministic=True)
        deviation = _deviation(content, network, extractor)
        limit = INT8_TOLERANCE if int8 else TOLERANCE
        if not deviation <= limit:
            advice = "Export it without int8." if int8 else "Its weights may be damaged."
            raise ExportError(
                f"{path}: not written, because its probabilities lie {deviation:.2g} from "
                f"PyTorch's, more than {limit:g}. {advice}"
            )
        checked.append((path, content, deviation))
    written = []
    for path, content, deviation in checked:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_one_step(path) as part:
            part.write_bytes(content)
        written.append(Exported(path, len(content), deviation))
    return written


def _metadata(
    model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor, checksum: str | None
) -> dict[str, str]:
    """What a program needs to know, as the text that ONNX files hold."""
    config = model.config
    names: Any = config.id2label
    settings = {
        name: value
        for name, value in json.loads(extractor.to_json_string()).items()
        if name != "auto_map"
    }
    return {
        "format": "timnet-hf 1",
        "timnet_hf_version": __version__,
        "labels": json.dumps([str(names[index]) for index in range(model.num_labels)]),
        "sampling_rate": str(extractor.sampling_rate),
        "hop_length": str(extractor.hop_length),
        "num_samples": str(extractor.num_samples or ""),
        "temperature": str(config.temperature),
        "apply_temperature": json.dumps(bool(config.apply_temperature)),
        "problem_type": config.problem_type or "single_label_classification",
        "feature_extractor": json.dumps(settings, sort_keys=True),
        **({} if checksum is None else {"model_sha256": checksum}),
    }


def _weights_checksum(model: str | Path | None, revision: str | None) -> str | None:
    """SHA-256 of the weights' file, as ``sha256sum`` prints it."""
    source = resolve_model(model)
    if not Path(source).is_dir():
        from transformers.utils.hub import cached_file

        found = cached_file(source, "model.safetensors", revision=revision)
        return None if found is None else hashlib.sha256(Path(found).read_bytes()).hexdigest()
    path = Path(source, "model.safetensors")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


# --- PyTorch → plain arrays ---------------------------------------------------------------------


def _analysis(extractor: TimNetFeatureExtractor) -> Analysis:
    """Window and mel filters of a feature extractor, and its settings."""
    import torch
    from torchaudio.functional import melscale_fbanks

    from .feature_extraction_timnet import SILENCE_POWER
    from .onnx_features import Analysis

    filters = melscale_fbanks(
        extractor.n_fft // 2 + 1,
        extractor.min_frequency,
        extractor.max_frequency,
        extractor.num_mel_bins,
        extractor.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return Analysis(
        window=torch.hann_window(extractor.win_length, periodic=True).numpy(),
        filters=filters.numpy(),
        n_fft=extractor.n_fft,
        hop_length=extractor.hop_length,
        num_samples=extractor.num_samples,
        normalize_level=extractor.normalize_level,
        trim_db=extractor.trim_db,
        top_db=extractor.top_db,
        silence_power=SILENCE_POWER,
    )


def _folded(
    model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor | None = None
) -> Network:
    """Multiply out what is affine; with an extractor, what it does to the log of the power too."""
    from .onnx_network import Network

    config = model.config
    # The parameters' names are those of the file of weights, whatever the code looks like.
    weights = {
        name: value.detach().cpu().double().numpy() for name, value in model.state_dict().items()
    }
    embed = weights["timnet.embed.weight"][:, :, 0]
    bias = weights["timnet.embed.bias"]
    if extractor is not None:
        matrix, offset = _cepstra(extractor)  # features = matrix · log(power) + offset
        bias = bias + embed @ offset
        embed = embed @ matrix
    layers = []
    for block in range(config.num_hidden_layers):
        for layer in ("layer1", "layer2"):
            name = f"timnet.blocks.{block}.{layer}"
            scale, shift = _affine(weights, f"{name}.norm", config.batch_norm_eps)
            kernel = weights[f"{name}.conv.weight"] * scale[:, None, None]
            layers.append((kernel, weights[f"{name}.conv.bias"] * scale + shift, 2**block))

    count = config.num_scales
    fusion = weights.get("timnet.fusion.weight", np.full(count, 1 / count))
    readout = np.einsum("s,lp->spl", fusion, weights["classifier.weight"])
    readout = readout.reshape(-1, model.num_labels)
    logits = weights["classifier.bias"]
    if config.normalize_scales:
        scale, shift = _affine(weights, "timnet.scale_norm", config.batch_norm_eps)
        logits = logits + shift @ readout
        readout = scale[:, None] * readout
    if config.apply_temperature:
        readout, logits = readout / config.temperature, logits / config.temperature
    return Network(
        directions=config.num_directions,
        members=config.num_members,
        centered=(config.num_centered_members, weights["timnet.embed.bias"]),
        embed=(embed, bias),
        layers=layers,
        statistics=config.pooling == "statistics",
        pool_input=config.pool_input,
        multi_scale=config.multi_scale,
        readout=(readout, logits),
        multi_label=config.problem_type == "multi_label_classification",
    )


def _affine(
    weights: dict[str, np.ndarray], name: str, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of a batch normalisation."""
    scale = weights[f"{name}.weight"] / np.sqrt(weights[f"{name}.running_var"] + epsilon)
    return scale, weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale


def _cepstra(extractor: TimNetFeatureExtractor) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset from the natural logarithm of the bands' power to normalised features."""
    from .mfcc_timnet import cosine_transform

    size = extractor.feature_size
    transform = cosine_transform(size, extractor.num_mel_bins)
    matrix, offset = transform.double().numpy().T, np.zeros(size)
    if extractor.do_normalize and extractor.mean is not None and extractor.std is not None:
        deviation = np.array(extractor.std)
        matrix, offset = matrix / deviation[:, None], -np.array(extractor.mean) / deviation
    return matrix, offset


# --- graph → file -------------------------------------------------------------------------------


def _quantized(graph: Any) -> bytes:
    """The graph with the network's products on 8-bit integers, ranges taken from each input."""
    import tempfile

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    chosen = [node.name for node in graph.graph.node if node.name.startswith("network/")]
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        marked = onnx.ModelProto()
        marked.CopyFrom(graph)
        # Else it advises to prepare the graph, which would find nothing to do.
        onnx.helper.set_model_props(marked, {"onnx.quant.pre_process": "onnxruntime.quant"})
        onnx.save_model(marked, before)
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["Conv", "MatMul"],
            nodes_to_quantize=chosen,
            weight_type=QuantType.QUInt8,  # what ONNX Runtime convolves with on a CPU
        )
        made = onnx.load_model(after)
    onnx.helper.set_model_props(made, {prop.key: prop.value for prop in graph.metadata_props})
    content: bytes = made.SerializeToString(deterministic=True)
    return content


def _deviation(
    content: bytes, model: TimNetForAudioClassification, extractor: TimNetFeatureExtractor
) -> float:
    """Largest difference of a probability from PyTorch's, on generated clips, in one batch."""
    import torch

    from .onnx_inference import open_session

    session = open_session(content)
    waves = _clips(extractor.sampling_rate)
    inputs = extractor(waves, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits.double()
    multi_label = model.config.problem_type == "multi_label_classification"
    expected = (logits.sigmoid() if multi_label else logits.softmax(-1)).numpy()
    if session.get_inputs()[0].name == "waveform":
        longest = max(map(len, waves))
        rows = np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves])
        mask = np.stack([(np.arange(longest) < len(wave)).astype(np.int64) for wave in waves])
        feed = {"waveform": rows, "attention_mask": mask}
    else:
        feed = {name: value.numpy() for name, value in inputs.items()}
        feed["attention_mask"] = feed["attention_mask"].astype(np.int64)
    found = session.run(["probabilities"], feed)[0]
    return float(np.abs(found - expected).max())


def _clips(rate: int) -> list[np.ndarray]:
    """A click, and noise whose colour and level change: every band and every scale has its say."""
    random = np.random.default_rng(0)
    clips = [np.full(10, 0.5, dtype=np.float32)]
    for seconds in (0.3, 1.0, 2.5, 4.0):
        size = round(seconds * rate)
        time = np.arange(size) / rate
        noise = random.standard_normal(size).cumsum() * np.exp(-2 * time)
        noise = np.diff(noise, prepend=0) + 0.05 * random.standard_normal(size)
        tone = np.sin(2 * np.pi * time * random.uniform(80, 300) * (1 + 0.2 * np.sin(9 * time)))
        clip = (tone**5 + 0.2 * noise) * np.sin(4 * np.pi * time) ** 2
        clips.append((0.5 * clip / np.abs(clip).max()).astype(np.float32))
    return clips


__all__ = ["ExportError", "Exported", "INT8_TOLERANCE", "ModelError", "TOLERANCE", "export_onnx"]

# SPDX-License-Identifier: Apache-2.0
"""A Keras checkpoint becomes the same network here, and a file that is no TIM-Net is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from timnet_hf import TimNetConfig, TimNetForAudioClassification, load_audio
from timnet_hf.conversion import ConversionError, convert_keras_checkpoint

LABELS = ["angry", "happy", "neutral"]


# --- a Keras checkpoint of our own making -------------------------------------------------------


def make_model(blocks: int = 2, **settings) -> TimNetForAudioClassification:
    """A random network without initial values that could hide a mix-up."""
    torch.manual_seed(blocks)
    sizes = {"input_size": 7, "hidden_size": 5, "num_labels": 3, **settings}
    model = TimNetForAudioClassification(TimNetConfig(num_hidden_layers=blocks, **sizes))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand_like(tensor) + 0.1 if "var" in name else torch.randn_like(tensor)
            )
    return model.eval()


def keras_layers(model: TimNetForAudioClassification, first: int = 0) -> dict[str, dict]:
    """The network's arrays under the names that Keras gives them, counting from `first`."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    layers: dict[str, dict] = {}

    def number(kind: str) -> str:
        count = first + sum(name.rstrip("0123456789").rstrip("_") == kind for name in layers)
        return f"{kind}_{count}" if count else kind

    def add_conv(name: str, stream: int) -> None:
        weight, bias = (np.split(state[f"{name}.{part}"], 2)[stream] for part in ("weight", "bias"))
        layers[number("conv1d")] = {"kernel": weight.transpose(2, 1, 0), "bias": bias}

    def add_norm(name: str, stream: int) -> None:
        ours = {
            "gamma": "weight",
            "beta": "bias",
            "moving_mean": "running_mean",
            "moving_variance": "running_var",
        }
        layers[number("batch_normalization")] = {
            keras: np.split(state[f"{name}.{part}"], 2)[stream] for keras, part in ours.items()
        }

    for stream in (0, 1):
        add_conv("timnet.embed", stream)
    for block in range(model.config.num_hidden_layers):
        for stream in (0, 1):
            for layer in (1, 2):
                add_conv(f"timnet.blocks.{block}.layer{layer}.conv", stream)
                add_norm(f"timnet.blocks.{block}.layer{layer}.norm", stream)
    fusion = state.get("timnet.fusion.weight", np.ones(1, np.float32))
    layers[number("weight_layer")] = {"kernel": fusion[:, None]}
    layers[number("dense")] = {
        "kernel": state["classifier.weight"].T,
        "bias": state["classifier.bias"],
    }
    return layers


def write(path: Path, layers: dict[str, dict], root: str = "", **options) -> Path:
    """Write layers as Keras does: a group a layer, groups without arrays for the others."""
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        for name in ("input_1", "activation", "lambda_3", "top_level_model_weights"):
            group.create_group(name).attrs["weight_names"] = []
        for name, weights in layers.items():
            for weight, values in weights.items():
                group.create_dataset(f"{name}/{name}/{weight}:0", data=values, **options)
        group.attrs["layer_names"] = [name.encode() for name in layers]
    return path


@pytest.fixture
def layers() -> dict[str, dict]:
    return keras_layers(make_model())


def check_same(ours: TimNetForAudioClassification, converted: TimNetForAudioClassification) -> None:
    for name, tensor in ours.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name


# --- what converts ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(reference_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(reference_dir / "keras_timnet_4class.npz"))


@pytest.fixture(scope="module")
def converted(reference_dir: Path):
    path = reference_dir / "keras_timnet_4class.hdf5"
    return convert_keras_checkpoint(path, ["angry", "happy", "neutral", "sad"])


def test_a_real_checkpoint_computes_what_keras_computed(converted, reference):
    model, _ = converted
    values = torch.from_numpy(reference["mfcc"])
    with torch.no_grad():
        fused = model.timnet(values).pooler_output.numpy()
        probabilities = model(values).logits.softmax(-1).numpy()
    assert np.abs(fused - reference["fused"]).max() <= 1e-4
    assert np.abs(probabilities - reference["probabilities"]).max() <= 1e-4


def test_it_does_so_from_the_recordings_on(converted, reference, emodb_dir: Path):
    model, extractor = converted
    clips = [
        load_audio(emodb_dir / "wav" / str(name), extractor.sampling_rate)
        for name in reference["names"]
    ]
    batch = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    assert batch["input_values"].shape == (20, 606, 39)
    assert np.abs(batch["input_values"].numpy() - reference["mfcc"]).max() <= 5e-3
    with torch.no_grad():
        probabilities = model(**batch).logits.softmax(-1).numpy()
    assert np.abs(probabilities - reference["probabilities"]).max() <= 1e-4


def test_sizes_and_labels_of_the_real_checkpoint(converted):
    model, extractor = converted
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.input_size) == (10, 39, 39)
    assert (config.kernel_size, config.num_labels) == (2, 4)
    assert config.id2label == {0: "angry", 1: "happy", 2: "neutral", 3: "sad"}
    assert config.label2id == {"angry": 0, "happy": 1, "neutral": 2, "sad": 3}
    assert extractor.num_samples == 310_000 and not model.training


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("settings", [{}, {"kernel_size": 3, "input_size": 5, "num_labels": 1}])
def test_any_size_follows_from_the_arrays(blocks, settings, tmp_path: Path):
    ours = make_model(blocks, **settings)
    path = write(tmp_path / "a.hdf5", keras_layers(ours))
    model, extractor = convert_keras_checkpoint(path, LABELS[: ours.config.num_labels])
    check_same(ours, model)
    for name in ("num_hidden_layers", "kernel_size", "input_size", "hidden_size", "num_labels"):
        assert getattr(model.config, name) == getattr(ours.config, name), name
    assert extractor.feature_size == ours.config.input_size


@pytest.mark.parametrize("first", [1, 7, 96])
def test_the_numbers_in_layer_names_may_start_anywhere(first, tmp_path: Path):
    """Keras counts on when a session makes several models; 9 and 10 sort as numbers, not text."""
    ours = make_model(3)
    path = write(tmp_path / "a.hdf5", keras_layers(ours, first))
    check_same(ours, convert_keras_checkpoint(path, LABELS)[0])


@pytest.mark.parametrize(
    "options",
    [{"compression": "gzip"}, {"chunks": True, "shuffle": True, "fletcher32": True}],
    ids=["gzip", "shuffle"],
)
def test_hdf5s_own_compression_is_read(options, tmp_path: Path):
    path = tmp_path / "a.h5"
    write(path, keras_layers(make_model()), **options)
    check_same(make_model(), convert_keras_checkpoint(path, LABELS)[0])


@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f4", "<f8"])
def test_any_floating_point_type_is_read(kind, layers, tmp_path: Path):
    path = write(tmp_path / "a.h5", layers, dtype=kind)
    model, _ = convert_keras_checkpoint(str(path), tuple(LABELS))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    wanted = torch.from_numpy(layers["dense"]["kernel"].T.astype(kind).astype(np.float32))
    assert torch.equal(model.classifier.weight, wanted)


def test_a_whole_saved_model_is_read_without_its_optimizer(layers, tmp_path: Path):
    path = write(tmp_path / "a.h5", layers, root="model_weights")
    with h5py.File(path, "a") as file:
        file["optimizer_weights/Adam/iteration:0"] = np.int64(7)
        file.attrs["model_config"] = "{}"
    check_same(make_model(), convert_keras_checkpoint(path, LABELS)[0])


def test_the_attributes_are_not_even_read(layers, tmp_path: Path):
    path = write(tmp_path / "a.h5", layers)
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = np.void(b"\x80\x04cos\nsystem\n")
        file["dense"].attrs["weight_names"] = [b"../../secret"]
    check_same(make_model(), convert_keras_checkpoint(path, LABELS)[0])


def test_the_number_of_samples_is_iemocaps_for_ten_blocks_and_can_be_given(tmp_path: Path):
    for blocks, samples in ((2, 96_000), (10, 310_000)):
        ours = make_model(blocks, hidden_size=1, input_size=1)
        path = write(tmp_path / f"{blocks}.h5", keras_layers(ours))
        assert convert_keras_checkpoint(path, LABELS)[1].num_samples == samples
    extractor = convert_keras_checkpoint(path, LABELS, num_samples=88_000)[1]
    assert (extractor.num_samples, extractor.sampling_rate) == (88_000, 22_050)
    with pytest.raises(ValueError, match="num_samples"):
        convert_keras_checkpoint(path, LABELS, num_samples=0)


def test_what_was_converted_can_be_saved_and_loaded(layers, tmp_path: Path):
    model, extractor = convert_keras_checkpoint(write(tmp_path / "a.h5", layers), LABELS)
    model.save_pretrained(tmp_path / "model")
    extractor.save_pretrained(tmp_path / "model")
    loaded = TimNetForAudioClassification.from_pretrained(tmp_path / "model")
    check_same(model, loaded)
    assert loaded.config.id2label == dict(enumerate(LABELS))


# --- what is refused ----------------------------------------------------------------------------


def refusal(path: Path, labels=LABELS) -> str:
    """The message, which always names the file and says what is wrong and what to do."""
    with pytest.raises(ConversionError) as caught:
        convert_keras_checkpoint(path, labels)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "; " in message and message.endswith(".")
    assert "\n" not in message.removeprefix(str(path))
    return message


def change(layer: str, weight: str, edit: Callable) -> Callable:
    def apply(layers: dict) -> None:
        layers[layer][weight] = edit(layers[layer][weight])

    return apply


def put(index, value) -> Callable:
    def apply(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[index] = value
        return values

    return apply


def pop(*names: str) -> Callable:
    return lambda layers: [layers.pop(name) for name in names]


DAMAGE = {
    "no classifier": (pop("dense"), "0 layers named 'dense', where .* 2 blocks has 1"),
    "no fusion": (pop("weight_layer"), "0 layers named 'weight_layer'"),
    "no block": (
        lambda x: [x.pop(n) for n in list(x) if n not in ("conv1d", "conv1d_1", "dense")],
        "2 convolutions, where n blocks make 2 . 4n",
    ),
    "one convolution less": (pop("conv1d_4"), "9 convolutions"),
    "one stream": (pop("conv1d_9", "conv1d_8", "conv1d_7", "conv1d_6"), "8 layers named 'batch"),
    "one batch norm less": (pop("batch_normalization_5"), "7 layers named 'batch_normalization'"),
    "two classifiers": (lambda x: x.update(dense_1=x["dense"]), "2 layers named 'dense'"),
    "another layer": (lambda x: x.update(lstm={"kernel": np.ones((2, 2))}), "'lstm' is none of"),
    "a layer without bias": (lambda x: x["dense"].pop("bias"), "'dense' should have kernel, bias"),
    "a weight too many": (
        lambda x: x["conv1d_2"].update(gain=np.ones(5)),
        "'conv1d_2' should have kernel, bias, but has",
    ),
    "a matrix for a kernel": (change("conv1d_2", "kernel", lambda v: v[0]), "'conv1d_2' should"),
    "another width": (change("conv1d_5", "kernel", lambda v: v[..., :4]), "kernel of 'conv1d_5'"),
    "another kernel size": (change("conv1d_5", "kernel", lambda v: v[:1]), r"not \(2, 5, 5\)"),
    "another bias": (change("conv1d_1", "bias", lambda v: v[1:]), r"\(4,\), not \(5,\)"),
    "another norm": (change("batch_normalization", "gamma", lambda v: v[1:]), "gamma of"),
    "fewer scales": (change("weight_layer", "kernel", lambda v: v[1:]), r"\(1, 1\), not \(2, 1\)"),
    "another classifier": (change("dense", "kernel", lambda v: v[1:]), "kernel of 'dense'"),
    "classes that differ": (change("dense", "bias", lambda v: v[1:]), "bias of 'dense'"),
    "NaN": (change("conv1d_2", "kernel", put((0, 0, 0), np.nan)), "NaN.*diverged.*earlier"),
    "infinity": (change("dense", "bias", put(0, np.inf)), "infinite weights"),
    "beyond float32": (
        change("dense", "bias", lambda v: v.astype("f8") * 1e300),
        "infinite weights",
    ),
    "a negative variance": (
        change("batch_normalization_3", "moving_variance", put(2, -0.1)),
        "'batch_normalization_3' has a negative variance",
    ),
    "integers": (change("dense", "bias", lambda v: v.astype(int)), "floating-point"),
    "text": (lambda x: x["dense"].update(bias=[b"a", b"b"]), "floating-point"),
    "complex numbers": (change("dense", "bias", lambda v: v + 1j), "floating-point"),
    "a scalar": (change("dense", "bias", lambda v: v[0]), "'dense' should have"),
    "length zero": (
        lambda x: x["dense"].update(kernel=np.ones((5, 0)), bias=np.ones(0)),
        "length zero",
    ),
    "nothing": (lambda x: x.clear(), "0 convolutions"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_network_of_another_shape_is_refused(damage, layers, tmp_path: Path):
    edit, match = DAMAGE[damage]
    edit(layers)
    assert re.search(match, refusal(write(tmp_path / "a.hdf5", layers)))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["a", "b"], "3 classes apart, but 2 labels came; give 3 different names"),
        (["a", "b", "c", "d"], "but 4 labels"),
        ([], "but 0 labels"),
        (["a", "b", "a"], "repeat"),
        (["a", "b", " a "], "repeat"),
        (["a", "", "c"], "empty"),
        ("abc", "not a list of names"),
        ([0, 1, 2], "not a list of names"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, match, layers, tmp_path: Path):
    assert re.search(match, refusal(write(tmp_path / "a.hdf5", layers), labels))


def test_what_is_no_hdf5_file_is_refused(tmp_path: Path):
    assert "no such file" in refusal(tmp_path / "absent.hdf5")
    assert "not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    for name, content in {"empty": b"", "text": b"hello", "zip": b"PK\3\4" + bytes(99)}.items():
        (tmp_path / name).write_bytes(content)
        assert "not an HDF5 file; pass the .hdf5 or .h5 file" in refusal(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share, layers, tmp_path: Path):
    path = write(tmp_path / "a.hdf5", layers)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "cannot be read as HDF5" in refusal(path)


def edited(path: Path, edit: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "a") as file:
        edit(file)
    return path


def outside(file: h5py.File) -> None:
    """Raw data of a dataset that lies in another file of the machine."""
    del file["dense/dense/bias:0"]
    file.create_dataset(
        "dense/dense/bias:0", (3,), "<f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file: h5py.File) -> None:
    del file["dense/dense/bias:0"]
    layout = h5py.VirtualLayout((3,), "<f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset("dense/dense/bias:0", layout)


def huge(file: h5py.File) -> None:
    del file["dense/dense/kernel:0"]
    file.create_dataset("dense/dense/kernel:0", (2**20, 2**20), "<f4", chunks=(64, 64))


def needs_plugin(file: h5py.File) -> None:
    """An optional filter that is not HDF5's own: reading would load a library to undo it."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((3,))
    plist.set_filter(32_001, h5py.h5z.FLAG_OPTIONAL)
    del file["dense/dense/bias:0"]
    space = h5py.h5s.create_simple((3,))
    h5py.h5d.create(file["dense/dense"].id, b"bias:0", h5py.h5t.IEEE_F32LE, space, plist)


TRICKS = {
    "soft link": (lambda f: f.update(x=h5py.SoftLink("/dense")), "'x' is a link"),
    "dangling link": (lambda f: f.update(x=h5py.SoftLink("/nowhere")), "'x' is a link"),
    "link to another file": (
        lambda f: f.update({"dense/x": h5py.ExternalLink("/etc/passwd", "/")}),
        "'dense/x' is a link",
    ),
    "link to the weights": (
        lambda f: f.update(model_weights=h5py.ExternalLink("other.h5", "/")),
        "'model_weights' is a link",
    ),
    "weights that are no group": (lambda f: f.update(model_weights=1.0), "not a group"),
    "values outside": (outside, "lie in another file"),
    "values of a virtual kind": (virtual, "lie in another file"),
    "terabytes": (huge, "claims more than 50,000,000 weights"),
    "a plug-in": (needs_plugin, "needs an HDF5 plug-in"),
    "a deep nest": (
        lambda f: f.update({"a/b/c/d/e/f/g/h/x": np.ones(1)}),
        "nested more than 6 deep",
    ),
    "a cycle": (lambda f: f.update({"dense/again": f["dense"]}), "nested more than 6 deep|twice"),
    "a named type": (lambda f: f.update(x=np.dtype("f4")), "neither group nor array"),
    "an array without a layer": (lambda f: f.update(x=np.ones(3)), "'x' belongs to no layer"),
    "an array without values": (
        lambda f: f["dense/dense"].update(extra=h5py.Empty("f4")),
        "floating-point",
    ),
    "a weight in two places": (
        lambda f: f.update({"dense/other/bias:0": np.ones(3, "f4")}),
        "'dense' has 'bias' twice",
    ),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_file_that_reaches_out_or_lies_is_refused(trick, layers, tmp_path: Path):
    edit, match = TRICKS[trick]
    path = edited(write(tmp_path / "a.hdf5", layers), edit)
    assert re.search(match, refusal(path))


def test_too_many_objects_are_refused(layers, tmp_path: Path, monkeypatch):
    path = write(tmp_path / "a.hdf5", layers)
    monkeypatch.setattr("timnet_hf.conversion.MAX_OBJECTS", 30)
    assert "more than 30 objects" in refusal(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_gives_the_network_or_a_refusal(data, tmp_path: Path):
    """Bytes changed anywhere: never another exception, never a weight that is not finite."""
    path = tmp_path / "a.hdf5"
    if not path.exists():
        write(path, keras_layers(make_model(1)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.hdf5"
    damaged.write_bytes(content)
    try:
        model, _ = convert_keras_checkpoint(damaged, LABELS)
    except ConversionError as error:
        assert str(damaged) in str(error)
    else:
        assert all(torch.isfinite(p).all() for p in model.parameters())

# SPDX-License-Identifier: Apache-2.0
"""A model as a folder: what is in it, how it is written, how it is checked.

The folder is complete in itself. Its code files are those of this package, so that
``trust_remote_code=True`` loads it where the package is not installed::

    model.safetensors  config.json  preprocessor_config.json      what the Auto classes read
    configuration_timnet.py  feature_extraction_timnet.py  …      the code they need
    evaluation/loso.json …                                        cross-validated results
    README.md                                                     the card, made from the rest
    training_record.json                                          how it was trained; checksum

The record is written last: a folder whose record names the checksum of its weights is whole.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .hub_errors import HubError
from .output_folder import in_one_step

if TYPE_CHECKING:
    from .feature_extraction_timnet import TimNetFeatureExtractor
    from .modeling_timnet import TimNetPreTrainedModel

__all__ = [
    "AUTO_MAP",
    "EVALUATION_FOLDER",
    "RECORD_FILE",
    "TIMELINE_TASK",
    "card_of",
    "make_portable",
    "model_files",
    "read_evaluation",
    "refresh_model_folder",
    "save_model_folder",
    "verify_model_folder",
]

#: Auto class → class in the code files, as ``config.json`` names it.
AUTO_MAP = {
    "AutoConfig": "configuration_timnet.TimNetConfig",
    "AutoModel": "modeling_timnet.TimNetModel",
    "AutoModelForAudioClassification": "modeling_timnet.TimNetForAudioClassification",
}
EXTRACTOR_AUTO_MAP = {"AutoFeatureExtractor": "feature_extraction_timnet.TimNetFeatureExtractor"}

#: Task name of the pipeline that makes a timeline. The stock ``audio-classification`` stays the
#: library's own: an entry of that name would ask every caller for ``trust_remote_code``.
TIMELINE_TASK = "speech-emotion-timeline"

WEIGHTS_FILE = "model.safetensors"
RECORD_FILE = "training_record.json"
CARD_FILE = "README.md"
EVALUATION_FOLDER = "evaluation"

_PACKAGE = Path(__file__).parent
#: By their name: the modules that travel with a model.
_CODE = "*_timnet.py"


def save_model_folder(
    output_dir: str | os.PathLike[str],
    model: TimNetPreTrainedModel,
    extractor: TimNetFeatureExtractor,
    record: dict[str, Any],
    reports: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write a model as a folder that is ready for the Hub.

    Everything is first written into a hidden folder beside ``output_dir``, and each file then
    renamed in place: no file is ever seen half-written under its final name. Other files in
    ``output_dir``, such as checkpoints of the Trainer, stay as they are.

    Args:
        output_dir: The folder; it is made if it does not exist.
        model: The trained network.
        extractor: Its feature extractor, with the normalisation statistics.
        record: How the model was trained, see ``training_record.json`` of the shipped checkpoint.
            ``model_sha256`` is added; the dictionary passed in is not changed.
        reports: Cross-validation reports of the same corpus and recipe, for the card. See
            :func:`timnet_hf.tables.load_reports`.

    Returns:
        ``output_dir`` as a path.

    Raises:
        HubError: ``output_dir`` is a file, or some other project's folder.
    """
    from .card import evaluation_name

    target = Path(output_dir)
    if target.exists() and not target.is_dir():
        raise HubError(f"{target}: is a file, not a folder. Choose another output folder.")
    refuse_another_project(target)
    target.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        model.save_pretrained(staging)
        extractor.save_pretrained(staging)
        _update_json(staging / "config.json", auto_map=AUTO_MAP, **_custom_pipelines())
        _update_json(staging / "preprocessor_config.json", auto_map=EXTRACTOR_AUTO_MAP)
        for code in _PACKAGE.glob(_CODE):
            shutil.copyfile(code, staging / code.name)
        for report in reports:
            path = staging / EVALUATION_FOLDER / f"{evaluation_name(report)}.json"
            path.parent.mkdir(exist_ok=True)
            _write_json(path, report)
        record = {"parameters": model.num_parameters(only_trainable=True), **record}
        record["model_sha256"] = _sha256(staging / WEIGHTS_FILE)
        _write_json(staging / RECORD_FILE, record)
        card = card_of(staging)
        (staging / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")
        _move_into(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def refuse_another_project(folder: Path) -> None:
    """Refuse a folder in which a model would replace what is no model's.

    Raises:
        HubError: It has a README or an evaluation, and no model that they are of.
    """
    for name in (CARD_FILE, EVALUATION_FOLDER):
        if (folder / name).exists() and not (folder / "config.json").exists():
            raise HubError(
                f"{folder / name}: is of something else than a model, and would be replaced. "
                "Choose another output folder."
            )


def _move_into(staging: Path, target: Path) -> None:
    """Rename every staged file to its final place, the configuration first, the record last."""
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    files.sort(key=lambda path: (path.name == RECORD_FILE, path.name != "config.json"))
    kept = {path.relative_to(staging) for path in files}
    for stale in (target / EVALUATION_FOLDER).glob("*.json"):
        if stale.relative_to(target) not in kept:
            stale.unlink()
    umask = os.umask(0)
    os.umask(umask)
    for path in files:
        path.chmod(0o666 & ~umask)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        final = target / path.relative_to(staging)
        final.parent.mkdir(exist_ok=True)
        os.replace(path, final)


def verify_model_folder(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Check that a folder's weights are those that its training record describes.

    Args:
        path: A folder as :func:`save_model_folder` writes it.

    Returns:
        The training record.

    Raises:
        HubError: A file is missing or unreadable, or the SHA-256 of ``model.safetensors`` is not
            the recorded one.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise HubError(f"{folder}: no such folder. Give the folder that training wrote.")
    for name in (WEIGHTS_FILE, RECORD_FILE, "config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise HubError(
                f"{folder / name}: missing. Save the model again, or fetch the whole folder."
            )
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        expected = record["model_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HubError(
            f"{folder / RECORD_FILE}: not a training record with the key model_sha256 ({error}). "
            "Save the model again."
        ) from error
    found = _sha256(folder / WEIGHTS_FILE)
    if found != expected:
        raise HubError(
            f"{folder / WEIGHTS_FILE}: SHA-256 is {found}, but {RECORD_FILE} says {expected}. The "
            "file was changed or is incomplete: fetch it again, or save the model again."
        )
    return record


def model_files(path: str | os.PathLike[str]) -> dict[str, Path]:
    """What of a model folder belongs on the Hub: name there → file here, in order of name."""
    folder = Path(path)
    names = [
        WEIGHTS_FILE,
        "config.json",
        "preprocessor_config.json",
        CARD_FILE,
        RECORD_FILE,
        *(one.name for one in folder.glob(_CODE)),
        *(f"{EVALUATION_FOLDER}/{one.name}" for one in folder.glob(f"{EVALUATION_FOLDER}/*.json")),
    ]
    return {name: folder / name for name in sorted(names) if (folder / name).is_file()}


def read_evaluation(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The cross-validation reports that lie in a model folder."""
    files = sorted((Path(path) / EVALUATION_FOLDER).glob("*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def card_of(path: str | os.PathLike[str]) -> str:
    """The card of a model folder, made anew from the files that lie in it."""
    from .card import build_card

    folder = Path(path)
    record, config, extractor = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in (RECORD_FILE, "config.json", "preprocessor_config.json")
    )
    return build_card(record, config, extractor, read_evaluation(folder))


def refresh_model_folder(
    path: str | os.PathLike[str], results_dir: str | os.PathLike[str]
) -> list[Path]:
    """Bring a folder up to this package's code and to what lies in the results folder.

    The weights stay as they are; code files, reports and the card are made anew.

    Returns:
        The files that changed.
    """
    from .card import evaluation_name, reports_for

    folder = Path(path)
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    evaluation = folder / EVALUATION_FOLDER
    changed = []
    reports = {f"{evaluation_name(one)}.json": one for one in reports_for(record, results_dir)}
    for stale in evaluation.glob("*.json"):
        if stale.name not in reports:
            stale.unlink()
            changed.append(stale)
    for code in sorted(_PACKAGE.glob(_CODE)):
        if _replace(folder / code.name, code.read_text(encoding="utf-8")):
            changed.append(folder / code.name)
    if reports:
        evaluation.mkdir(exist_ok=True)
    for name, report in reports.items():
        if _replace(evaluation / name, _json_text(report)):
            changed.append(evaluation / name)
    if _replace(folder / CARD_FILE, card_of(folder)):
        changed.append(folder / CARD_FILE)
    return changed


def _replace(path: Path, text: str) -> bool:
    """Write a text file in one step, unless it already holds the text."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    with in_one_step(path) as staged:
        staged.write_text(text, encoding="utf-8", newline="\n")
    return True


def make_portable(model: TimNetPreTrainedModel, extractor: TimNetFeatureExtractor) -> None:
    """Let ``save_pretrained`` and ``Trainer(push_to_hub=True)`` write the code beside the weights.

    What they write then loads with ``trust_remote_code=True`` where this package is not installed:
    the Auto classes, the stock pipeline and the timeline. Pass ``extractor`` to the Trainer as its
    ``processing_class``, so that it is saved too.

    This is ``register_for_auto_class`` of transformers, so it marks the two classes: every later
    save in this process brings its code too. :func:`save_model_folder` does without.
    """
    role = {name.partition(".")[2]: auto for auto, name in AUTO_MAP.items()}
    type(model).register_for_auto_class(role[type(model).__name__])
    type(extractor).register_for_auto_class()
    model.config.auto_map = dict(AUTO_MAP)
    for name, value in _custom_pipelines().items():
        setattr(model.config, name, value)


def _custom_pipelines() -> dict[str, Any]:
    """The ``custom_pipelines`` entry of ``config.json``, read from the pipeline's source."""
    path = _PACKAGE / "pipeline_timnet.py"
    if not path.is_file():
        return {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (name,) = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and "Pipeline" in map(ast.unparse, node.bases)
    ]
    entry = {
        "impl": f"{path.stem}.{name}",
        "pt": ["AutoModelForAudioClassification"],
        "type": "audio",
    }
    return {"custom_pipelines": {TIMELINE_TASK: entry}}


def _update_json(path: Path, **values: Any) -> None:
    _write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **values}, sort_keys=True)


def _write_json(path: Path, value: Any, sort_keys: bool = False) -> None:
    path.write_text(_json_text(value, sort_keys), encoding="utf-8", newline="\n")


def _json_text(value: Any, sort_keys: bool = False) -> str:
    text = json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False, default=list)
    return text + "\n"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

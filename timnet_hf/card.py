# SPDX-License-Identifier: Apache-2.0
"""The model card: MODEL_CARD.md filled in with what is on record.

Every figure of a card comes from the training record, the configuration or a cross-validation
report. Where there is no report, the card says that nothing has been measured.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .calibration import INNER_FOLDS
from .corpus_table import CORPORA, Corpus
from .tables import (
    ADAPTED,
    CROSS_CORPUS,
    PROTOCOL_TITLES,
    ResultsError,
    full_title,
    is_adapted,
    load_reports,
    render_reports,
    report_title,
)

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

__all__ = [
    "EXAMPLES",
    "build_card",
    "evaluation_name",
    "model_name",
    "placeholder_repo_id",
    "reports_for",
    "template_path",
]

_LANGUAGE_CODES = {"Chinese": "zh", "English": "en", "German": "de", "Italian": "it"}

#: Synthetic clips that a published repository offers to try: file in demo_clips → its title.
EXAMPLES = {
    "angry.flac": "A synthetic voice, meant to sound angry",
    "sad.flac": "A synthetic voice, meant to sound sad",
}

#: Power of the whole machine that the compute note reckons with.
ASSUMED_WATTS = 100


def _template() -> str:
    """The template, with a checkpoint's own figures where MODEL_CARD.md shows those of all."""
    text = template_path().read_text(encoding="utf-8")
    return re.sub(
        "<!-- results:begin -->.*?<!-- results:end -->", "{{ results }}", text, flags=re.DOTALL
    )


def template_path() -> Path:
    """Where MODEL_CARD.md lies: in the package when it is installed, else in the working tree."""
    installed = Path(__file__).with_name("MODEL_CARD.md")
    return installed if installed.is_file() else Path(__file__).parents[1] / "MODEL_CARD.md"


def model_name(record: dict[str, Any]) -> str:
    """What a model of this record is called, such as ``timnet-emodb``."""
    if len(_corpora(record)) > 1:
        return "timnet-multi"
    other = "converted" if record.get("converted_from") else "own-data"
    return f"timnet-{record.get('corpus') or other}"


def placeholder_repo_id(record: dict[str, Any]) -> str:
    """The repository that a card names until the model is published."""
    return f"org/{model_name(record)}"


def reports_for(
    record: dict[str, Any], results_dir: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """The reports that a card of this record may quote: those of its corpus and of its recipe.

    A model that was trained with overrides, or on another number of recordings than was
    cross-validated, gets none: the figures would be another model's. One that was trained on
    two corpora gets those of leaving one of them out as well.
    """
    corpus, recipe = record.get("corpus"), record.get("recipe")
    if not corpus or not recipe or record.get("overrides") or record.get("config"):
        return []
    left_out = []
    if len(parts := [part.name for part in _corpora(record)]) == 2:
        left_out = [
            report
            for part, other in (parts, parts[::-1])
            for report in load_reports(results_dir, part)
            if report["protocol"] == f"{CROSS_CORPUS}{other}"
            and _is_of(recipe, report, results_dir)
        ]
    files = (record.get("data") or {}).get("files")
    reports = [
        report
        for report in load_reports(results_dir, corpus)
        if files in (None, report.get("n_files")) and _is_of(recipe, report, results_dir)
    ]
    return sorted(reports, key=is_adapted) + left_out


def _is_of(
    recipe: dict[str, Any], report: dict[str, Any], results_dir: str | os.PathLike[str]
) -> bool:
    """Whether a report is a result of this recipe, and of nothing that was changed beside it.

    A recipe that was frozen anew keeps its name. So its values are compared, with those that the
    cross-validation noted before it began; by name only where there are no notes.
    """
    if report.get("leaks_test_fold"):
        return False
    name = str(report["recipe"]).removesuffix(ADAPTED)
    notes = Path(results_dir, report["corpus"], report["protocol"], name, "run.json")
    if not notes.is_file():
        return bool(name == recipe.get("name"))
    try:
        fixed = json.loads(notes.read_text(encoding="utf-8"))["fixed"]
        plain = not (fixed["config"] or fixed["arguments"])
        return plain and {**fixed["recipe"], "name": ""} == {**recipe, "name": ""}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ResultsError(
            f"{notes}: not the notes of a run ({error!r}). Make it again."
        ) from error


def evaluation_name(report: dict[str, Any]) -> str:
    """What a report is called in a model folder: its protocol, and that speakers were enrolled."""
    return f"{report['protocol']}{ADAPTED if is_adapted(report) else ''}"


def build_card(
    record: dict[str, Any],
    config: dict[str, Any],
    extractor: dict[str, Any],
    reports: Sequence[dict[str, Any]] = (),
    repo_id: str | None = None,
) -> str:
    """Make the card of a model.

    Args:
        record: Its training record.
        config: Its ``config.json``.
        extractor: Its ``preprocessor_config.json``.
        reports: Cross-validation reports of its corpus and recipe; the protocol that stands first
            in :data:`timnet_hf.tables.PROTOCOL_TITLES` gives the headline.
        repo_id: Where it will be found; a placeholder by default.

    Returns:
        Markdown with YAML front matter.
    """
    from huggingface_hub import ModelCard

    repo_id = repo_id or placeholder_repo_id(record)
    order = list(PROTOCOL_TITLES)
    reports = sorted(
        (report for report in reports if not report.get("leaks_test_fold")),
        key=lambda report: (
            order.index(report["protocol"]) if report["protocol"] in order else 99,
            is_adapted(report),
        ),
    )
    card = ModelCard.from_template(
        _front_matter(record, reports, repo_id),
        template_str=_template(),
        repo_id=repo_id,
        **_about_data(record),
        **_about_training(record, config, extractor, reports),
        **_about_results(record, config, reports),
    )
    # Branches of the template that are not taken leave their blank lines behind.
    text = re.sub(r"[ \t]+\n", "\n", str(card))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _front_matter(
    record: dict[str, Any], reports: Sequence[dict[str, Any]], repo_id: str
) -> ModelCardData:
    from huggingface_hub import ModelCardData

    corpora = _corpora(record)
    languages = sorted({_LANGUAGE_CODES[corpus.language] for corpus in corpora})
    return ModelCardData(
        language=(languages if len(languages) > 1 else languages[0]) if languages else None,
        **_licence(corpora),
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["speech-emotion-recognition", "emotion", "audio", "speech", "timnet", "mfcc"],
        datasets=[corpus.name for corpus in corpora] or None,
        metrics=["recall", "accuracy", "f1"],
        model_name=model_name(record) if reports else None,
        eval_results=_eval_results(reports, repo_id) or None,
        widget=[
            {
                "example_title": title,
                "src": f"https://huggingface.co/{repo_id}/resolve/main/examples/{file}",
            }
            for file, title in EXAMPLES.items()
        ],
    )


def _licence(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Licence of the weights: as free as the recordings they come from all allow."""
    for corpus in corpora:
        if "permission" in corpus.licence:
            return {
                "license": "other",
                "license_name": f"{corpus.name}-owners-permission",
                "license_link": corpus.homepage,
            }
    for corpus in corpora:
        if corpus.licence.startswith("CC "):
            return {"license": corpus.licence.lower().replace(" ", "-")}
    return {"license": "apache-2.0"} if corpora else {}


def _eval_results(reports: Sequence[dict[str, Any]], repo_id: str) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    results = []
    for report in reports:
        title = full_title(report)
        tested = report["corpus"]
        if _is_left_out(report):
            tested = report["protocol"].removeprefix(CROSS_CORPUS)
        else:
            title = f"{CORPORA[tested].title if tested in CORPORA else tested}, {title}"
        for kind, name, value in (
            ("recall", "UAR (unweighted average recall, macro recall), %", report["uar"]["pooled"]),
            ("accuracy", "WAR (weighted average recall, accuracy), %", report["war"]["pooled"]),
            ("f1", "Macro F1, %", report["macro_f1"]),
        ):
            results.append(
                EvalResult(
                    task_type="audio-classification",
                    task_name="Speech emotion recognition",
                    dataset_type=tested,
                    dataset_name=title,
                    dataset_config=evaluation_name(report),
                    dataset_split="test",
                    metric_type=kind,
                    metric_name=name,
                    metric_value=value,
                    source_name=f"Cross-validation report, {title}",
                    source_url=f"https://huggingface.co/{repo_id}/blob/main/evaluation/"
                    f"{evaluation_name(report)}.json",
                )
            )
    return results


def _corpora(record: dict[str, Any]) -> list[Corpus]:
    """The known corpora that a model was trained on; none of them where one is not known."""
    names = str(record.get("corpus") or "").split("-")
    return [CORPORA[name] for name in names] if set(names) <= set(CORPORA) else []


def _about_data(record: dict[str, Any]) -> dict[str, Any]:
    corpora = _corpora(record)
    data = record.get("data") or {}

    def joined(values: Sequence[str], between: str = " and ") -> str | None:
        return between.join(dict.fromkeys(values)) or None

    return {
        "title": joined([one.title for one in corpora]) or record.get("corpus") or "own recordings",
        "language": joined([one.language for one in corpora]),
        "speakers": sum(one.n_speakers for one in corpora) or None,
        "corpus_licence": joined(
            [one.licence if len(corpora) == 1 else f"{one.title} {one.licence}" for one in corpora],
            ", ",
        ),
        "corpus_citation": joined([one.citation for one in corpora], " "),
        "homepage": joined([one.homepage for one in corpora]),
        "files": f"{data['files']:,}" if "files" in data else None,
        "converted_from": record.get("converted_from"),
        "data_sha256": data.get("sha256", "not recorded"),
    }


def _about_training(
    record: dict[str, Any],
    config: dict[str, Any],
    extractor: dict[str, Any],
    reports: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    recipe = record.get("recipe") or {}
    versions = record.get("versions") or {}
    seconds = record.get("wall_time_seconds") or 0.0
    # Reports with enrolled speakers are of the same trainings.
    plain = [report for report in reports if not is_adapted(report)]
    validation = sum(report.get("wall_time_seconds", 0) for report in plain)
    neutral = (None, 0, 0.0, [1.0], (1.0,))
    augmentation = {
        name: value
        for name, value in (recipe.get("augmentation") or {}).items()
        if value not in neutral and not (name == "mixup_alpha")
    }
    return {
        "recipe": recipe.get("name", "own"),
        "preset": recipe.get("preset"),
        "labels": record.get("labels") or list(config["id2label"].values()),
        "parameters": f"{record['parameters']:,}",
        "sampling_rate": f"{extractor['sampling_rate']:,}".replace(",", "\u202f"),
        "feature_size": extractor["feature_size"],
        "hop": f"{1000 * extractor['hop_length'] / extractor['sampling_rate']:.3g}",
        "blocks": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "members": config.get("num_members", 1),
        "centered": config.get("num_centered_members", 0),
        "pooling": config.get("pooling") == "statistics",
        "input_scale": config.get("pool_input"),
        "modified": recipe.get("name") == "default",
        "arguments": sorted((recipe.get("arguments") or {}).items()),
        "standardized": recipe.get("standardize"),
        "weighted": recipe.get("class_weights"),
        "augmented": ", ".join(f"`{name}={value}`" for name, value in augmentation.items()),
        "seed": record.get("seed"),
        "versions": [(name, value) for name, value in versions.items() if name != "machine"],
        "machine": f"one machine ({versions['machine']}, CPU)"
        if "machine" in versions
        else "a CPU",
        "command": record.get("command", "not recorded"),
        "minutes": f"{seconds / 60:.1f}" if seconds else None,
        "validation_hours": f"{validation / 3600:.1f}" if validation else None,
        "watts": ASSUMED_WATTS,
        "watt_hours": f"{(seconds + validation) / 3600 * ASSUMED_WATTS:.0f}",
    }


def _is_left_out(report: dict[str, Any]) -> bool:
    """Whether a report is of a part of the corpora, tested on another of them."""
    return str(report["protocol"]).startswith(CROSS_CORPUS)


def _about_results(
    record: dict[str, Any], config: dict[str, Any], reports: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    temperature = float(config.get("temperature", 1.0))
    values: dict[str, Any] = {
        "results": render_reports(record.get("corpus") or "", reports),
        "calibrated": temperature != 1.0,
        "sharper": temperature < 1.0,
        "temperature": f"{temperature:.3f}",
        "apply_temperature": bool(config.get("apply_temperature")),
    }
    if record.get("calibration"):
        values["inner_folds"] = (
            f"{record['calibration']} of {record.get('inner_folds', INNER_FOLDS)}"
        )
    if held_out := record.get("held_out"):
        values["held_out"] = {
            "recordings": f"{held_out['recordings']:,}",
            "before": f"{held_out['ece_uncalibrated']:.3f}",
            "after": f"{held_out['ece']:.3f}",
        }
    values["left_out"] = [
        {
            "title": report_title(report),
            "uar": f"{report['uar']['pooled']:.2f}",
            "chance": f"{100 / len(report['per_class_recall']):.1f}",
            "ece": f"{report.get('ece_uncalibrated', report['ece']):.3f}",
        }
        for report in reports
        if _is_left_out(report) and not is_adapted(report)
    ]
    reports = [report for report in reports if not _is_left_out(report)]
    if not reports:
        return values
    first = reports[0]
    over = "speakers" if "ci95_speakers" in first["uar"] else "recordings"
    low, high = first["uar"].get("ci95_speakers", first["uar"]["ci95"])
    values["headline"] = {
        "protocol": report_title(first),
        "unseen": first["protocol"] == "loso" or first.get("group_by") == "speaker",
        "uar": f"{first['uar']['pooled']:.2f}",
        "over": over,
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
        "chance": f"{100 / len(first['per_class_recall']):.1f}",
    }
    gains = {count: one for count, one in first.get("enrolled", {}).items() if count != "all"}
    values["enrolled"] = [
        {"count": count, "uar": f"{one['uar']:.2f}", "without": f"{one['uar_without']:.2f}"}
        for count, one in gains.items()
    ]
    helps = [count for count, one in gains.items() if one["uar"] > one["uar_without"]]
    if helps and helps[0] != next(iter(gains)):
        values["gain_from"] = helps[0]
    for report in reports[1:]:
        if report.get("transductive") and report["protocol"] == first["protocol"]:
            values["transductive"] = {
                "uar": f"{report['uar']['pooled']:.2f}",
                "ece": f"{report['ece']:.3f}",
            }
    values["first_seeds"] = len(first["seeds"]) if len(first["seeds"]) > 1 else None
    values["ece"] = f"{first.get('ece_uncalibrated', first['ece']):.3f}"
    if "ece_uncalibrated" in first:
        values["ece_calibrated"] = f"{first['ece']:.3f}"
    if "ece_by_chance" in first:
        values["ece_by_chance"] = f"{first['ece_by_chance']:.3f}"
    values["recalls"] = [(label, f"{v:.1f}") for label, v in first["per_class_recall"].items()]
    if first["protocol"] == "loso" and first.get("per_speaker"):
        speakers = first["per_speaker"].values()
        values["spread"] = {"low": f"{min(speakers):.1f}", "high": f"{max(speakers):.1f}"}
    return values

# SPDX-License-Identifier: Apache-2.0
"""``timnet train``, ``cross-validate`` and ``convert``: where models come from."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import (
    AsIsOption,
    CorpusOption,
    DataOption,
    RecipeOption,
    err,
    out,
    progress_bars,
    say,
    typed_command,
)


def train(
    context: typer.Context,
    data_dir: DataOption,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where the model goes.")],
    corpus: CorpusOption = None,
    recipe: RecipeOption = "default",
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    calibrate: Annotated[
        int, typer.Option(min=0, max=4, help="Inner folds to fit the model's temperature on.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    as_is: AsIsOption = False,
) -> None:
    """Train a model; any flag of transformers.TrainingArguments may follow."""
    from .experiment import load_data, train_to_folder
    from .memory import keep_freed_memory
    from .ranks import is_first
    from .recipes import get_recipe

    if is_first():  # of several processes under torchrun, one speaks
        logging.getLogger("timnet_hf").setLevel(logging.INFO)
    else:
        out.quiet = err.quiet = True
    keep_freed_memory()
    chosen = get_recipe(recipe)
    overrides = _training_flags(context.args)
    data = load_data(data_dir, corpus, strict=not as_is)
    say(f"{data.name}: {len(data.dataset)} recordings, recipe {recipe}, seed {seed}", err)
    try:
        with progress_bars() as progress:
            folder = train_to_folder(
                data,
                chosen,
                output_dir,
                seed=seed,
                overrides=overrides,
                resume=resume,
                calibration=calibrate,
                command=typed_command(),
                progress=progress,
            )
    except KeyboardInterrupt:
        if any((output_dir / "trainer").glob("checkpoint-*")):
            say(f"The last checkpoint is in {output_dir / 'trainer'}; go on with --resume.", err)
        raise typer.Exit(130) from None
    say(f"model in {folder}")
    say(f"try it: timnet predict --model {shlex.quote(str(folder))} your.wav")


def convert(
    weights: Annotated[Path, typer.Argument(help="Keras checkpoint, .hdf5.")],
    labels: Annotated[str, typer.Option(help="Labels in the order of the outputs: a,b,c.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where the model goes.")],
    corpus: Annotated[
        str | None,
        typer.Option(
            help="The paper's corpus it was trained on, for the length of its clips. By default "
            "IEMOCAP's for ten blocks, EMO-DB's for any other number."
        ),
    ] = None,
) -> None:
    """Turn a Keras TIM-Net checkpoint into a model folder, without TensorFlow."""
    from .conversion import convert_keras_checkpoint
    from .corpus_table import find_corpus
    from .feature_extraction_timnet import PAPER_NUM_SAMPLES
    from .hub import save_model_folder
    from .provenance import versions

    names = [name.strip() for name in labels.split(",") if name.strip()]
    length = PAPER_NUM_SAMPLES[find_corpus(corpus).name] if corpus else None
    model, extractor = convert_keras_checkpoint(weights, names, num_samples=length)
    record = {
        "corpus": None,
        "converted_from": weights.name,
        "labels": names,
        "parameters": model.num_parameters(only_trainable=True),
        "versions": versions(),
        "command": typed_command(),
    }
    save_model_folder(output_dir, model, extractor, record)
    say(f"model in {output_dir}")


def cross_validate(
    data_dir: DataOption,
    corpus: CorpusOption = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="kfold, emobox, loso (the default), loto, or group with --group-by."),
    ] = None,
    test_corpus: Annotated[
        str | None,
        typer.Option(help="Train on all of --corpus, test on this one; no protocol then."),
    ] = None,
    recipe: RecipeOption = "default",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each fold.")] = 3,
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Folds trained side by side; each holds all features in memory."),
    ] = 1,
    ablation: Annotated[
        str | None,
        typer.Option(help="no-backward, no-multi-scale, no-dynamic-fusion or plain-tcn."),
    ] = None,
    select: Annotated[
        str, typer.Option(help="last-epoch; best-on-test leaks, and tells how much beside it.")
    ] = "last-epoch",
    calibrate: Annotated[
        int, typer.Option(min=0, max=4, help="Inner folds to fit each fold's temperature on.")
    ] = 0,
    group_by: Annotated[str | None, typer.Option(help="Column of the group protocol.")] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Folds of kfold and group; by default 10.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Where reports go.")] = Path("results"),
    as_is: AsIsOption = False,
) -> None:
    """Train and judge one model a fold; write a report."""
    from .baseline import BASELINES
    from .crossvalidation import SELECTIONS, CrossValidationError
    from .crossvalidation_run import run_cross_validation, with_ablation
    from .experiment import load_data
    from .memory import keep_freed_memory
    from .recipes import get_recipe

    keep_freed_memory()
    chosen = get_recipe(recipe)
    variant, config = with_ablation(ablation)
    if select not in SELECTIONS:
        raise CrossValidationError(f"Unknown --select {select!r}: {', '.join(SELECTIONS)}.")
    data = load_data(data_dir, corpus, strict=not as_is)
    test_data = load_data(data_dir, test_corpus, strict=not as_is) if test_corpus else None
    with progress_bars() as progress:
        folder, report = run_cross_validation(
            data,
            chosen,
            protocol,
            results,
            seeds=range(seeds),
            jobs=jobs,
            variant=variant,
            config=config,
            selection=select,
            calibration=calibrate,
            group_by=group_by,
            n_folds=folds,
            test_data=test_data,
            command=typed_command(),
            progress=progress,
        )
    plain = report["baselines"]
    for name in ("uar", "war"):
        beside = [f"{BASELINES[one]} {figures[name]:.2f} %" for one, figures in plain.items()]
        say(f"{name.upper()} {report[name]['pooled']:.2f} %  ({', '.join(beside)})")
    say(f"report in {folder}")


def _training_flags(arguments: list[str]) -> dict[str, Any]:
    """The TrainingArguments that were given on the command line, and only those."""
    if not arguments:
        return {}
    import argparse

    from transformers import HfArgumentParser, TrainingArguments

    flags: Any = TrainingArguments
    parser = HfArgumentParser(
        flags,
        prog="timnet train",
        usage="timnet train --data-dir DIR --output-dir DIR [flags of TrainingArguments]",
        allow_abbrev=False,
    )
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    return vars(parser.parse_args([_flag(argument) for argument in arguments]))


def _flag(argument: str) -> str:
    """Both --learning-rate and --learning_rate are understood."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value


__all__ = ["convert", "cross_validate", "train"]

# SPDX-License-Identifier: Apache-2.0
"""The ``timnet`` command: it reads the command line, calls the package, prints what comes back.

Exit status: 0 when all went well, 2 when something could not be done (the message says what),
130 when the user stopped it.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from . import __version__

if TYPE_CHECKING:
    from .hub import PublishResult

app = typer.Typer(
    name="timnet",
    help="Speech emotion recognition with TIM-Net, a network of a tenth of a million parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console()
err = Console(stderr=True)

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A folder, a Hub id, or the name of a shipped checkpoint."),
]
DataOption = Annotated[Path, typer.Option("--data-dir", help="Folder that holds the recordings.")]
CorpusOption = Annotated[
    str | None,
    typer.Option("--corpus", help="A known corpus; without it, --data-dir holds your own data."),
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="default or paper.")]


def main() -> None:
    """Run the command line; errors of the package end it with status 2 and one clear message."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        status = app(standalone_mode=False)  # then click hands back the code of an Exit
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if hasattr(error, "show"):  # click's own errors: wrong options and the like
            error.show()
            status = 2
        elif isinstance(error, (ValueError, OSError, ImportError)):
            _say(f"error: {error}", err, style="red")
            status = 2
        elif type(error).__name__ == "Abort":  # what older versions of typer make of Ctrl-C
            status = 130
        else:
            raise
    if status == 130:
        _say("stopped", err)
    sys.exit(status or 0)


def _say(text: str, console: Console = out, style: str | None = None) -> None:
    """Print a line as it is: no markup in file names, no line breaks in what may be copied."""
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        _say(__version__)
        raise typer.Exit()


@app.command()
def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.")],
    model: ModelOption = None,
    output_format: Annotated[
        str,
        typer.Option(
            "--format", help="table, json or csv; with --segments also rttm, textgrid, vtt."
        ),
    ] = "table",
    top_k: Annotated[int, typer.Option(min=1, help="How many labels to print.")] = 3,
    segments: Annotated[bool, typer.Option("--segments", help="A timeline for each file.")] = False,
) -> None:
    """Name the emotion in recordings."""
    from .audio import AudioError, find_audio_files
    from .prediction import load_model, predict_files
    from .rendering import render_predictions, render_timelines
    from .timeline_formats import timeline_files

    files = find_audio_files(inputs)
    if not files:
        raise AudioError(f"{', '.join(map(str, inputs))}: no recordings; give files or a folder")
    network, extractor = load_model(model)
    if segments:
        timelines = timeline_files(files, network, extractor)
        failures = render_timelines(timelines, output_format, out, err)
    else:
        predictions = predict_files(files, network, extractor)
        failures = render_predictions(predictions, output_format, top_k, out)
    if sum(failures):
        raise typer.Exit(2)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    data_dir: DataOption,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where the model goes.")],
    corpus: CorpusOption = None,
    recipe: RecipeOption = "default",
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
) -> None:
    """Train a model; any flag of transformers.TrainingArguments may follow."""
    from .experiment import load_data, train_to_folder
    from .recipes import get_recipe

    logging.getLogger("timnet_hf").setLevel(logging.INFO)
    chosen = get_recipe(recipe)
    overrides = _training_flags(context.args)
    data = load_data(data_dir, corpus)
    _say(f"{data.name}: {len(data.dataset)} recordings, recipe {recipe}, seed {seed}", err)
    try:
        with _progress() as progress:
            folder = train_to_folder(
                data,
                chosen,
                output_dir,
                seed=seed,
                overrides=overrides,
                resume=resume,
                command=_command(),
                progress=progress,
            )
    except KeyboardInterrupt:
        if any((output_dir / "trainer").glob("checkpoint-*")):
            _say(f"The last checkpoint is in {output_dir / 'trainer'}; go on with --resume.", err)
        raise typer.Exit(130) from None
    _say(f"model in {folder}")
    _say(f"try it: timnet predict --model {shlex.quote(str(folder))} your.wav")


@app.command()
def convert(
    weights: Annotated[Path, typer.Argument(help="Keras checkpoint, .hdf5.")],
    labels: Annotated[str, typer.Option(help="Labels in the order of the outputs: a,b,c.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where the model goes.")],
) -> None:
    """Turn a Keras TIM-Net checkpoint into a model folder, without TensorFlow."""
    from .conversion import convert_keras_checkpoint
    from .hub import save_model_folder
    from .provenance import versions

    names = [name.strip() for name in labels.split(",") if name.strip()]
    model, extractor = convert_keras_checkpoint(weights, names)
    record = {
        "corpus": None,
        "converted_from": weights.name,
        "labels": names,
        "parameters": model.num_parameters(only_trainable=True),
        "versions": versions(),
        "command": _command(),
    }
    save_model_folder(output_dir, model, extractor, record)
    _say(f"model in {output_dir}")


@app.command("cross-validate")
def cross_validate(
    data_dir: DataOption,
    corpus: CorpusOption = None,
    protocol: Annotated[
        str, typer.Option(help="kfold, emobox, loso, loto, or group with --group-by.")
    ] = "loso",
    recipe: RecipeOption = "default",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each fold.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Folds trained side by side.")] = 1,
    ablation: Annotated[
        str | None,
        typer.Option(help="no-backward, no-multi-scale, no-dynamic-fusion or plain-tcn."),
    ] = None,
    select: Annotated[
        str, typer.Option(help="last-epoch; best-on-test leaks and is labelled so.")
    ] = "last-epoch",
    group_by: Annotated[str | None, typer.Option(help="Column of the group protocol.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of kfold and group.")] = 10,
    results: Annotated[Path, typer.Option(help="Where reports go.")] = Path("results"),
) -> None:
    """Train and judge one model a fold; write a report."""
    from .crossvalidation import SELECTIONS, CrossValidationError
    from .experiment import load_data, run_cross_validation, with_ablation
    from .recipes import get_recipe

    chosen = get_recipe(recipe)
    variant, config = with_ablation(ablation)
    if select not in SELECTIONS:
        raise CrossValidationError(f"Unknown --select {select!r}: {', '.join(SELECTIONS)}.")
    data = load_data(data_dir, corpus)
    with _progress() as progress:
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
            group_by=group_by,
            n_folds=folds,
            command=_command(),
            progress=progress,
        )
    for name in ("uar", "war"):
        value, baseline = report[name]["pooled"], report["baseline"][name]
        _say(f"{name.upper()} {value:.2f} %  (plain SVC {baseline:.2f} %)")
    _say(f"report in {folder}")


@app.command()
def publish(
    model: Annotated[Path, typer.Option("--model", "-m", help="A folder that train wrote.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="owner/name on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new one private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write and compare what would be pushed.")
    ] = False,
) -> None:
    """Publish a model folder on the Hub, in one commit."""
    from .hub import publish as publish_model

    _show_publication(publish_model(model, repo_id, private=private, dry_run=dry_run))


@app.command("publish-metric")
def publish_metric(
    name: Annotated[str, typer.Argument(help="uar or war.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="owner/uar or owner/war.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new one private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write and compare what would be pushed.")
    ] = False,
) -> None:
    """Publish a metric as a Space that evaluate.load finds."""
    from .hub import publish_metric as publish_space

    _show_publication(publish_space(name, repo_id, private=private, dry_run=dry_run))


def _show_publication(result: PublishResult) -> None:
    for change in result.changes:
        _say(f"{change.status:8} {change.name}")
    if result.diff:
        _say(result.diff)
    if result.folder is not None:
        _say(f"nothing was pushed; {result.folder} holds what would be")
    elif result.commit is None:
        _say(f"{result.repo_id} is up to date")
    else:
        _say(f"published: {result.url or result.commit}")
    if result.note:
        _say(result.note, err)


@app.command()
def space(
    model: ModelOption = None,
    port: Annotated[int | None, typer.Option(help="By default the first free one.")] = None,
) -> None:
    """Open the demo page on this machine; nothing leaves it."""
    from .space import launch_space

    raise typer.Exit(launch_space(model, port))


corpora_app = typer.Typer(help="The corpora of the paper.", no_args_is_help=True)
app.add_typer(corpora_app, name="corpora", invoke_without_command=True, no_args_is_help=False)


@corpora_app.callback(invoke_without_command=True)
def corpora(context: typer.Context) -> None:
    """List the corpora that can be loaded by name."""
    if context.invoked_subcommand is None:
        from .rendering import render_corpora

        render_corpora(out)


@corpora_app.command("check")
def corpora_check(name: str, data_dir: DataOption) -> None:
    """Compare a copy of a corpus with what its owners publish."""
    from .corpora import check_corpus

    report = check_corpus(name, data_dir)
    _say(str(report))
    if not report.ok:
        raise typer.Exit(2)


@corpora_app.command("download")
def corpora_download(name: str, data_dir: DataOption) -> None:
    """Download a corpus whose owners allow it."""
    from .corpora import download_corpus

    with _progress() as progress:
        folder = download_corpus(
            name, data_dir, progress=lambda done, total: progress("download", done, total or 0, "")
        )
    _say(f"{name} in {folder}")


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar for each kind of work, with the time left; plain silence where there is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=err) as bars:

        def update(what: str, done: int, total: int, detail: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, detail=detail)
            bars.update(tasks[what], completed=done, total=total, detail=detail)
            if 0 < total <= done:
                bars.stop_task(tasks[what])

        yield update


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


def _command() -> str:
    """What the user typed, with file names only: records go public, folders on a disk do not."""
    words = ["timnet"]
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        words.append(option + equals + (Path(value).name if "/" in value else value))
    return shlex.join(words)


__all__ = ["app", "main"]

"""The command line: parse, call one public function, print. stdout carries the result, stderr the progress.

torch, mlflow and numpy are imported by the commands, so help and argument errors come at once.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from interpret import __version__
from interpret.errors import InterpretError, did_you_mean

if TYPE_CHECKING:
    from rich.progress import TaskID

    from interpret.comparison import Comparison
    from interpret.evidence import Evidence
    from interpret.reporting import ReportOptions

Command = TypeVar("Command", bound=Callable[..., Any])

FAILED_COLLECTOR, VIOLATED_POLICY, BAD_INPUT, INTERRUPTED = 1, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit code.

    0 done; 1 done, but a collector failed or a policy is violated; 2 bad usage or bad input; 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    state = {"debug": False, "command": ["interpret", *arguments]}
    try:
        code = commands.main(arguments, prog_name="interpret", standalone_mode=False, obj=state)
    except click.ClickException as error:
        error.show()
        return BAD_INPUT
    except click.Abort:
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except (InterpretError, OSError) as error:
        if state["debug"]:
            traceback.print_exc()
        message = " ".join(str(error).splitlines())  # also what others' code says in several
        click.echo(f"Error: {_printable(message)}", err=True)
        return BAD_INPUT
    return code if isinstance(code, int) else 0


# Options --------------------------------------------------------------------------------------------------------------


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj["debug"] = True


def _read_config(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Options of a TOML file become the defaults of this command; the command line wins."""
    if path is None:
        return
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} is not TOML: {error}", context, parameter) from error
    options = {option.name: option for option in context.command.params if isinstance(option, click.Option)}
    defaults: dict[str, Any] = {}
    for key, value in content.items():
        name = "directory" if key == "o" else key.replace("-", "_")
        option = options.get(name) or next(
            (o for o in options.values() if f"--{key.replace('_', '-')}" in o.opts), None
        )
        if option is None or option.name in (None, "config"):
            known = [o.opts[-1].lstrip("-") for o in options.values()]
            raise click.BadParameter(
                f"{path} has an unknown option {key!r}{did_you_mean(key, known)}", context, parameter
            )
        if isinstance(value, dict) and not option.multiple:
            raise click.BadParameter(f"{path}: {key!r} takes one value, not a table", context, parameter)
        defaults[str(option.name)] = _as_given(value, option.multiple)
    context.default_map = {**(context.default_map or {}), **defaults}


def _as_given(value: Any, multiple: bool) -> Any:
    """A TOML value as it would stand on the command line: tables are k=v, lists are joined by commas or repeated."""
    if isinstance(value, dict):
        return [f"{key}={entry}" for key, entry in value.items()]
    if isinstance(value, list):
        return value if multiple else ",".join(map(str, value))
    return [value] if multiple else value


def _numbers(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0.485,0.456,0.406") from error


def _steps(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    steps = value.replace(" ", "").split(",")
    if not all(step.isdecimal() and len(step) < 16 for step in steps):
        raise click.BadParameter(f"{value!r} is not a list of steps such as 0,100,2000")
    return tuple(map(int, steps))


def _sizes(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    sizes = value.replace(" ", "").split(",")
    if not all(size.isdecimal() and len(size) < 10 for size in sizes) or not 0 < math.prod(map(int, sizes)) < 10**9:
        raise click.BadParameter(f"{value!r} is not a list of sizes such as 3,224,224")
    return tuple(map(int, sizes))


def _batch_size(_: click.Context, __: click.Parameter, value: Any) -> int | str:
    if value == "auto":
        return "auto"
    if not str(value).isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a positive number nor auto")
    return int(value)


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    return () if names == ("none",) else names


def _features(_: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    chosen: dict[str, tuple[int, ...]] = {}
    for value in values:
        pattern, colon, listed = value.replace(" ", "").rpartition(":")
        if not (pattern and colon) or not re.fullmatch(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*", listed):
            raise click.BadParameter(f"{value!r} is not a call with channels, such as layer4.1.conv2:0,5,17-20")
        spans = [[int(end) for end in part.split("-")] for part in listed.split(",")]
        channels = [channel for span in spans for channel in range(span[0], span[-1] + 1)]
        chosen[pattern] = tuple(dict.fromkeys((*chosen.get(pattern, ()), *channels)))
    return chosen


def _formats(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...] | None:
    names = _names(context, parameter, value)
    for name in names or ():
        if name not in ("html", "pdf"):
            raise click.BadParameter(f"{name!r} is no format of a report; choose html, pdf or both")
    return names


def _pairs(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
    return dict(value.split("=", 1) for value in values)


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


common_options = _together(
    click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="TOML file with any of these options.",
    ),
    click.option(
        "--debug", is_flag=True, is_eager=True, expose_value=False, callback=_set_debug, help="Show tracebacks."
    ),
)

model_options = _together(
    click.option(
        "--model",
        metavar="SPEC",
        help="torchvision:NAME, timm:NAME, package.module:callable or file.py:callable; torchvision weights imply it.",
    ),
    click.option(
        "--model-arg",
        "model_arguments",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_pairs,
        help="Argument of the model's builder; repeatable.",
    ),
    click.option("--branch", help="Which weights to take from a file with several, such as model_ema."),
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Unpickle what is not only weights, such as a whole model. Runs the file's code with your rights.",
    ),
    click.option(
        "--forward",
        metavar="SPEC",
        help="Function (model, images) -> output, for models that take more than a batch of images.",
    ),
)

picture_options = _together(
    click.option("--skip-broken", is_flag=True, help="Leave out images that cannot be decoded, and say which."),
    click.option("--labels-from-folders", is_flag=True, help="The folder of an image is its class."),
    click.option("--labels", type=click.Path(dir_okay=False), help="CSV with the columns file,label."),
    click.option("--class-names", type=click.Path(dir_okay=False), help="One per line, or a JSON list or object."),
    click.option("--preprocess", metavar="SPEC", help="package.module:callable or file.py:callable, image to tensor."),
    click.option("--resize", type=click.IntRange(1), help="Shorter side, in pixels.  [default: 256]"),
    click.option("--crop", type=click.IntRange(1), help="Centre crop, in pixels.  [default: 224]"),
    click.option("--mean", metavar="R,G,B", callback=_numbers, help="Of values in [0, 1].  [default: ImageNet's]"),
    click.option("--std", metavar="R,G,B", callback=_numbers, help="Of values in [0, 1].  [default: ImageNet's]"),
    click.option("--interpolation", help="bilinear, bicubic, nearest, lanczos, ...  [default: bilinear]"),
    click.option("--probe-count", type=click.IntRange(1), help="Images to run, evenly spaced.  [default: 64]"),
)

image_options = _together(
    click.option("--images", metavar="PATH", help="Folder (recursive), file or glob."),
    click.option(
        "--probe",
        metavar="DIR",
        help="Folder of a probe set, instead of images; its targets and display count hold unless they are given.",
    ),
    picture_options,
)

SETTLED = (
    "images", "probe_count", "skip_broken", "labels_from_folders", "labels", "class_names",
    "preprocess", "resize", "crop", "mean", "std", "interpolation",
)  # fmt: skip

targets_option = click.option(
    "--targets",
    help="Classes that maps explain: predicted, label, a class index, or a RUN whose targets are taken; or a list.  "
    "[default: predicted]",
)

display_count_option = click.option(
    "--display-count", type=click.IntRange(0), help="Images with pictures and maps.  [default: 4]"
)

audit_options = _together(
    targets_option,
    click.option(
        "--layers",
        multiple=True,
        metavar="GLOB",
        help="Calls with pictures and maps, or operations, fx:NODE; repeatable.",
    ),
    click.option(
        "--methods",
        metavar="LIST",
        callback=_names,
        help="Maps and attributions: names, default, all, or none.  [default: those of one forward and backward]",
    ),
    click.option("--trust", is_flag=True, help="Put the maps at stage ends to the test, beside two controls."),
    click.option(
        "--features",
        metavar="CALL:CHANNELS",
        multiple=True,
        callback=_features,
        help="Show what excites channels, such as layer4.1.conv2:0,5,17-20; repeatable.",
    ),
    click.option(
        "--kernels", multiple=True, metavar="GLOB", help="Keep all kernels of these calls, to be matched; repeatable."
    ),
    display_count_option,
    click.option(
        "--batch-size",
        default="16",
        show_default=True,
        metavar="N|auto",
        callback=_batch_size,
        help="Images per forward; auto takes what a quarter of the free memory holds.",
    ),
    click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: cpu]"),
    click.option("--seed", default=0, show_default=True, type=int),
)

tracking_uri_option = click.option(
    "--tracking-uri", metavar="URI", help="MLflow server or database.  [default: MLflow's own]"
)

mlflow_options = _together(
    click.option("--no-mlflow", is_flag=True, help="Keep the evidence on this disk only."),
    tracking_uri_option,
    click.option("--experiment", help="MLflow experiment; made if it is new."),
    click.option("--force", is_flag=True, help="Make a new run even if the same audit is there already."),
)

experiments_option = click.option(
    "--experiment",
    "experiments",
    metavar="NAME",
    multiple=True,
    help="MLflow experiment in which runs are looked up; repeatable.  [default: all]",
)

runs_options = _together(
    click.argument("runs", metavar="[RUN...]", nargs=-1),
    click.option("--reference", metavar="RUN", help="The run that the others are compared with.  [default: the first]"),
    experiments_option,
    click.option(
        "--filter",
        "matching",
        metavar="FILTER",
        help="Search runs instead of naming them: a filter as MLflow's runs page takes it.",
    ),
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

output_option = click.option(
    "-o",
    "--output",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False),
    required=True,
    help="Folder of the report.",
)

report_options = _together(
    click.option("--title", help="Heading of the report."),
    click.option(
        "--detail",
        type=click.Choice(["matters", "all"]),
        default="matters",
        show_default=True,
        help="Chapters for the calls that matter, or for every call.",
    ),
    click.option("--brief", is_flag=True, help="Verdict, identity and the calls that matter, on six pages at most."),
    click.option("--format", "formats", default="html,pdf", show_default=True, callback=_formats, help="html, pdf."),
    click.option(
        "--templates", type=click.Path(exists=True, file_okay=False), help="Folder searched for templates first."
    ),
    click.option(
        "--sections", metavar="LIST", callback=_names, help="What the report holds, by commas.  [default: all]"
    ),
    click.option(
        "--lang", "language", metavar="en|zh", default="en", show_default=True, help="Language of the report."
    ),
)


# Commands -------------------------------------------------------------------------------------------------------------


def _examples(*lines: str) -> str:
    """Text for the end of a command's help, not rewrapped."""
    return "\b\n" + "\n".join(("Examples:", *(f"  {line}" for line in lines)))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=_examples(
        "interpret demo",
        "interpret diff old.pt new.pt --model torchvision:resnet50 --images photos/ -o report",
    ),
)
@click.version_option(__version__, prog_name="interpret", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks.")
@click.pass_context
def commands(context: click.Context) -> None:
    """Open a trained vision network layer by layer, log it to MLflow, and report what changed between runs."""
    logging.getLogger().setLevel(logging.ERROR)  # of other packages
    logger, handler = logging.getLogger("interpret"), logging.StreamHandler()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    context.call_on_close(lambda: logger.removeHandler(handler))
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # this command has its own


@commands.command(
    epilog=_examples(
        "interpret audit best.pt --model torchvision:resnet50 --images photos/",
        "interpret audit runs:/3f2a9c --model nets.py:build --images val/ --labels-from-folders",
        "interpret audit new.pt --model torchvision:resnet50 --images photos/ --targets 3f2a9c",
        "interpret audit new.pt --model torchvision:resnet50 --probe probe/",
        "interpret audit 'runs:/3f2a9c/*' --model nets.py:build --images val/",
    )
)
@click.argument("checkpoints", metavar="CHECKPOINT...", nargs=-1, required=True)
@model_options
@image_options
@audit_options
@click.option(
    "--out",
    type=click.Path(),
    help="Folder that becomes the evidence bundle; must be empty or absent. Of several checkpoints, a folder for each.",
)
@mlflow_options
@click.option("--run-id", help="Log into this MLflow run instead of a new one.")
@click.option("--run-name", help="Name of the new run.  [default: the checkpoint's]")
@click.option("--step", type=click.IntRange(0), help="Training step of the checkpoint.  [default: what it says itself]")
@json_option
@common_options
def audit(
    checkpoints: tuple[str, ...],
    out: str | None,
    no_mlflow: bool,
    tracking_uri: str | None,
    experiment: str | None,
    force: bool,
    run_id: str | None,
    run_name: str | None,
    step: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Audit a checkpoint on probe images, or several of one training.

    CHECKPOINT: a file; runs:/RUN_ID[/PATH]; models:/NAME/VERSION, /latest, models:/NAME@ALIAS or models:/MODEL_ID;
    mlflow-artifacts:/...; or torchvision:ResNet50_Weights.IMAGENET1K_V2. 'runs:/RUN_ID/*' stands for all checkpoints of
    a run. Each becomes a run of its own with its step, a child of the training's run; the maps of all explain the
    targets of the first.

    Prints the MLflow run, where its artifacts lie, and the folder of the evidence.
    """
    if no_mlflow and out is None:
        raise click.UsageError("--no-mlflow needs --out DIR, or nothing of the audit would be left")
    _check_images(options)
    from interpret import sources

    if not no_mlflow:
        _check_store(tracking_uri)
    where: dict[str, Any] = {
        "tracking_uri": tracking_uri,
        "experiment": experiment,
        "run_id": run_id,
        "run_name": run_name,
    }
    chosen = sources.list_checkpoints(checkpoints, tracking_uri=tracking_uri)
    several = len(chosen) > 1
    if several and (run_id, run_name, step) != (None, None, None):
        raise click.UsageError("--run-id, --run-name and --step are of one checkpoint; leave them out for several")
    results: list[dict[str, Any]] = []

    def log(evidence: Evidence, folder: str | None, notify: Callable[[str, int, int], None]) -> None:
        run = location = None
        if not no_mlflow:
            from interpret import publishing, tracking

            run = publishing.publish(evidence, force=force, progress=notify, **where)
            location = tracking.artifact_location(run, tracking_uri=tracking_uri)
            local = tracking.local_folder(location)
            folder = folder or (str(local / tracking.BUNDLE) if local is not None else None)
        manifest = evidence.manifest
        step = {"step": manifest.checkpoint["step"]} if several else {}
        results.append(
            {"run_id": run, "artifact_location": location, "evidence": folder, "status": manifest.status, **step}
        )

    def note_failure(uri: str, error: BaseException) -> None:
        if not no_mlflow:
            from interpret import publishing

            publishing.log_failure(error, step=step, checkpoint_uri=uri, **where)

    with _Progress() as progress, tempfile.TemporaryDirectory(prefix="interpret-") as temporary:
        asked = {**options, "tracking_uri": tracking_uri, "command": _command(), "failed": note_failure}
        if several:
            audited = sources.audit_several(
                chosen,
                Path(out or temporary),
                progress=progress.of,
                finished=lambda name, evidence: log(evidence, out and str(evidence.folder), progress.of(name)),
                **asked,
            )
        else:
            evidence = sources.audit_checkpoint(chosen[0], out=out, step=step, progress=progress, **asked)
            log(evidence, out, progress)
            audited = {"": evidence}
        code = max(_failures(evidence) for evidence in audited.values())
        for evidence in audited.values():
            evidence.close()
    if as_json:
        click.echo(json.dumps(results if several else results[0], indent=2))
    elif several:
        _print_table({name: [result[name] for result in results] for name in ("run_id", "step", "status", "evidence")})
    else:
        run, location, folder = (results[0][name] for name in ("run_id", "artifact_location", "evidence"))
        click.echo(f"run        {run or '-'}")
        click.echo(f"artifacts  {location or '-'}")
        click.echo(f"evidence   {folder or f'in the artifacts; `interpret show {run}` fetches it'}")
    return code


@commands.command(
    epilog=_examples(
        "interpret probe photos/ -o probe",
        "interpret probe val/ --labels-from-folders --resize 256 --crop 224 --targets label -o probe",
        "interpret probe photos/ --weights torchvision:ResNet50_Weights.IMAGENET1K_V2 --display-count 8 -o probe",
    )
)
@click.argument("images", metavar="PATH")
@picture_options
@click.option("--weights", metavar="torchvision:...", help="Published weights: their preprocessing and class names.")
@targets_option
@display_count_option
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False),
    required=True,
    help="Folder of the probe set; must be empty or absent.",
)
@tracking_uri_option
@json_option
@common_options
def probe(images: str, folder: str, as_json: bool, **options: Any) -> None:
    """Freeze images, preprocessing, labels and targets, so that audits can be repeated to the bit.

    PATH: a folder (recursive), a file or a glob. `interpret audit CHECKPOINT --probe DIR` then sees the very same
    tensors, whatever becomes of the photos and of the libraries that prepared them. The targets of a RUN are looked up
    now.
    """
    from interpret import sources

    with _Progress() as progress:
        frozen = sources.freeze_probe(images, folder, progress=progress, **options).images
    shape = tuple(frozen.images.shape)
    result = {"probe": folder, "probe_sha256": frozen.probe_sha256, "shape": shape, "displayed": len(frozen.pictures)}
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(f"probe   {folder}")
        click.echo(f"sha256  {frozen.probe_sha256}")
        click.echo(f"images  {len(frozen)} of {_shape(shape)}, {len(frozen.pictures)} with pictures")


@commands.command(
    epilog=_examples(
        "interpret report 3f2a9c -o report",
        "interpret report 3f2a9c 77ab01 --reference 77ab01 -o report",
        "interpret report --experiment sweep --filter \"tags.lr = '0.1'\" --log -o report",
    )
)
@runs_options
@click.option("--labels", callback=_names, help="Names of the runs in the report, the reference's first, by commas.")
@click.option(
    "--steps",
    metavar="LIST",
    callback=_steps,
    help="Training steps of the runs, for a timeline; the reference's first, by commas.  [default: the runs' own]",
)
@output_option
@report_options
@click.option("--log", is_flag=True, help="Log the comparison as an MLflow run of its own, linked to its runs.")
@click.option(
    "--ui-url",
    metavar="URL",
    help="Where MLflow's pages are served: the report links its runs and their layers' pictures there.",
)
@tracking_uri_option
@json_option
@common_options
def report(
    runs: tuple[str, ...],
    reference: str | None,
    experiments: tuple[str, ...],
    matching: str | None,
    labels: tuple[str, ...] | None,
    steps: tuple[int, ...] | None,
    directory: str,
    log: bool,
    tracking_uri: str | None,
    as_json: bool,
    **report_settings: Any,
) -> None:
    """Draw the report of one run, or of several against a reference.

    RUN: an MLflow run id; a run's name; runs:/ID; models:/... (its source run); or a folder that holds an evidence
    bundle. Without RUN, the audits that --experiment and --filter find are taken, by step, then by start. Files are
    downloaded when they are needed and kept in ~/.cache/mlflow-interpret; INTERPRET_CACHE names another folder.
    """
    how = _how_to_report(report_settings)
    with _Progress() as progress, tempfile.TemporaryDirectory(prefix="interpret-") as folder:
        progress("evidence", 0, 1)
        evidence, origins = _fetch(runs, reference, matching, experiments, Path(folder), tracking_uri)
        progress("evidence", 1, 1)
        _check_count("--labels", "names", labels, evidence)
        _check_count("--steps", "steps", steps, evidence)
        if log and len(evidence) < 2:
            raise click.UsageError("--log logs a comparison, but there is one run only; name another")
        if steps is not None:
            origins = [{**origin, "step": step} for origin, step in zip(origins, steps, strict=True)]
        destination = {"tracking_uri": tracking_uri, "experiment": experiments[0] if len(experiments) == 1 else None}
        log_into = destination if log else None
        _report(evidence, labels, origins, directory, how, as_json, progress, log_into)


def _fetch(
    runs: Sequence[str],
    reference: str | None,
    matching: str | None,
    experiments: Sequence[str],
    folder: Path,
    tracking_uri: str | None,
) -> tuple[list[Evidence], list[dict[str, Any]]]:
    """Evidence and origins of the runs that were named or that a search finds, the reference first."""
    if runs and matching is not None:
        raise click.UsageError("--filter searches runs instead of naming them; leave out either of them")
    if not (runs or experiments or matching is not None):
        raise click.UsageError("name a RUN, or search runs with --experiment and --filter")
    from interpret import sources

    where: dict[str, Any] = {"experiments": experiments, "tracking_uri": tracking_uri}
    if not runs:
        return sources.search_runs(matching, folder, reference=reference, **where)
    given = list(runs)
    if reference is not None:
        given = [reference, *(run for run in given if run != reference)]
    return sources.fetch_runs(given, folder, **where)


def _check_count(option: str, what: str, given: Sequence[Any] | None, evidence: Sequence[Evidence]) -> None:
    if given is not None and len(given) != len(evidence):
        raise click.BadParameter(f"{len(given)} {what} for {len(evidence)} runs", param_hint=option)


def _show_policy(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from interpret import policies

        click.echo(policies.default_policy(), nl=False)
        context.exit()


@commands.command(
    epilog=_examples(
        "interpret check 77ab01 --reference 3f2a9c --junit policy.xml",
        "interpret check audits/new --policy policy.toml",
        "interpret check --show-policy > policy.toml",
    )
)
@runs_options
@click.option("--labels", callback=_names, help="Names of the runs, the reference's first, by commas.")
@click.option("--policy", metavar="FILE", default="default", show_default=True, help="TOML file with the rules.")
@click.option(
    "--show-policy",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_policy,
    help="Print the default policy, to start from, and exit.",
)
@click.option("--junit", "junit_file", metavar="FILE", type=click.Path(dir_okay=False), help="JUnit XML to write, too.")
@tracking_uri_option
@json_option
@common_options
def check(
    runs: tuple[str, ...],
    reference: str | None,
    experiments: tuple[str, ...],
    matching: str | None,
    labels: tuple[str, ...] | None,
    policy: str,
    junit_file: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> int:
    """Hold runs against a policy: limits on statistics, comparisons and findings. Exits with 1 where it is violated.

    RUN: an MLflow run id; a run's name; runs:/ID; models:/... (its source run); or a folder that holds an evidence
    bundle. Without RUN, the audits that --experiment and --filter find are taken, by step, then by start. Each is held
    against the reference; for a run alone, rules that need a reference are not checked.
    """
    from interpret import junit, policies

    rules = policies.read_policy(policy)
    with _Progress() as progress, tempfile.TemporaryDirectory(prefix="interpret-") as folder:
        progress("evidence", 0, 1)
        evidence, origins = _fetch(runs, reference, matching, experiments, Path(folder), tracking_uri)
        progress("evidence", 1, 1)
        _check_count("--labels", "names", labels, evidence)
        result = policies.check_policy(*evidence, policy=rules, labels=labels, origins=origins)
    if junit_file is not None:
        junit.write_junit(result, junit_file)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _print_table(result.table())
        click.echo("\n".join(map(_printable, result.summary())))
    return VIOLATED_POLICY if result.violated else 0


@commands.command(
    epilog=_examples("interpret diff old.pt new.pt --model torchvision:resnet50 --images photos/ -o report")
)
@click.argument("a")
@click.argument("b")
@model_options
@image_options
@audit_options
@output_option
@report_options
@mlflow_options
@json_option
@common_options
def diff(
    a: str,
    b: str,
    targets: str | None,
    directory: str,
    no_mlflow: bool,
    tracking_uri: str | None,
    experiment: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Audit two checkpoints and compare them layer by layer.

    The maps of B explain the targets of A. The evidence stays in DIR/evidence.
    """
    _check_images(options)
    from interpret import sources

    if not no_mlflow:
        _check_store(tracking_uri)
    how = _how_to_report(options)
    with _Progress() as progress, _Publisher() as publisher:
        audited = sources.audit_several(
            (a, b),
            Path(directory, "evidence"),
            targets=targets,
            tracking_uri=tracking_uri,
            command=_command(),
            progress=progress.of,
            **({} if no_mlflow else {"finished": publisher.draw}),
            **options,
        )
        origins = None
        if not no_mlflow:
            destination = {"tracking_uri": tracking_uri, "experiment": experiment, "force": force}
            origins = publisher.publish(audited, progress, **destination)
        _report(list(audited.values()), tuple(audited), origins, directory, how, as_json, progress)
    return max(_failures(evidence) for evidence in audited.values())


@commands.command(epilog=_examples("interpret show 3f2a9c", "interpret show audits/new --json"))
@click.argument("run")
@experiments_option
@tracking_uri_option
@json_option
@common_options
def show(run: str, experiments: tuple[str, ...], tracking_uri: str | None, as_json: bool) -> int:
    """Print an audit: its layers, their numbers, and what stands out.

    RUN: an MLflow run id; a run's name; runs:/ID; models:/... (its source run); or a folder that holds an evidence
    bundle.
    """
    from interpret import publishing, sources
    from interpret.findings import findings_of

    with tempfile.TemporaryDirectory(prefix="interpret-") as folder:
        (evidence,), (origin,) = sources.fetch_runs(
            [run], Path(folder), experiments=experiments, tracking_uri=tracking_uri
        )
        manifest = evidence.manifest
        identity = {
            "run": origin.get("run_id") or str(evidence.folder),
            "model": manifest.model["name"],
            "checkpoint": manifest.checkpoint["uri"],
            "state_sha256": manifest.checkpoint["state_sha256"],
            "images": manifest.inputs["count"],
            "status": manifest.status,
        }
        table = publishing.layers_table(evidence)
        findings = [finding.to_dict() for finding in findings_of(evidence, origin.get("run_name"))]
        code = _failures(evidence)
    if as_json:
        click.echo(json.dumps({**identity, "layers": _rows(table), "findings": findings}, indent=2))
        return code
    for name, value in identity.items():
        click.echo(_printable(f"{name:<13}{value or '-'}"))
    _print_table(table)
    for finding in findings:
        where = f"{finding['layer']}: " if finding["layer"] else ""
        click.echo(_printable(f"{finding['severity']:<9}{where}{finding['message']}"))
    return code


@commands.command(
    epilog=_examples(
        "interpret layers best.pt --model torchvision:resnet50",
        "interpret layers best.pt --model nets.py:build --model-arg width=64 --input-shape 1,28,28",
        "interpret layers vit.pt --model torchvision:vit_b_16 --kind convolution --kind linear --summary",
    )
)
@click.argument("checkpoint")
@model_options
@click.option("--input-shape", default="3,224,224", show_default=True, callback=_sizes, help="C,H,W of one image.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="Only convolution, linear, normalization, activation, pooling, attention, container or other; or downsample: "
    "calls whose output is spatially smaller than their input. Repeatable.",
)
@click.option("--layers", "patterns", multiple=True, metavar="GLOB", help="Only these calls; repeatable.")
@click.option("--summary", is_flag=True, help="Print torchinfo's own table too.")
@tracking_uri_option
@json_option
@common_options
def layers(
    checkpoint: str,
    model: str | None,
    model_arguments: Mapping[str, str],
    branch: str | None,
    trust_pickle: bool,
    forward: str | None,
    input_shape: tuple[int, ...],
    kinds: tuple[str, ...],
    patterns: tuple[str, ...],
    summary: bool,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """List every call of a model: shapes, receptive fields, parameters, multiply-adds; and their number by type.

    A call is one execution of a module, at any depth. The field is the part of the image that a position of the output
    depends on, and its step from position to position, in pixels.
    """
    from interpret import sources, tracing
    from interpret.evidence import KINDS

    known = (*KINDS, "downsample")
    for kind in kinds:
        if kind not in known:
            hint = did_you_mean(kind, known) or f"; there are {', '.join(known)}"
            raise click.BadParameter(f"there is no kind {kind!r}{hint}", param_hint="--kind")
    trace = sources.trace_checkpoint(
        checkpoint,
        model,
        model_arguments,
        branch,
        input_shape,
        forward=forward,
        trust_pickle=trust_pickle,
        tracking_uri=tracking_uri,
    )
    chosen = tracing.select(trace.calls, list(patterns) or None)
    calls = [call for call in chosen if not kinds or call.kind in kinds or (call.downsamples and "downsample" in kinds)]
    totals: dict[str, Any] = {
        "calls": len(calls),
        "parameters": sum(call.parameters for call in calls),
        "multiply_adds": trace.multiply_adds,
        "kinds": dict(Counter(call.kind for call in calls).most_common()),
        "types": dict(Counter(call.type for call in calls).most_common()),
        "downsample": sum(call.downsamples for call in calls),
        "unused": list(trace.unused),
    }
    differences = list(trace.torchinfo_differences)
    if as_json:
        rows = [
            {
                **dataclasses.asdict(call),
                "downsamples": call.downsamples,
                "own_multiply_adds": trace.own_multiply_adds[call.position],
            }
            for call in calls
        ]
        torchinfo = {
            "multiply_adds": sum(trace.counted_by_torchinfo.values()),
            "differences": differences,
            "summary": trace.summary,
            "error": trace.summary_error,
        }
        click.echo(json.dumps({"layers": rows, "totals": totals, "torchinfo": torchinfo}, indent=2))
        return
    fields = [call.receptive_field for call in calls]
    _print_table(
        {
            "key": [call.key or "(the model)" for call in calls],
            "type": [call.type for call in calls],
            "kind": [call.kind for call in calls],
            "weight": [_by(call.weight_shape) for call in calls],
            "input": [_shape(call.input_shape) for call in calls],
            "output": [_shape(call.output_shape) for call in calls],
            "field": [_by(None if field is None else field.size) for field in fields],
            "step": [_by(field.stride if field is not None and any(field.stride) else None) for field in fields],
            "parameters": [call.parameters for call in calls],
            "multiply_adds": [call.multiply_adds for call in calls],
        }
    )
    click.echo(
        f"{len(calls)} calls, {totals['parameters']:,} parameters, "
        f"{tracing.count_in_words(trace.multiply_adds)} multiply-adds in the whole model"
    )
    click.echo(", ".join(f"{count} {name}" for name, count in totals["types"].items()))
    click.echo(f"{totals['downsample']} downsample: {_listed([call.key for call in calls if call.downsamples])}")
    if trace.unused:
        click.echo(f"{len(trace.unused)} tensors of the state belong to no call: {_listed(trace.unused)}")
    if differences:
        total = tracing.count_in_words(sum(trace.counted_by_torchinfo.values()))
        click.echo(f"torchinfo counts {total} multiply-adds:")
        click.echo("\n".join(f"  {sentence}" for sentence in differences))
    if summary:
        click.echo(f"\n{trace.summary or trace.summary_error}")


@commands.command(epilog=_examples("interpret demo -o demo-report"))
@click.option(
    "-o",
    "--output",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False),
    default="demo-report",
    show_default=True,
    help="Folder of everything that the demo writes.",
)
@json_option
@common_options
def demo(directory: str, as_json: bool) -> int:
    """Audit and compare three checkpoints on real photos, offline.

    EfficientNet-Lite0 as published; rounded to 8 bits; and rounded with 30 % of one convolution's filters at zero.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the layers of this small network are too short to share
    from interpret import demonstration, sources, tracking

    place = Path(directory).resolve()
    with _Progress() as progress, _Publisher() as publisher:
        progress("demo input", 0, 1)
        demonstration.write_images(place / "images")
        demonstration.write_class_names(place / "class_names.txt")
        checkpoints = demonstration.write_checkpoints(place / "checkpoints")
        progress("demo input", 1, 1)
        audited = sources.audit_several(
            [str(checkpoint) for checkpoint in checkpoints],
            place / "evidence",
            images=place / "images",
            model=demonstration.MODEL,
            class_names=place / "class_names.txt",
            command=_command(),
            progress=progress.of,
            finished=publisher.draw,
            **demonstration.PREPROCESSING,
        )
        uri = f"sqlite:///{place / 'mlflow.db'}"
        tracking.make_experiment("interpret-demo", (place / "mlruns").as_uri(), tracking_uri=uri)
        origins = publisher.publish(audited, progress, tracking_uri=uri, experiment="interpret-demo")
        how = _how_to_report({})
        comparison = _report(list(audited.values()), tuple(audited), origins, directory, how, as_json, progress)
    if comparison is not None and not as_json:
        mlflow = shutil.which("mlflow") or str(Path(sys.executable).with_name("mlflow"))
        click.echo(f"runs    {shlex.join([mlflow, 'ui', '--backend-store-uri', uri])}")
        click.echo(demonstration.sentence(comparison.to_dict()))
    return max(_failures(evidence) for evidence in audited.values())


# Printing -------------------------------------------------------------------------------------------------------------


class _Progress:
    """Shows the stages of long work on stderr: as bars on a terminal, else as one line for each stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._bars is None:
            if stage not in self._seen:
                self._seen.add(stage)
                click.echo(stage, err=True)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def of(self, name: str) -> Callable[[str, int, int], None]:
        """The progress of one audit among several."""
        return lambda stage, done, total: self(f"{name}: {stage}", done, total)


def _command() -> list[str]:
    """The command line, as it was typed."""
    command: list[str] = click.get_current_context().find_root().obj["command"]
    return command


def _check_images(options: Mapping[str, Any]) -> None:
    """Refuse options that a probe set has settled, and an audit of nothing."""
    probe = options["probe"]
    given = [f"--{name.replace('_', '-')}" for name in SETTLED if options[name] not in (None, False)]
    if probe is None and options["images"] is None:
        raise click.UsageError("give images as --images PATH, or a probe set as --probe DIR")
    if probe is not None and given:
        raise click.UsageError(
            f"--probe {probe} has its own images, preprocessing, labels and class names; leave out {', '.join(given)}"
        )


def _check_store(tracking_uri: str | None) -> None:
    """Find out before a long audit, not behind it, that MLflow cannot be reached."""
    from interpret import tracking

    tracking.connect(tracking_uri)


class _Publisher:
    """Draws the views of each audit in a process of its own, while others are still audited, and logs them in order."""

    def __init__(self) -> None:
        from concurrent.futures import Future, ProcessPoolExecutor
        from multiprocessing import get_context

        self._pool = ProcessPoolExecutor(min(2, os.cpu_count() or 1), get_context("spawn"))
        self._drawn: dict[str, Future[None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def draw(self, name: str, evidence: Evidence) -> None:
        """Start to draw."""
        from interpret import publishing
        from interpret.reporting import ReportOptions

        options = ReportOptions(title=name)
        self._drawn[name] = self._pool.submit(publishing.write_views, evidence.folder, options=options)

    def publish(self, audited: Mapping[str, Evidence], progress: _Progress, **destination: Any) -> list[dict[str, Any]]:
        """Log the audits once they are drawn; return where each came to lie."""
        from interpret import publishing, tracking

        origins = []
        for name, evidence in audited.items():
            progress(f"{name}: previews and report", 0, 1)
            self._drawn[name].result()
            progress(f"{name}: previews and report", 1, 1)
            run_id = publishing.publish(evidence, run_name=name, views=False, progress=progress.of(name), **destination)
            origins.append(tracking.run_origin(run_id, tracking_uri=destination["tracking_uri"]))
        return origins


def _how_to_report(options: dict[str, Any]) -> tuple[ReportOptions, Sequence[str]]:
    """Take what is about the report out of a command's options; what cannot be is refused before any work is done."""
    from interpret.reporting import FORMATS, ReportOptions

    formats = options.pop("formats", None) or FORMATS
    names = [field.name for field in dataclasses.fields(ReportOptions) if field.name in options]
    return ReportOptions(**{name: options.pop(name) for name in names}), formats


def _report(
    evidence: Sequence[Evidence],
    labels: Sequence[str] | None,
    origins: Sequence[Mapping[str, Any]] | None,
    directory: str,
    how: tuple[ReportOptions, Sequence[str]],
    as_json: bool,
    progress: _Progress,
    log_into: Mapping[str, str | None] | None = None,
) -> Comparison | None:
    """Write the report of one run or of several, log it if it is to be, and print where it is and what it says."""
    from interpret.comparison import compare
    from interpret.reporting import write_report

    comparison, (options, formats) = None, how
    if len(evidence) > 1:
        progress("comparison", 0, 1)
        comparison = compare(*evidence, labels=labels, origins=origins)
        progress("comparison", 1, 1)
    progress("report", 0, 1)
    written = write_report(
        comparison or evidence[0],
        directory,
        formats,
        options,
        origin=origins[0] if origins else None,
    )
    progress("report", 1, 1)
    run_id = None
    if comparison is not None and log_into is not None:
        from interpret import publishing

        run_id = publishing.log_comparison(comparison, written, run_name=options.title, **log_into)
    files = {name: str(path) for name, path in written.items()}
    logged = {} if run_id is None else {"run_id": run_id}
    rows = _verdicts(comparison) if comparison is not None else {}
    if as_json:
        click.echo(json.dumps({"report": files, **logged, **({"runs": _rows(rows)} if rows else {})}, indent=2))
    else:
        if rows:
            _print_table(rows)
        for name, path in {**files, **({} if run_id is None else {"run": run_id})}.items():
            click.echo(f"{name:<8}{path}")
    return comparison


def _verdicts(comparison: Comparison) -> dict[str, list[Any]]:
    others = comparison.labels[1:]
    return {
        "run": list(others),
        "reference": [comparison.reference for _ in others],
        "verdict": [comparison.verdict[label] for label in others],
        "most suspicious": [next(iter(comparison.ranking[label]), None) for label in others],
        "first divergence": [comparison.first_divergence[label] for label in others],
    }


def _failures(evidence: Evidence) -> int:
    """Name the collectors that failed; return the exit code."""
    failed = {name: state for name, state in evidence.manifest.collectors.items() if state["status"] == "failed"}
    for name, state in failed.items():
        click.echo(_printable(f"Warning: the collector {name!r} failed: {state['message']}"), err=True)
    return FAILED_COLLECTOR if failed else 0


def _rows(table: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _by(sizes: Sequence[float] | None) -> str | None:
    return None if sizes is None else "x".join(f"{size:g}" for size in sizes)


def _listed(names: Sequence[str], most: int = 8) -> str:
    return _printable(", ".join(names[:most])) + (", ..." if len(names) > most else "") if names else "none"


def _shape(shape: Sequence[int] | None) -> str | None:
    return None if shape is None else "x".join(map(str, shape[1:]))


def _print_table(table: Mapping[str, Sequence[Any]]) -> None:
    """Print columns; a pipe gets them unwrapped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name, cells in table.items():
        numeric = any(isinstance(cell, int | float) for cell in cells)
        drawn.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in zip(*table.values(), strict=True):
        drawn.add_row(*(Text(_cell(cell)) for cell in row))
    console.print(drawn)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else _printable(str(value))


def _printable(text: str) -> str:
    """The text with what would move the cursor, end the line or turn the direction of writing as escapes."""
    hidden = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(hidden, lambda found: ascii(found[0])[1:-1], text)

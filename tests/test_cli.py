from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from PIL import Image
from torch import nn

from bundles import bundle, network, scaled, zeroed_filters
from interpret import __version__, cli
from interpret.evidence import read_evidence

# mlflow 3.17 with SQLAlchemy 2.1 (November 2026): mlflow's own queries use a loader that SQLAlchemy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

COMMANDS = ("audit", "check", "demo", "diff", "layers", "probe", "report", "show")

NET = """
from torch import nn

def build(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )

def crop(image):
    import torch
    return torch.zeros(3, 16, 16) + image.getpixel((0, 0))[0] / 255
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.py, two checkpoints, and photos in two class folders."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "net.py").write_text(NET)
    space: dict[str, Any] = {}
    exec(NET, space)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = space["build"]()
        torch.save(model.state_dict(), folder / "old.pt")
        with torch.no_grad():
            model.get_parameter("4.weight")[:2] = 0
        torch.save(model.state_dict(), folder / "new.pt")
    pixels = np.random.default_rng(0)
    for number, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "dog/e.png")):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = pixels.integers(0, 255, (20, 20 + number, 3), np.uint8)
        Image.fromarray(picture).save(folder / "photos" / name)
    (folder / "names.txt").write_text("cat\ndog\nbird\n")
    return folder


@pytest.fixture
def options(inputs: Path) -> list[str]:
    return [
        *("--model", f"{inputs / 'net.py'}:build"),
        *("--images", str(inputs / "photos")),
        *("--resize", "16", "--crop", "16", "--methods", "grad-cam", "--display-count", "2"),
    ]


@pytest.fixture
def place(store: str, tmp_path: Path) -> list[str]:
    client = MlflowClient(tracking_uri=store)
    client.create_experiment(tmp_path.name, artifact_location=(tmp_path / "artifacts").as_uri())
    return ["--tracking-uri", store, "--experiment", tmp_path.name]


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


# -------------------------------------------------------------------------------------------------------- help, errors


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(cli.commands, [command, "--help"])
    assert result.exit_code == 0
    assert f"  interpret {command}" in result.output.partition("Examples:")[2]


def test_the_commands_are_those_that_exist() -> None:
    assert tuple(sorted(cli.commands.commands)) == COMMANDS


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), (["audit", "--help"], 0), (["audit", "x.pt"], 2), (["nonsense"], 2)],
)
def test_help_and_usage_errors_are_light(arguments: list[str], code: int) -> None:
    script = (
        "import sys\nfrom interpret.__main__ import main\n"
        f"sys.argv[1:] = {arguments!r}\ncode = main()\n"
        "print(code, *{'torch', 'mlflow', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(code)
    if code:
        assert done.stderr.count("Error") == 1
        assert "Traceback" not in done.stderr


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"interpret {__version__}\n"


def test_bad_input_is_one_message_and_a_traceback_on_request(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    assert run("show", missing, "--tracking-uri", f"sqlite:///{tmp_path / 'empty.db'}") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(missing) in captured.err
    assert captured.err.count("\n") == 1
    for arguments in (["show", str(tmp_path), "--debug"], ["--debug", "show", str(tmp_path)]):
        assert run(*arguments) == 2
        assert "Traceback" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_message_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, inputs: Path, options: list[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    code = run("audit", inputs / "old.pt", *options, "--no-mlflow", "--out", tmp_path / "file" / "below")
    assert code == 2
    error = capsys.readouterr().err
    assert "file/below" in error
    assert "Traceback" not in error


def test_an_interrupt_leaves_nothing_half_written(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    inputs: Path,
    options: list[str],
) -> None:
    from interpret.collectors.gram import Gram

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Gram, "observe", interrupted)
    assert run("audit", inputs / "old.pt", *options, "--no-mlflow", "--out", tmp_path / "evidence") == 130
    assert not (tmp_path / "evidence").exists()
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-mlflow"], "--no-mlflow needs --out"),
        (["--mean", "a,b"], "'a,b' is not a list of numbers"),
        (["--model-arg", "width"], "'width' is not of the form NAME=VALUE"),
        (["--probe-count", "0"], "0 is not in the range"),
        (["--batch-size", "0"], "'0' is neither a positive number nor auto"),
        (["--batch-size", "all"], "'all' is neither a positive number nor auto"),
        (["--features", "conv1"], "'conv1' is not a call with channels, such as layer4.1.conv2:0,5,17-20"),
        (["--features", "conv1:a"], "'conv1:a' is not a call with channels"),
        (["--features", ":3"], "':3' is not a call with channels"),
    ],
)
def test_bad_options_are_explained(
    capsys: pytest.CaptureFixture[str], inputs: Path, options: list[str], arguments: list[str], message: str
) -> None:
    assert run("audit", inputs / "old.pt", *options, *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "predicted,lable"], "did you mean 'label'"),
        (["--labels-from-folders", "--labels", "labels.csv"], "not from both"),
        (["--preprocess", "net.py:crop"], "leave out --resize, --crop"),
        (["--model-arg", "depth=3"], "has no argument 'depth'"),
        (["--methods", "grad-cam,saliensy"], "did you mean 'saliency'"),
        (["--features", "nowhere:1"], "layer 'nowhere' matches none"),
        (["--layers", "fx:add"], "'fx:add' is no operation of the traced model"),
    ],
)
def test_what_does_not_fit_is_explained(
    capsys: pytest.CaptureFixture[str], inputs: Path, options: list[str], arguments: list[str], message: str
) -> None:
    assert run("audit", inputs / "old.pt", *options, *arguments, "--no-mlflow", "--out", inputs / "never") == 2
    assert message in capsys.readouterr().err
    assert not (inputs / "never").exists()


def test_a_file_of_weights_needs_a_model(capsys: pytest.CaptureFixture[str], inputs: Path) -> None:
    assert run("layers", inputs / "old.pt") == 2
    assert "--model torchvision:resnet50" in capsys.readouterr().err


def test_a_store_that_does_not_answer_is_found_before_the_audit(
    capsys: pytest.CaptureFixture[str], inputs: Path, options: list[str]
) -> None:
    assert run("audit", inputs / "missing.pt", *options, "--tracking-uri", "http://127.0.0.1:9") == 2
    assert "no MLflow server answers" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------- audit


def test_audit_prints_run_location_and_evidence(
    capsys: pytest.CaptureFixture[str], inputs: Path, options: list[str], place: list[str], tmp_path: Path, store: str
) -> None:
    arguments = [inputs / "old.pt", *options, "--labels-from-folders", "--class-names", inputs / "names.txt", *place]
    assert run("audit", *arguments, "--step", "30", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "forward and backward" in captured.err
    assert result["status"] == "complete"
    evidence = read_evidence(result["evidence"])
    assert evidence.folder == tmp_path / "artifacts" / result["run_id"] / "artifacts" / "interpret"
    assert evidence.journal["environment"]["command"][:3] == ["interpret", "audit", str(inputs / "old.pt")]
    assert evidence.manifest.inputs["labels"] == [0, 0, 1, 1, 1]
    assert evidence.manifest.model["class_names"] == ["cat", "dog", "bird"]
    client = MlflowClient(tracking_uri=store)
    record = client.get_run(result["run_id"])
    assert record.info.run_name == "old"
    assert record.data.tags["interpret.step"] == "30"
    assert "interpret/top1_accuracy" in record.data.metrics
    note = record.data.tags["mlflow.note.content"]
    assert f"#/experiments/{record.info.experiment_id}/runs/{result['run_id']}/artifacts/interpret_report.html" in note
    top = {item.path for item in client.list_artifacts(result["run_id"])}
    assert top == {"interpret", "interpret_report.html", "images"}
    report = {item.path for item in client.list_artifacts(result["run_id"], "interpret/report")}
    assert report == {"interpret/report/report.html", "interpret/report/report.pdf"}
    assert run("audit", *arguments) == 0  # the same audit again
    captured = capsys.readouterr()
    assert f"run        {result['run_id']}" in captured.out
    assert "already holds this audit" in captured.err
    assert len(client.search_runs([record.info.experiment_id])) == 1


def test_audit_by_every_method(inputs: Path, options: list[str], tmp_path: Path) -> None:
    """What is asked for on the command line, and what of it a network with these layers refuses."""
    arguments = [
        "--methods",
        "default,cam,ablation-cam,saliency",
        "--trust",
        "--features",
        "0:0,1-2",
        "--display-count",
        "1",
    ]
    assert run("audit", inputs / "old.pt", *options, *arguments, "--no-mlflow", "--out", tmp_path / "evidence") == 0
    evidence = read_evidence(tmp_path / "evidence")
    assert evidence.manifest.settings["trust"] is True
    assert evidence.manifest.settings["features"] == {"0": [0, 1, 2]}
    assert {"saliency"} == {name for name in evidence.keys("attributions") if "/" not in name}
    assert any(name.startswith("ablation-cam/") for name in evidence.keys("maps"))
    assert {name.split("/")[1] for name in evidence.keys("features") if name.startswith("0/")} == {"0", "1", "2"}
    assert evidence.keys("trust")


def test_audit_without_mlflow(
    capsys: pytest.CaptureFixture[str], inputs: Path, options: list[str], tmp_path: Path
) -> None:
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = [("file", "label"), *((f"{name}.png", number % 3) for number, name in enumerate("abcde"))]
        csv.writer(file).writerows(rows)
    code = run(
        *("audit", inputs / "old.pt", *options, "--no-mlflow", "--out", tmp_path / "evidence"),
        *("--labels", tmp_path / "labels.csv", "--targets", "predicted,1,label"),
    )
    assert code == 0
    assert capsys.readouterr().out.splitlines()[0] == "run        -"
    evidence = read_evidence(tmp_path / "evidence")
    assert evidence.array("maps", "targets")[:, 1:].tolist() == [[1, 0], [1, 1]]
    assert run("audit", inputs / "old.pt", *options, "--no-mlflow", "--out", tmp_path / "evidence") == 2
    assert "is not empty" in capsys.readouterr().err


def test_targets_of_another_audit_and_of_several_classes(inputs: Path, options: list[str], tmp_path: Path) -> None:
    common = (*options, "--no-mlflow", "--out")
    assert run("audit", inputs / "old.pt", *common, tmp_path / "a", "--targets", "2,0") == 0
    assert read_evidence(tmp_path / "a").array("maps", "targets").tolist() == [[2, 0], [2, 0]]
    assert run("audit", inputs / "new.pt", *common, tmp_path / "b", "--targets", tmp_path / "a") == 0
    assert read_evidence(tmp_path / "b").array("maps", "targets").tolist() == [[2, 0], [2, 0]]


def test_own_preprocessing(inputs: Path, tmp_path: Path) -> None:
    model = ["--model", f"{inputs / 'net.py'}:build", "--images", str(inputs / "photos" / "*" / "*.png")]
    code = run(
        *("audit", inputs / "old.pt", *model, "--preprocess", f"{inputs / 'net.py'}:crop"),
        *("--no-mlflow", "--out", tmp_path / "evidence", "--methods", "none", "--layers", "4"),
    )
    assert code == 0
    manifest = read_evidence(tmp_path / "evidence").manifest
    assert manifest.inputs["preprocessing"]["name"] == f"{inputs / 'net.py'}:crop"
    assert manifest.settings["methods"] == []
    assert manifest.settings["pictures"] == ["4"]


def test_a_failed_collector_is_named_and_exits_with_1(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    inputs: Path,
    options: list[str],
    tmp_path: Path,
) -> None:
    from interpret.collectors.gram import Gram

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Gram, "observe", fail)
    assert run("audit", inputs / "old.pt", *options, "--no-mlflow", "--out", tmp_path / "evidence") == 1
    assert "the collector 'gram' failed: RuntimeError: out of memory" in capsys.readouterr().err
    assert run("show", tmp_path / "evidence") == 1


def test_a_configuration_file_gives_defaults_that_the_command_line_overrides(inputs: Path, tmp_path: Path) -> None:
    config = tmp_path / "audit.toml"
    config.write_text(
        f'model = "{inputs / "net.py"}:build"\nimages = "{inputs / "photos"}"\nresize = 16\ncrop = 16\n'
        'no-mlflow = true\nmethods = ["grad-cam", "layer-cam"]\nlayers = ["4", "0"]\nmean = [0.5, 0.5, 0.5]\n'
        "std = [0.25, 0.25, 0.25]\ndisplay_count = 1\n\n[model-arg]\nwidth = 4\n"
    )
    out = tmp_path / "evidence"
    assert run("audit", inputs / "old.pt", "--config", config, "--out", out, "--display-count", "3") == 0
    manifest = read_evidence(out).manifest
    assert manifest.settings["methods"] == ["grad-cam", "layer-cam"]
    assert manifest.settings["maps"] == ["0", "4"]
    assert manifest.inputs["displayed"] == 3
    assert manifest.inputs["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [("modle = 'x'", "unknown option 'modle'; did you mean 'model'"), ("model = ", "is not TOML")],
)
def test_a_bad_configuration_file_is_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "audit.toml").write_text(content)
    assert run("audit", "x.pt", "--config", tmp_path / "audit.toml") == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ diff, report, show, layers


def test_diff_finds_the_damaged_layer(
    capsys: pytest.CaptureFixture[str], inputs: Path, options: list[str], place: list[str], tmp_path: Path, store: str
) -> None:
    arguments = ["diff", inputs / "old.pt", inputs / "new.pt", *options, "-o", tmp_path / "report", "--format", "html"]
    assert run(*arguments, *place) == 0
    out = capsys.readouterr().out
    assert "localized" in out
    assert f"html    {tmp_path / 'report' / 'report.html'}" in out
    comparison = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert comparison["reference"] == "old"
    assert comparison["ranking"]["new"][0] == "4"
    client = MlflowClient(tracking_uri=store)
    names = {entry["run_name"]: client.get_run(entry["run_id"]).info.run_name for entry in comparison["runs"]}
    assert names == {"old": "old", "new": "new"}
    assert run(*arguments, "--no-mlflow", "--json", "--title", "Twice") == 0  # replaces what it wrote before
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [(row["run"], row["verdict"]) for row in rows] == [("new", "localized")]
    assert "Twice" in (tmp_path / "report" / "report.html").read_text()


def test_diff_touches_no_folder_that_is_not_its_own(
    capsys: pytest.CaptureFixture[str], inputs: Path, options: list[str], tmp_path: Path
) -> None:
    mine = tmp_path / "report" / "evidence" / "old" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code = run("diff", inputs / "old.pt", inputs / "new.pt", *options, "-o", tmp_path / "report", "--no-mlflow")
    assert code == 2
    assert "is not empty" in capsys.readouterr().err
    assert mine.read_text() == "mine"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    bundle(network(), folder / "sound")
    bundle(scaled(network(), "layer1.bn.weight", 1.01), folder / "scaled")
    bundle(zeroed_filters(network(), "layer2.conv.weight"), folder / "damaged")
    return folder


def test_report_of_one_run(capsys: pytest.CaptureFixture[str], bundles: Path, tmp_path: Path) -> None:
    assert run("report", bundles / "sound", "-o", tmp_path, "--format", "html", "--title", "One run") == 0
    assert capsys.readouterr().out == f"html    {tmp_path / 'report.html'}\n"
    assert "One run" in (tmp_path / "report.html").read_text()


def test_report_of_several_runs(capsys: pytest.CaptureFixture[str], bundles: Path, tmp_path: Path) -> None:
    folders = [bundles / name for name in ("scaled", "sound", "damaged")]
    assert run("report", *folders, "--reference", bundles / "sound", "-o", tmp_path, "--format", "html", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in result["runs"]] == ["scaled", "damaged"]
    assert result["runs"][1]["most suspicious"] == "layer2.conv"
    comparison = json.loads(Path(result["report"]["json"]).read_text())
    assert comparison["reference"] == "sound"
    assert run("report", *folders[:2], "--labels", "a,b", "-o", tmp_path, "--format", "html") == 0
    assert json.loads((tmp_path / "comparison.json").read_text())["reference"] == "a"
    assert run("report", *folders, "--labels", "a,b", "-o", tmp_path) == 2
    assert "2 names for 3 runs" in capsys.readouterr().err


def test_report_of_a_run_in_mlflow(
    capsys: pytest.CaptureFixture[str], bundles: Path, place: list[str], tmp_path: Path, store: str
) -> None:
    from interpret.publishing import log_evidence

    ids = [
        log_evidence(
            bundles / name, tracking_uri=store, experiment=tmp_path.name, run_name=f"the {name} one", step=step
        )
        for name, step in (("sound", 1), ("damaged", None))
    ]
    assert run("report", *ids, "-o", tmp_path / "r", "--format", "html", "--tracking-uri", store) == 0
    runs = json.loads((tmp_path / "r" / "comparison.json").read_text())["runs"]
    assert [(entry["run_id"], entry["label"], entry["step"]) for entry in runs] == [
        (ids[0], "the sound one", 1),
        (ids[1], "the damaged one", None),
    ]
    assert run("show", f"runs:/{ids[0]}", "--tracking-uri", store) == 0
    assert ids[0] in capsys.readouterr().out


def test_show(capsys: pytest.CaptureFixture[str], bundles: Path) -> None:
    assert run("show", bundles / "damaged") == 0
    out = capsys.readouterr().out
    assert "TinyNet" in out
    assert any(line.startswith("layer2.conv ") for line in out.splitlines())
    assert run("show", bundles / "damaged", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == "TinyNet"
    assert shown["layers"][0]["layer"] == "conv1"
    assert all({"severity", "rule", "message"} <= set(finding) for finding in shown["findings"])


def test_layers(capsys: pytest.CaptureFixture[str], inputs: Path) -> None:
    arguments = ["layers", inputs / "old.pt", "--model", f"{inputs / 'net.py'}:build", "--input-shape", "3,16,16"]
    assert run(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == (
        ["0", "Conv2d", "convolution", "4x3x3x3", "3x16x16", "4x16x16", "3x3", "1x1", "112", "27,648"]
    )
    biases = 4 * 16 * 16 + 6 * 8 * 8  # torchinfo's
    assert lines[-5] == "9 calls, 363 parameters, 41,490 multiply-adds in the whole model"
    assert lines[-4].startswith("2 Conv2d, 2 ReLU")
    assert lines[-3] == "2 downsample: 3, 6"
    assert lines[-1].startswith(
        f"  Conv2d: 41,472 here, {41_472 + biases:,} in torchinfo: it counts additions of biases"
    )
    assert run(*arguments, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["layers"][0]["output_shape"] == [1, 4, 16, 16]
    assert listed["layers"][4]["receptive_field"] == {"size": [8, 8], "stride": [2, 2], "start": [-3, -3]}
    assert listed["totals"]["types"]["ReLU"] == 2
    assert listed["torchinfo"]["multiply_adds"] == 41_490 + biases + 8 + 3, "and BatchNorm's and the head's"
    assert "Total params: 363" in listed["torchinfo"]["summary"]


def test_layers_are_chosen_by_kind_and_name(capsys: pytest.CaptureFixture[str], inputs: Path) -> None:
    arguments = ["layers", inputs / "old.pt", "--model", f"{inputs / 'net.py'}:build", "--input-shape", "3,16,16"]
    assert run(*arguments, "--kind", "linear", "--kind", "downsample") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]] == ["3", "6", "8"]
    assert run(*arguments, "--layers", "[04]", "--kind", "convolution", "--summary") == 0
    out = capsys.readouterr().out
    assert "2 calls, 334 parameters" in out
    assert "Layer (type:depth-idx)" in out, "torchinfo's own table"
    assert run(*arguments, "--kind", "conv") == 2
    assert "there is no kind 'conv'" in capsys.readouterr().err


TWO_INPUTS = """
import torch
from torch import nn

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3)
        self.age = nn.Linear(1, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, image, *, age):
        return {"logits": self.head(self.image(image).mean((2, 3)) + self.age(age))}

def run(model, images):
    return model(images, age=torch.ones(len(images), 1))

constant = 3
"""


def test_a_function_runs_a_model_of_several_inputs(
    capsys: pytest.CaptureFixture[str], inputs: Path, options: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "pair.py"
    file.write_text(TWO_INPUTS)
    space: dict[str, Any] = {}
    exec(TWO_INPUTS, space)
    torch.save(space["Pair"]().state_dict(), tmp_path / "pair.pt")
    own = ["--model", f"{file}:Pair", *options[2:], "--no-mlflow", "--out", tmp_path / "evidence"]
    assert run("audit", tmp_path / "pair.pt", *own) == 2
    assert "failed on images of shape (1, 3, 16, 16)" in capsys.readouterr().err
    assert run("audit", tmp_path / "pair.pt", *own, "--forward", f"{file}:constant") == 2
    assert "name a function (model, images) -> output" in capsys.readouterr().err
    assert run("audit", tmp_path / "pair.pt", *own, "--forward", f"{file}:run", "--batch-size", "auto") == 0
    evidence = read_evidence(tmp_path / "evidence")
    assert evidence.manifest.settings["forward"] == "run"
    assert evidence.manifest.settings["batch_size"] == 16
    assert set(evidence.manifest.collectors["maps"].values()) == {"ok", ""}
    assert {call.key for call in evidence.calls} == {"image", "age", "head"}
    assert "Pair" in evidence.summary
    shape = ["--input-shape", "3,16,16"]
    assert run("layers", tmp_path / "pair.pt", *own[:2], *shape, "--forward", f"{file}:run") == 0
    assert "3 calls" in capsys.readouterr().out


def test_a_terminal_gets_bars_and_a_wrapped_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundles: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    assert run("report", bundles / "sound", "-o", tmp_path, "--format", "html") == 0
    assert "\x1b[" in capsys.readouterr().err
    assert run("show", bundles / "sound") == 0
    assert "\x1b[1m" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------- demo


@pytest.mark.slow
def test_the_demo_finds_the_damage_it_did(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("demo", "-o", tmp_path / "demo") == 0
    out = capsys.readouterr().out
    comparison = json.loads((tmp_path / "demo" / "comparison.json").read_text())
    assert comparison["verdict"] == {"int8": "widespread", "int8-damaged": "localized"}
    assert comparison["ranking"]["int8-damaged"][0] == "_blocks.7._expand_conv"
    assert (tmp_path / "demo" / "report.pdf").read_bytes().startswith(b"%PDF")
    assert str(tmp_path / "demo" / "report.html") in out
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path / 'demo' / 'mlflow.db'}" in out
    assert "int8-damaged is localized in _blocks.7._expand_conv (144 of 480 filters zeroed" in out
    for name in ("published", "int8", "int8-damaged"):
        read_evidence(tmp_path / "demo" / "evidence" / name).verify()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'demo' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("interpret-demo")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 3

"""Names from elsewhere: whatever layers, classes, files, runs and experiments are called, they are only ever text."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import interpret
from bundles import bundle, changed_call, network
from interpret import cli, drawing, publishing, sources
from interpret.errors import EvidenceError, LayerError
from interpret.evidence import SLUG_LENGTH, EvidenceWriter, json_bytes, read_evidence
from interpret.labels import read_class_names, read_labels
from interpret.reporting import ReportOptions, _breakable, _subject, build_report, render_html, write_report
from servers import mlflow_server

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

NAMES = {
    "script": "<script>window.canary=1;alert(1)</script>",
    "image": "<img src=http://canary.invalid/x onerror=window.canary=1>",
    "double": '" onmouseover="window.canary=1" autofocus onfocus="window.canary=1" x="',
    "single": "' onfocus='window.canary=1' autofocus x='",
    "end": "</title></style></script></pre>--><svg onload=window.canary=1>",
    "entities": "&lt;b&gt; &amp; &#x3c;b>",
    "template": "{{7*7}} {% raw %} ${7*7} #{7*7} %s %(x)d {0}",
    "slashes": "/a//b\\c/",
    "up": "../../../escape",
    "hidden": ".hidden",
    "lines": "two\nlines\tand\ra tab",
    "terminal": "\x1b[31mred\x1b]0;title\x07",
    "emoji": "🐈 🦊",
    "chinese": "损坏的图层",
    "right": "\u202elive\u202c עברית العربية",
    "markdown": "| [x](javascript:alert(1)) ![i](http://canary.invalid/p) **b** |",
    "long": "L" * 250,
    "option": "--help",
    "pattern": "*[a]?",
    "spaces": " led and trailed ",
}
LAYERS = [name.replace(".", "") for name in NAMES.values()]  # a module's name holds no dots
RUN, OTHER = f"{NAMES['script']} it's {NAMES['template']} {NAMES['emoji']}", f"{NAMES['double']} 损 \u202ex"
EXPERIMENT = f"{NAMES['image']} {NAMES['up']} 'a' \"b\""
LABELS = (f"{NAMES['end']} a", f"{NAMES['right']} {NAMES['markdown']}")
TITLE = f"{NAMES['image']} {NAMES['template']} %"
FILES = [name.replace("/", "")[:120] for name in NAMES.values() if not name.startswith(".")]


def net() -> nn.Sequential:
    model = nn.Sequential()
    model.add_module("first", nn.Conv2d(3, 4, 3, padding=1))
    for name in LAYERS:
        model.add_module(name, nn.Conv2d(4, 4, 1))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Linear(4, len(NAMES)))
    return model


BUILDER = "def build():\n    from test_hostile_names import net\n    return net()\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A network, two checkpoints, pictures in class folders and class names, audited and logged under odd names."""
    root = tmp_path_factory.mktemp("world")
    for name in ("input", "cwd", "store"):
        (root / name).mkdir()
    (root / "input" / "nets.py").write_text(BUILDER)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = net()
        with torch.no_grad():
            for convolution in list(model)[1:-3]:
                convolution.weight.copy_(torch.eye(4)[..., None, None] + 0.3 * torch.randn(4, 4, 1, 1))
    torch.save(model.state_dict(), checkpoint(root, 0))
    with torch.no_grad():
        model[3].weight += 0.5
    torch.save(model.state_dict(), checkpoint(root, 1))
    pixels = np.random.default_rng(0)
    for number, (folder, file) in enumerate(zip(FILES * 2, FILES[::-1] * 2, strict=True)):
        if number < 8:
            path = root / "input" / "photos" / folder / f"{file}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    classes = [*FILES, *(name for name in NAMES.values() if name.startswith("."))]
    (root / "input" / "classes.json").write_text(json.dumps(classes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "cwd")
        patch.setenv("INTERPRET_CACHE", str(root / "store" / "cache"))
        from mlflow import MlflowClient

        MlflowClient(store(root)).create_experiment(EXPERIMENT, (root / "store" / "artifacts").as_uri())
        where = {"experiment": EXPERIMENT, "tracking_uri": store(root)}
        given: dict[str, Any] = {
            "model": f"{root / 'input' / 'nets.py'}:build",
            "images": str(root / "input" / "photos"),
            "class_names": str(root / "input" / "classes.json"),
            "resize": 16,
            "crop": 16,
            "display_count": 2,
        }
        options = [f"--{name.replace('_', '-')}={value}" for name, value in {**given, **where, "run_name": RUN}.items()]
        options += ["--labels-from-folders", "--methods=grad-cam"]
        assert cli.main(["audit", str(checkpoint(root, 0)), *options]) == 0
        with sources.audit_checkpoint(
            str(checkpoint(root, 1)), labels_from_folders=True, methods=["grad-cam"], **given
        ) as evidence:
            publishing.log_evidence(evidence, run_name=OTHER, **where)
        yield root


def checkpoint(root: Path, number: int) -> Path:
    name = ("{} '{}' \"{}\" %s.pt", "-{}{}{}.pt")[number].format("<b onclick=alert(1)>", "{{7*7}} 🦊 ${x}", "损\n坏")
    return root / "input" / name


def store(root: Path) -> str:
    return f"sqlite:///{root / 'store' / 'mlflow.db'}"


@pytest.fixture(scope="module")
def audits(world: Path) -> list[interpret.Evidence]:
    """The two audits, found by their names."""
    return sources.fetch_runs([RUN, OTHER], world / "fetched", experiments=[EXPERIMENT], tracking_uri=store(world))[0]


@pytest.fixture(scope="module")
def report(world: Path, audits: object) -> dict[str, Path]:
    """The comparison that the command makes of two names."""
    folder = world / "report"
    options = [
        "--experiment",
        EXPERIMENT,
        "--tracking-uri",
        store(world),
        "--title",
        TITLE,
        "--labels",
        ",".join(LABELS),
    ]
    assert cli.main(["report", RUN, OTHER, "-o", str(folder), "--ui-url", "http://127.0.0.1:9", *options]) == 0
    return {name: folder / f"report.{name}" for name in ("html", "pdf")} | {"json": folder / "comparison.json"}


def texts(content: Any) -> set[str]:
    if isinstance(content, dict):
        return set(content).union(*map(texts, content.values()))
    return set().union(*map(texts, content)) if isinstance(content, list) else {content} & {str(content)}


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


# Evidence and MLflow --------------------------------------------------------------------------------------------------


def test_evidence_keeps_every_name_as_it_is(world, audits):
    for audit in audits:
        audit.verify()
        assert [call.key for call in audit.calls][1:-3] == LAYERS
        assert all(audit.has("kernels", f"{name}.weight") and audit.has("maps", f"grad-cam/{name}") for name in LAYERS)
        assert set(audit.manifest.model["class_names"]) == {*FILES, NAMES["hidden"], NAMES["up"]}
        assert all((world / "input" / "photos" / name).is_file() for name in audit.manifest.inputs["names"])
        assert audit.manifest.inputs["labels"] == [
            audit.manifest.model["class_names"].index(name.split("/")[0]) for name in audit.manifest.inputs["names"]
        ]
        assert Path(audit.manifest.checkpoint["uri"]) in (checkpoint(world, 0), checkpoint(world, 1))


def test_every_layer_has_its_pictures_among_the_artifacts(audits):
    for kind in ("kernels", "activations", "maps"):
        drawn = sorted((audits[0].folder / "previews" / kind).iterdir())
        assert [path.name[:3] for path in drawn][1:] == [f"{position:03d}" for position in range(1, 1 + len(LAYERS))]
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in drawn)


def test_nothing_is_written_outside_its_folder(world, audits, report):
    assert {path.name for path in world.iterdir()} <= {"input", "cwd", "store", "fetched", "report"}
    assert not list((world / "cwd").iterdir())
    assert {path.name for path in (world / "store").iterdir()} <= {"mlflow.db", "artifacts", "cache"}
    assert not [path for path in world.parent.rglob("escape*") if world / "input" not in path.parents]
    assert {path.name for path in (world / "report").iterdir()} == {"report.html", "report.pdf", "comparison.json"}


def test_comparison_json_holds_the_names(report):
    content = json.loads(report["json"].read_text("utf-8"))
    assert [run["label"] for run in content["runs"]] == list(LABELS)
    assert [run["run_name"] for run in content["runs"]] == [RUN, OTHER]
    assert set(LAYERS) <= texts(content)


SEARCHED = {
    **NAMES,
    "apostrophe": "it's",
    "quoted": 'a "quoted" name',
    "sql": "'; DROP TABLE runs; --"[1:],
    "wildcards": "100%_",
    "backslash": "a\\",
    "both": 'it\'s "both"',
}


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> tuple[str, dict[str, str]]:
    """A store with a run of each name, all of one small audit."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("named")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("named", (folder / "artifacts").as_uri())
    logged = publishing.log_evidence(bundle(network()), tracking_uri=uri, experiment="named", run_name="first")
    tags = client.get_run(logged).data.tags
    kept = {name: value for name, value in tags.items() if name.startswith("interpret.")}
    return uri, {
        case: client.create_run(experiment, run_name=name, tags=kept).info.run_id for case, name in SEARCHED.items()
    }


@pytest.mark.parametrize("case", SEARCHED)
def test_a_run_is_found_by_its_name(named, case):
    from interpret import tracking

    uri, runs = named
    assert tracking.resolve_run(SEARCHED[case], tracking_uri=uri) == runs[case]


def test_an_unknown_name_is_quoted_in_one_line(named, capsys):
    for name in ("no\nsuch \x1b[31mrun", "</none>"):
        assert cli.main(["show", "--tracking-uri", named[0], "--", name]) == 2
        message = capsys.readouterr().err
        assert message.startswith("Error: ")
        assert message.count("\n") == 1
        assert "\x1b" not in message


# What is shown --------------------------------------------------------------------------------------------------------


def moves_the_cursor(text: str) -> list[str]:
    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return [mark for mark in text if mark != "\n" and (unicodedata.category(mark) == "Cc" or mark in turning)]


def test_the_terminal_gets_a_line_per_layer_and_nothing_that_moves_its_cursor(audits, capsys):
    assert cli.main(["show", str(audits[0].folder)]) == 0
    shown = capsys.readouterr().out
    assert moves_the_cursor(shown) == []
    assert "\\x1b[31mred\\x1b]0;title\\x07" in shown
    assert "two\\nlines\\tand\\ra tab" in shown
    rows = [line for line in shown.splitlines() if re.search(r"\bConv2d +convolution\b", line)]
    assert len(rows) == 1 + len(LAYERS)
    assert all(shown.count(name) for name in LAYERS if not moves_the_cursor(name) and name.isprintable())


def test_json_holds_the_names_and_is_all_ascii(audits, capsys):
    assert cli.main(["show", str(audits[0].folder), "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert [row["layer"] for row in json.loads(printed)["layers"]][1:-3] == LAYERS


@given(st.text())
def test_what_is_printed_moves_no_cursor_and_plain_text_stays(text):
    printed = cli._printable(text)
    assert moves_the_cursor(printed.replace("\n", "\t")) == []
    assert not re.search(r"[\ud800-\udfff\u2028\u2029]", printed)
    assert cli._printable(printed) == printed


def test_what_the_report_holds_is_escaped(report, audits):
    from test_reporting import Page

    page = Page(report["html"].read_text("utf-8"))
    assert {tag for tag, _ in page.elements} <= harmless_tags()
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert len(page.all("script")) == 1
    assert not [link for link in page.all("img") if not link["src"].startswith("data:")]
    links = {link["href"] for link in page.all("a")}
    assert all(link.startswith(("#", "http://127.0.0.1:9/#/experiments/")) for link in links)
    shown = squeezed(page.text)
    for name in (*LAYERS, *LABELS, TITLE):
        assert squeezed(name) in shown, name
    names = audits[0].manifest.inputs["names"]
    assert all(squeezed(name) in shown for name in names)


def harmless_tags() -> set[str]:
    """The elements of a report about harmless names."""
    from test_reporting import Page

    weights = network()
    changed = {**weights, "layer2.conv.weight": weights["layer2.conv.weight"] * 1.3}
    harmless = interpret.compare(bundle(weights), bundle(changed), labels=("a", "b"))
    options = ReportOptions()
    page = Page(render_html(build_report(_subject(harmless, options), options)))
    return {tag for tag, _ in page.elements} | {"ul"}  # of what was not examined


def test_the_pdf_shows_the_names_that_its_fonts_have(report, audits):
    pikepdf = pytest.importorskip("pikepdf")
    with pikepdf.open(report["pdf"]) as document:
        with document.open_outline() as outline:
            titles = squeezed("".join(str(item.title) for top in outline.root for item in (top, *top.children)))
        actions = [note.get("/A") for page in document.pages for note in page.get("/Annots", [])]
        assert not [action for action in actions if action is not None and action["/S"] not in ("/URI", "/GoTo")]
        addresses = {str(action["/URI"]) for action in actions if action is not None and "/URI" in action}
        assert all(address.startswith("http://127.0.0.1:9/#/experiments/") for address in addresses)
        assert "/OpenAction" not in document.Root
        assert "/JavaScript" not in document.Root.get("/Names", {})
        assert str(document.docinfo["/Title"]) == TITLE
    assert squeezed(LAYERS[2]) in titles  # the layer whose weights differ has a chapter
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed")
    printed = subprocess.run(["pdftotext", "-raw", report["pdf"], "-"], capture_output=True, check=True, text=True)
    shown = squeezed(printed.stdout)
    for case in ("script", "image", "double", "single", "entities", "template", "slashes", "markdown", "option"):
        assert squeezed(NAMES[case].replace(".", "")) in shown, case
    assert squeezed(TITLE) in shown
    alone = subprocess.run(
        ["pdftotext", "-raw", audits[0].folder / "report" / "report.pdf", "-"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert all(squeezed(name) in squeezed(alone.stdout) for name in (LAYERS[0], LAYERS[1], LAYERS[6]))


# A browser ------------------------------------------------------------------------------------------------------------


class Watched:
    """Pages of Chromium, and everything that must not happen in them."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context()
        self.alarms: list[str] = []
        self.requests: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))

    def open(self, address: str) -> Any:
        page = self.context.new_page()
        page.on("dialog", lambda dialog: (self.alarms.append(dialog.message), dialog.dismiss()))
        page.on("popup", lambda popup: self.alarms.append(f"popup {popup.url}"))
        page.goto(address)
        return page

    def check(self, page: Any) -> None:
        """Nothing ran and nothing was asked of the host that the names speak of."""
        for frame in page.frames:
            assert frame.evaluate("typeof window.canary") == "undefined", frame.url
        assert self.alarms == []
        assert not [url for url in self.requests if "canary.invalid" in url.partition("?")[0]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


TOUCH = """() => {
  for (const element of document.querySelectorAll("*"))
    for (const kind of ["mouseover", "mouseenter", "focus", "focusin", "toggle", "error", "load"])
      element.dispatchEvent(new Event(kind, {bubbles: kind != "load"}));
  for (const button of document.querySelectorAll("th button")) { button.click(); button.click(); }
  for (const field of document.querySelectorAll("input")) {
    field.value = "<img src=x onerror=window.canary=1>"; field.dispatchEvent(new Event("input"));
  }
  for (const picture of [...document.querySelectorAll("main img.zoomable")].slice(0, 40)) {
    picture.click(); document.querySelector("dialog").close();
  }
  return [...document.querySelectorAll("*")].flatMap((element) => [...element.attributes])
    .filter((attribute) => attribute.name.startsWith("on")).length;
}"""


def test_nothing_runs_in_a_browser(report, audits, browser):
    watched = Watched(browser)
    run = audits[0].folder.parent
    for file in (report["html"], audits[0].folder / "report" / "report.html", run / "interpret_report.html"):
        page = watched.open(file.as_uri())
        assert page.evaluate(TOUCH) == 0
        page.wait_for_timeout(200)
        watched.check(page)
        assert page.title()
    assert all(url.startswith(("file:", "data:")) for url in watched.requests)


def test_a_name_that_turns_the_direction_of_writing_turns_only_itself(report, browser):
    page = Watched(browser).open(report["html"].as_uri())
    turned = page.locator(".run-label", has_text="live").first
    assert turned.evaluate("element => getComputedStyle(element).unicodeBidi") == "isolate"


def test_a_real_server_keeps_and_shows_the_names(audits, browser, tmp_path_factory):
    """The evidence over http, and MLflow's own pages of it: description, tags, artifacts."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("server")
    bundle_folder = Path(shutil.copytree(audits[0].folder, folder / "bundle"))
    with mlflow_server(folder) as uri:
        client = MlflowClient(uri)
        parent = client.create_run(client.create_experiment(EXPERIMENT), run_name=OTHER)
        for case, name in NAMES.items():
            client.set_tag(parent.info.run_id, f"tag {case}", name)
        where = {"tracking_uri": uri, "experiment": EXPERIMENT, "parent_run_id": parent.info.run_id}
        run_id = publishing.publish(bundle_folder, run_name=RUN, views=False, **where)
        run = client.get_run(run_id)
        assert run.info.run_name == RUN
        (fetched,), _ = sources.fetch_runs([RUN], folder / "fetched", experiments=[EXPERIMENT], tracking_uri=uri)
        fetched.verify()
        assert [call.key for call in fetched.calls] == [call.key for call in audits[0].calls]
        _, (origin,) = sources.fetch_runs([OTHER], folder / "other", experiments=[EXPERIMENT], tracking_uri=uri)
        assert origin["run_id"] == run_id  # the only audit below that run
        watched = Watched(browser)
        place = f"{uri}/#/experiments/{run.info.experiment_id}/runs"
        for address, expected in (
            (f"{place}/{run_id}", RUN),
            (f"{place}/{parent.info.run_id}", OTHER.replace("\u202e", "")[:20]),
            (
                f"{place}/{run_id}/artifacts/interpret/previews/kernels/{fetched.calls[1].slug}.png",
                fetched.calls[1].slug,
            ),
            (f"{place}/{run_id}/artifacts/interpret_report.html", "interpret_report.html"),
        ):
            page = watched.open(address)
            page.get_by_text(expected).first.wait_for()
            page.wait_for_timeout(500)
            watched.check(page)
            page.close()


# Names on their own ---------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.text(max_size=400), st.integers(0, 9999))
def test_a_picture_of_a_layer_has_a_plain_short_file_name(name, position):
    call = changed_call(TINY.calls[0], key=name, position=position)
    assert re.fullmatch(r"\d{3,}-[A-Za-z0-9._-]*", call.slug)
    assert len(call.slug) <= SLUG_LENGTH + 5
    assert int(call.slug.partition("-")[0]) == position


TINY = bundle(network())


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS.filter(lambda text: not text.endswith(".npy")), unique=True, max_size=4))
def test_arrays_and_json_come_back_under_their_names(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("arrays")
    writer = EvidenceWriter(folder)
    writer.arrays("maps", {name: np.array([number]) for number, name in enumerate(names)})
    with np.load(folder / "maps.npz", allow_pickle=False) as archive:
        assert {name: int(archive[name][0]) for name in archive} == {name: i for i, name in enumerate(names)}
    assert json.loads(json_bytes(names)) == names


@given(st.text(), st.sampled_from([0, 24, 44]))
def test_long_text_that_may_break_is_the_same_text(text, longer_than):
    markup = str(_breakable(text, longer_than))
    assert html.unescape(markup.replace("<wbr>", "")) == html.unescape(html.escape(text))
    assert re.search("[<>\"']", markup.replace("<wbr>", "")) is None


@pytest.mark.parametrize("name", ["a\0b", "a\udce9b"])
def test_a_layer_whose_name_is_no_text_is_refused(name, tmp_path):
    model = nn.Sequential()
    model.add_module(name, nn.Conv2d(3, 2, 1))
    with pytest.raises(EvidenceError, match="rename the module"):
        interpret.audit(model, torch.rand(4, 3, 8, 8), tmp_path / "out", methods=())
    assert not (tmp_path / "out").exists()


def test_a_module_named_like_a_later_execution_of_another_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a", nn.Conv2d(3, 3, 1))
            self.add_module("a#1", nn.Conv2d(3, 3, 1))

        def forward(self, images):
            return self.get_submodule("a#1")(self.a(self.a(images)))

    with pytest.raises(LayerError, match="'a#1' is a module and would be a later execution"):
        interpret.layers(Twice(), torch.rand(2, 3, 8, 8))


def test_bytes_in_file_names_that_are_no_text_do_no_harm(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path(os.fsdecode(b"caf\xe9"))
    folder.mkdir()
    torch.save(nn.Conv2d(3, 2, 1).state_dict(), tmp_path / "net.pt")
    odd = Path(shutil.copy(tmp_path / "net.pt", folder / os.fsdecode(b"\xe9.pt")))
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build(): return nn.Conv2d(3, 2, 1)\n")
    Image.new("RGB", (8, 8)).save(folder / os.fsdecode(b"\xe9\xff.png"))
    for end in ("a", "b", "c"):
        shutil.copy(folder / os.fsdecode(b"\xe9\xff.png"), folder / f"{end}.png")
    options = ["--model", "net.py:build", "--images", str(folder), "--resize", "8", "--crop", "8", "--methods", "none"]
    assert cli.main(["audit", str(odd), *options, "--out", "out", "--no-mlflow"]) == 2
    assert "Error: the path 'caf\\udce9/\\udce9.pt' holds bytes that are no UTF-8; rename it" in capsys.readouterr().err
    assert cli.main(["audit", "net.pt", *options, "--out", "out", "--no-mlflow"]) == 0
    evidence = read_evidence("out")
    assert "\N{REPLACEMENT CHARACTER}" in "".join(evidence.manifest.inputs["names"])
    moved = evidence.folder.rename(Path(os.fsdecode(b"ev\xe9")))
    capsys.readouterr()
    assert cli.main(["report", str(moved), str(moved), "-o", "report", "--title", os.fsdecode(b"\xe9")]) == 0
    assert "ev?" in (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "ev?" in json.loads((tmp_path / "report" / "comparison.json").read_text("utf-8"))["reference"]


def test_tables_of_labels_find_files_whatever_they_are_called(tmp_path):
    names = [name for name in NAMES.values() if name not in (NAMES["up"], NAMES["hidden"])]
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((name, number) for number, name in enumerate(names))])
    assert read_labels(tmp_path / "labels.csv", names) == tuple(range(len(names)))


def test_a_class_is_a_line_whatever_is_in_it(tmp_path):
    names = ("one\u2028still one", "two\x85still two", "three\x0cstill three", NAMES["script"])
    (tmp_path / "classes.txt").write_bytes("\r\n".join(names).encode())
    assert read_class_names(tmp_path / "classes.txt") == names


def test_pictures_of_probe_images_have_plain_file_names(tmp_path):
    def edit(content):
        content["manifest"]["inputs"]["names"] = [*NAMES.values(), *content["manifest"]["inputs"]["names"]][
            : content["manifest"]["inputs"]["count"]
        ]

    audit = bundle(network(), tmp_path / "audit", edit=edit)
    drawn = [path for path in drawing.write_previews(audit) if path.parent.name == "inputs"]
    assert len(drawn) == audit.manifest.inputs["displayed"]
    assert all(re.fullmatch(r"\d{3}-[A-Za-z0-9._-]+\.png", path.name) for path in drawn)
    write_report(audit, tmp_path / "report", ["html"])

"""Links from a report into MLflow's pages: only where the reader says where they are, and only to what is there."""

from __future__ import annotations

import doctest
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundles import bundle, network
from interpret import cli, drawing, publishing
from interpret.comparison import Comparison, compare
from interpret.errors import ReportError
from interpret.evidence import Evidence
from interpret.reporting import ReportOptions, write_report
from interpret.sections import links
from servers import mlflow_server

URL = "http://mlflow.example:5000"
ORIGINS = (
    {"run_id": "a1", "experiment_id": "7", "run_name": "published", "step": None},
    {"run_id": "b2", "experiment_id": "8", "run_name": "tuned", "step": None},
    {},
)


def audits(folder: Path, model_id: str = "m-0a1b") -> tuple[Evidence, Evidence]:
    def of_logged_model(content) -> None:
        content["manifest"]["checkpoint"]["uri"] = f"models:/{model_id}"

    weights = network()
    changed = {**weights, "layer2.conv.weight": weights["layer2.conv.weight"] * 1.3}
    return bundle(weights, folder / "published", edit=of_logged_model), bundle(changed, folder / "tuned")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    published, tuned = audits(tmp_path_factory.mktemp("bundles"))
    return compare(published, tuned, tuned, labels=("published", "tuned", "a folder"), origins=ORIGINS)


@pytest.fixture(scope="module")
def written(comparison, tmp_path_factory) -> dict[str, Path]:
    return dict(write_report(comparison, tmp_path_factory.mktemp("linked"), options=ReportOptions(ui_url=f"{URL}/")))


def expected(comparison: Comparison) -> set[str]:
    """Every link, spelled out."""
    runs = {"published": f"{URL}/#/experiments/7/runs/a1", "tuned": f"{URL}/#/experiments/8/runs/b2"}
    pictures = {
        f"{run}/artifacts/interpret/previews/{kind}/008-layer2.conv.png"
        for run in runs.values()
        for kind in ("kernels", "activations", "maps")
    }
    metrics = {f"{run}/model-metrics" for run in runs.values()}
    return {*runs.values(), *metrics, *pictures, f"{URL}/#/experiments/7/models/m-0a1b"}


def leading_out(file: Path) -> list[str]:
    """The addresses that a report leads to, outside itself."""
    if file.suffix == ".html":
        from test_reporting import Page

        found = Page(file.read_text("utf-8")).all("a")
        return [link["href"] for link in found if not link["href"].startswith("#")]
    pikepdf = pytest.importorskip("pikepdf")
    with pikepdf.open(file) as document:
        actions = [note.get("/A") for page in document.pages for note in page.get("/Annots", [])]
        return [str(action["/URI"]) for action in actions if action is not None and "/URI" in action]


@pytest.mark.parametrize("kind", ["html", "pdf"])
def test_runs_charts_pictures_and_the_model_are_linked(comparison, written, kind):
    assert set(leading_out(written[kind])) == expected(comparison)


@pytest.mark.parametrize("kind", ["html", "pdf"])
def test_without_an_address_nothing_leads_out(comparison, tmp_path, kind):
    plain = write_report(comparison, tmp_path, [kind])
    assert leading_out(plain[kind]) == []
    assert b"mlflow.example" not in plain[kind].read_bytes()


def test_the_address_is_in_no_file_but_the_report(comparison, written, tmp_path):
    plain = write_report(comparison, tmp_path, ["html"])
    assert written["json"].read_bytes() == plain["json"].read_bytes()
    assert "experiment_id" not in written["json"].read_text()
    files = [file for audit in comparison.evidence.values() for file in audit.folder.rglob("*") if file.is_file()]
    assert files
    assert not any(b"mlflow.example" in file.read_bytes() for file in files)


def test_a_single_audit_is_linked_where_its_run_is_known(comparison, tmp_path):
    audit = comparison.evidence["tuned"]
    options = ReportOptions(ui_url=f"{URL}/behind/a/prefix//")
    known = write_report(audit, tmp_path / "run", ["html"], options, origin=ORIGINS[1])
    found = leading_out(known["html"])
    assert f"{URL}/behind/a/prefix/#/experiments/8/runs/b2" in found
    assert all(link.startswith(f"{URL}/behind/a/prefix/#/experiments/8/runs/b2") for link in found)
    folder = write_report(audit, tmp_path / "folder", ["html"], options)
    plain = write_report(audit, tmp_path / "plain", ["html"])
    assert folder["html"].read_bytes() == plain["html"].read_bytes()


def test_every_picture_that_is_linked_is_drawn_and_none_is_missing(comparison, tmp_path):
    audit = comparison.evidence["published"]
    copy = Evidence(Path(shutil.copytree(audit.folder, tmp_path / "copy")), audit.manifest)
    drawn = {path.relative_to(copy.folder).as_posix() for path in drawing.write_previews(copy)}
    page = links.links_of(URL, {"a": ORIGINS[0]})["a"]
    linked = {url.partition("/artifacts/interpret/")[2] for call in copy.calls for _, url in page.previews(copy, call)}
    assert linked == {path for path in drawn if not path.startswith("previews/inputs/")}
    assert linked


def test_ids_cannot_leave_their_place():
    odd = links.links_of(URL, {"a": {"run_id": "../x?y#z\"'><", "experiment_id": "0/../1"}})["a"]
    assert odd.run == f"{URL}/#/experiments/0%2F..%2F1/runs/..%2Fx%3Fy%23z%22%27%3E%3C"


WRONG = [
    "", "mlflow.example:5000", "ftp://mlflow.example", "file:///etc/passwd", "javascript:alert(1)", "http://",
    "http:///experiments", "http://a b", "http://a:port", "http://a:99999", "http://[::1", " http://a", "http://a\n",
    "http://user:word@a", "http://a/#/experiments/0", "http://a?x=1", 'http://a/"onmouseover="x', "http://a/<b>",
    "http://ä.example",
]  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_what_is_no_address_is_refused(url, comparison, tmp_path):
    with pytest.raises(ReportError, match="is no address of an MLflow server") as refusal:
        write_report(comparison, tmp_path / "none", ["html"], ReportOptions(ui_url=url))
    assert repr(url) in str(refusal.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "url", ["http://a", "https://a/", "HTTPS://A:1/b/c-d_e~f/", "http://[::1]:5000", "http://1.2.3.4"]
)
def test_addresses_keep_their_path_and_lose_their_last_slash(url):
    assert links.checked(url) == url.rstrip("/")


def test_the_docstring_is_right():
    assert doctest.testmod(links).attempted == 1
    assert doctest.testmod(links).failed == 0


def test_the_command_refuses_before_it_fetches(capsys):
    assert cli.main(["report", "no-such-run", "-o", "never", "--ui-url", "mlflow.example"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("Error: 'mlflow.example' is no address of an MLflow server")
    assert message.count("\n") == 1
    assert not Path("never").exists()


# A real server, and a browser that follows the links ------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, list[str]]]:
    """A server with two audits as runs, the first of a logged model."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder) as uri:
        client = MlflowClient(uri)
        experiment = client.create_experiment("linked")
        model = client.create_logged_model(experiment, name="the-logged-model")
        pairs = zip(audits(folder / "bundles", model.model_id), ("published", "tuned"), strict=True)
        where = {"tracking_uri": uri, "experiment": "linked", "formats": ["html"]}
        yield uri, [publishing.publish(audit, run_name=name, **where) for audit, name in pairs]


def test_links_lead_to_pages_that_are_there(served, tmp_path, monkeypatch, capsys):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    uri, runs = served
    monkeypatch.setenv("INTERPRET_CACHE", str(tmp_path / "cache"))
    report = tmp_path / "report"
    arguments = ["report", *runs, "-o", str(report), "--format", "html", "--tracking-uri", uri, "--ui-url", f"{uri}/"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    assert uri not in (report / "comparison.json").read_text()
    assert [run["run_id"] for run in json.loads((report / "comparison.json").read_text())["runs"]] == runs
    assert not any(uri.encode() in file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file())
    shown = {
        "published": "published",  # the run's page bears its name
        "kernels": "008-layer2.conv.png",
        "models:/": "the-logged-model",
    }
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((report / "report.html").as_uri())
        for text, content in shown.items():
            with page.expect_popup() as popup:
                page.locator(f'a[href^="{uri}"]', has_text=text).first.click()
            popup.value.get_by_text(content).first.wait_for()
            if text == "kernels":
                picture = popup.value.locator(
                    'img[src^="blob:"], img[src*="get-artifact"], img[src*="artifacts"]'
                ).first
                picture.wait_for()
                popup.value.wait_for_function("picture => picture.naturalWidth > 0", arg=picture.element_handle())
            popup.value.close()
        with page.expect_popup() as popup:
            page.locator('a[href$="/model-metrics"]').first.click()
        popup.value.get_by_text("interpret/by_layer").first.wait_for()
        browser.close()

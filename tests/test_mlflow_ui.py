"""What MLflow's user interface shows of audits and of their comparison: Chromium at a real server."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from playwright.sync_api import Browser, ConsoleMessage, Error, Frame, Locator, Page, expect, sync_playwright

import interpret
from interpret import publishing
from networks import digit_images, trained_digits
from servers import mlflow_server

pytestmark = pytest.mark.browser

DEADLINE = 30_000  # milliseconds that the interface may take for anything
RUNS = ("trained", "damaged")
CARD, HEADER = (f"[data-testid=experiment-view-compare-runs-{part}]" for part in ("card", "section-header"))
SHOWN = """async images => {
    for (const image of images) {
        image.scrollIntoView();  // pictures far away are decoded late
        await image.decode();
    }
    return images.filter(image => image.naturalWidth > 0).length;
}"""
DARK_PIXELS = """canvas => {
    const values = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return values.filter((value, index) => index % 4 == 0 && value < 128).length;
}"""
CURVES = """cards => Object.fromEntries(cards.map(card => [
    card.innerText.split("\\n")[0],
    [...card.querySelector(".js-plotly-plot").data].map(curve => [curve.name, [...curve.x], [...curve.y]]),
]))"""


@dataclass(frozen=True, slots=True)
class Site:
    """A server with two audits, in the order of `RUNS`, and the run of their comparison.

    Attributes:
        uri: address of the server.
        experiment: address of the experiment's page.
        evidence: of the audits, by name.
        run_ids: of the audits, by name.
        comparison_id: run id of the comparison.
    """

    uri: str
    experiment: str
    evidence: dict[str, interpret.Evidence]
    run_ids: dict[str, str]
    comparison_id: str

    def run(self, name: str) -> str:
        return f"{self.experiment}/runs/{self.run_ids[name]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    damaged = copy.deepcopy(trained_digits())
    with torch.no_grad():
        damaged.get_submodule("features.4").weight[:5] = 0
    images, labels = (tensor[:48] for tensor in digit_images())
    evidence, run_ids = {}, {}
    with mlflow_server(folder) as uri:
        place = {"tracking_uri": uri, "experiment": "digits"}
        for name, model in zip(RUNS, (trained_digits(), damaged), strict=True):
            evidence[name] = interpret.audit(model, images, folder / name, labels=labels.tolist(), targets="label")
            formats = ("html", "pdf") if name == "trained" else ("html",)
            run_ids[name] = publishing.publish(evidence[name], run_name=name, formats=formats, **place)
        origins = [{"run_id": run_id} for run_id in run_ids.values()]
        comparison = interpret.compare(*evidence.values(), labels=RUNS, origins=origins)
        files = interpret.write_report(comparison, folder / "comparison", formats=("html",))
        comparison_id = publishing.log_comparison(comparison, files, tracking_uri=uri)
        yield Site(uri, f"{uri}/#/experiments/1", evidence, run_ids, comparison_id)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        reason = "Chromium is missing: apt-get install chromium"
        (pytest.fail if os.environ.get("CI") or os.geteuid() == 0 else pytest.skip)(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A page at which nothing of ours fails.

    MLflow's own requests and scripts complain by themselves: of a user that the server does not know, for example.
    """
    settings = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
    stored = [{"name": name, "value": value} for name, value in settings.items()]  # its assistant covers a third
    context = browser.new_context(
        viewport={"width": 1500, "height": 1000},
        storage_state={"cookies": [], "origins": [{"origin": site.uri, "localStorage": stored}]},
    )
    context.set_default_timeout(DEADLINE)
    complaints: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        theirs = (f"{site.uri}/ajax-api/", f"{site.uri}/static-files/")
        if message.type == "error" and not message.location["url"].startswith(theirs):
            complaints.append(f"{message.location['url']}: {message.text}")

    def fail(error: Error) -> None:
        complaints.append(str(error))

    page = context.new_page()
    page.on("console", listen)
    page.on("pageerror", fail)
    yield page
    context.close()
    assert not complaints


def reports(page: Page, count: int) -> list[Frame]:
    """The frames with a report, once they are loaded."""
    frames = page.locator("iframe")
    expect(frames).to_have_count(count, timeout=DEADLINE)
    found = []
    for place in range(count):
        frames.nth(place).content_frame.locator("footer").wait_for()
        frame = frames.nth(place).element_handle().content_frame()
        assert frame is not None
        found.append(frame)
    return found


def shown(pictures: Locator) -> int:
    """How many pictures are shown; an error of the page where one is broken."""
    return int(pictures.evaluate_all(SHOWN))


def open_note(page: Page) -> Locator:
    """The description of a run, unfolded."""
    page.get_by_text("Show more", exact=True).click()
    note = page.locator(".note-editor-preview-content")
    note.wait_for()
    return note


def test_the_report_works_in_the_artifact_pane(page: Page, site: Site) -> None:
    page.goto(f"{site.run('trained')}/artifacts/interpret/report/report.html")
    (report,) = reports(page, 1)
    assert report.locator("h1").inner_text() == "trained"
    assert report.evaluate("scrollY") == 0
    for name in ("Predictions and maps", "Architecture"):  # down, and up again
        before = report.evaluate("scrollY")
        report.locator("nav").get_by_role("link", name=name, exact=True).click()
        report.wait_for_function(f"Math.abs(scrollY - {before}) > 200")
        heading = report.get_by_role("heading", name=name, exact=True)
        assert 0 <= heading.evaluate("heading => heading.getBoundingClientRect().y") < 150
    pictures = report.locator("main img")
    assert shown(pictures) == pictures.count() > 20


def test_a_picture_of_the_report_opens_large(page: Page, site: Site) -> None:
    page.goto(f"{site.run('trained')}/artifacts/interpret/report/report.html")
    (report,) = reports(page, 1)
    report.locator("main img.zoomable").first.click()
    large = report.locator("dialog img")
    expect(large).to_be_visible()
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()


def test_the_pdf_is_drawn_page_by_page(page: Page, site: Site) -> None:
    page.goto(f"{site.run('trained')}/artifacts/interpret/report/report.pdf")
    for number in (1, 2):
        canvas = page.locator(f".react-pdf__Page[data-page-number='{number}'] canvas")
        canvas.wait_for()
        page.wait_for_function(f"canvas => ({DARK_PIXELS})(canvas) > 500", arg=canvas.element_handle())
        page.get_by_title("Next Page").click()


def test_reports_stand_side_by_side_where_runs_are_compared(page: Page, site: Site) -> None:
    ids = ",".join(f'"{run_id}"' for run_id in site.run_ids.values())
    page.goto(f'{site.uri}/#/compare-runs?runs=[{ids}]&experiments=["1"]')
    page.get_by_text("interpret_report.html").click()
    frames = reports(page, len(RUNS))
    assert [frame.locator("h1").inner_text() for frame in frames] == list(RUNS)
    places = [frame.frame_element().bounding_box() for frame in frames]
    assert places[0]
    assert places[1]
    assert places[0]["y"] == places[1]["y"]
    assert places[0]["x"] + places[0]["width"] <= places[1]["x"]
    for frame in frames:
        assert frame.locator("h1").evaluate("e => e.getBoundingClientRect().bottom <= innerHeight")  # seen at once
        pictures = frame.locator("main img")
        assert shown(pictures) == pictures.count() > 0


def test_curves_by_layer_of_both_runs_share_a_chart(page: Page, site: Site) -> None:
    page.set_viewport_size({"width": 1500, "height": 4000})  # charts are drawn when they come into view
    page.goto(f"{site.experiment}/runs?compareRunsMode=CHART")
    cards = page.locator(CARD, has_text="interpret/by_layer/").filter(has=page.locator(".js-plotly-plot"))
    expect(cards).to_have_count(len(publishing.CHARTED), timeout=DEADLINE)
    drawn = cards.evaluate_all(CURVES)
    for statistic, kinds in publishing.CHARTED.items():
        curves = {name: (x, y) for name, x, y in drawn[f"interpret/by_layer/{statistic}"]}
        assert set(RUNS) <= set(curves), statistic
        for name in RUNS:
            evidence = site.evidence[name]
            calls = [call.position for call in evidence.calls if call.kind in kinds]
            values = publishing.layer_statistics(evidence)[statistic][calls]
            assert curves[name][0] == calls, (statistic, name)
            assert curves[name][1] == pytest.approx(values.tolist()), (statistic, name)


def test_pictures_of_both_runs_share_a_grid(page: Page, site: Site) -> None:
    page.set_viewport_size({"width": 1500, "height": 4000})
    page.goto(f"{site.experiment}/runs?compareRunsMode=CHART")
    curated = publishing.curated_images(site.evidence["trained"])
    assert {key.split("/")[1] for key in curated} == {"kernels", "activations", "maps"}
    for key in curated:
        card = page.locator(CARD, has_text=key)
        pictures = card.locator("img")
        expect(pictures).to_have_count(len(RUNS), timeout=DEADLINE)
        assert shown(pictures) == len(RUNS)
        for picture, (name, run_id) in zip(pictures.all(), site.run_ids.items(), strict=True):
            expect(card).to_contain_text(name)
            assert (picture.get_attribute("src") or "").endswith(f"run_uuid={run_id}")


def test_the_table_has_a_row_per_layer_and_a_column_per_run(page: Page, site: Site) -> None:
    page.goto(f"{site.experiment}/runs?compareRunsMode=ARTIFACT")
    page.locator("[role=combobox], button", has_text="interpret/layers_table.json").first.wait_for()
    layers = page.locator("[role=gridcell][col-id=layer]")
    layers.first.wait_for()
    for name, run_id in site.run_ids.items():
        table = publishing.layers_table(site.evidence[name])
        column = page.locator(f"[role=gridcell][col-id='{run_id}']")
        expect(column.first).to_have_text(str(table["activation_standard_deviation"][0]), timeout=DEADLINE)
        rows = column.count()  # only rows in view are there
        assert rows >= 4
        assert layers.all_inner_texts()[:rows] == table["layer"][:rows]
        assert column.all_inner_texts() == [str(value) for value in table["activation_standard_deviation"][:rows]]


def test_the_description_shows_facts_pictures_and_ways(page: Page, site: Site) -> None:
    evidence = site.evidence["trained"]
    page.goto(site.run("trained"))
    note = open_note(page)
    facts = note.locator("table").first
    expect(facts).to_contain_text(f"Digits, {len(evidence.calls)} calls, 1,426 parameters")
    expect(facts).to_contain_text("48, of which 4 are shown")
    assert shown(note.locator("img")) == 3
    links = note.locator("a").evaluate_all("links => links.map(link => link.href)")
    places = [
        "interpret/report/report.html",
        "interpret/report/report.pdf",
        "interpret_report.html",
        "interpret/previews",
    ]
    assert links == [f"{site.run('trained')}/artifacts/{place}" for place in places]
    for address, place in zip(links, places, strict=True):
        page.goto("about:blank")
        page.goto(address)
        page.get_by_text(re.compile(f"^Path: .*/artifacts/{place}$")).wait_for()


def test_the_description_of_a_comparison_leads_to_its_runs(page: Page, site: Site) -> None:
    address = f"{site.experiment}/runs/{site.comparison_id}"
    page.goto(address)
    note = open_note(page)
    expect(note.locator("table")).to_contain_text("localized")
    expect(note.locator("table")).to_contain_text("features.4")
    for name, run_id in site.run_ids.items():
        target = note.get_by_role("link", name=name, exact=True).evaluate("link => link.href")
        other = page.context.new_page()
        other.goto(target)
        other.wait_for_url(f"**/experiments/1/runs/{run_id}")
        other.get_by_role("heading", name=name, exact=True).wait_for()
        other.close()
    report = note.get_by_role("link", name="report.html", exact=True).evaluate("link => link.href")
    page.goto("about:blank")
    page.goto(report)
    (frame,) = reports(page, 1)
    pictures = frame.locator("main img")
    assert shown(pictures) == pictures.count() > 20

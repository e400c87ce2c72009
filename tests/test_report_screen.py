"""The HTML report on screen, by real clicks and keys: in Chromium, as a file and in a sandboxed frame like MLflow's."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, BrowserContext, Frame, Locator, Page, expect, sync_playwright

from bundles import bundle, int8, network, probe, zeroed_filters
from interpret.comparison import Comparison, compare
from interpret.reporting import write_report

pytestmark = pytest.mark.browser

LABELS = ("published", "int8", "damaged")
LONG = "W" * 90 + "_<b>&\N{RIGHT-TO-LEFT OVERRIDE}名前." + "long_name/" * 12
WIDE, NARROW, NARROWEST = (1440, 900), (390, 844), (320, 640)
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
HOST = "http://mlflow.example/"  # answered by the tests themselves
FRAMED = """markup => new Promise(resolve => {
    const frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts");
    Object.assign(frame.style, {position: "fixed", inset: 0, width: "100%", height: "100%", border: 0});
    frame.onload = resolve;
    frame.src = URL.createObjectURL(new Blob([markup], {type: "text/html"}));
    document.body.append(frame);
})"""
IN_VIEW = """element => {
    const {top, bottom} = element.getBoundingClientRect();
    return top >= 0 && top < innerHeight;
}"""
ALL_LAID_OUT = "document.styleSheets[0].insertRule('* { content-visibility: visible !important; }')"
OVERFLOWING = """() => [...document.querySelectorAll("body *")].filter(element => {
    if (!element.textContent.trim() || element.closest(".marks, .skip, #verdict > h2, svg, template")) return false;
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    return !scrolls && element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1;
}).map(element => `${element.tagName}.${element.className} ${element.scrollWidth} > ${element.clientWidth}: `
    + element.textContent.trim().slice(0, 60))"""
COLOUR_RULES = ["color-contrast", "link-in-text-block"]  # all that the colour scheme decides
VIOLATIONS = """([place, rules]) => axe.run(place || document, rules ? {runOnly: rules} : {})
    .then(({violations}) => violations.flatMap(({id, nodes}) =>
        nodes.map(({html, failureSummary}) => `${id}: ${html}: ${failureSummary}`)))"""
FLIPS = """picture => new Promise(resolve => {
    const started = performance.now();
    let [flips, last] = [0, getComputedStyle(picture).opacity];
    const look = now => {
        const opacity = getComputedStyle(picture).opacity;
        if (opacity !== last) { flips++; last = opacity; }
        if (now - started < 2000) requestAnimationFrame(look); else resolve(flips);
    };
    requestAnimationFrame(look);
})"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A report in the browser: the page that has the keyboard, and the frame that holds the report."""

    page: Page
    frame: Frame

    def __call__(self, selector: str) -> Locator:
        return self.frame.locator(selector)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    weights, images = network(widths=(8, 12, 16)), probe(8)
    runs = {"published": weights, "int8": int8(weights)}
    runs["damaged"] = zeroed_filters(runs["int8"], "layer1.conv.weight")
    folders = map(tmp_path_factory.mktemp, runs)
    bundles = (
        bundle(run, folder, images=images, displayed=2) for run, folder in zip(runs.values(), folders, strict=True)
    )
    return compare(*bundles, labels=LABELS)


@pytest.fixture(scope="module")
def report(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(comparison, tmp_path_factory.mktemp("report"), formats=("html",))["html"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every name is long and has no place to break."""
    weights = network(widths=(8, 12))
    names = {"name": LONG, "class_names": [f"{LONG}{index}" for index in range(10)], "rename": lambda key: LONG + key}
    runs = [bundle(run, tmp_path_factory.mktemp("run"), **names) for run in (weights, int8(weights))]
    compared = compare(*runs, labels=(f"a{LONG}", f"b{LONG}"))
    return write_report(compared, tmp_path_factory.mktemp("hostile"), formats=("html",))["html"]


@pytest.fixture(scope="module")
def single(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(comparison.evidence["published"], tmp_path_factory.mktemp("one"), formats=("html",))["html"]


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
def context(browser: Browser) -> Iterator[Callable[..., BrowserContext]]:
    """Makes contexts in which a report must ask nobody for anything, and complain of nothing."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def make(size: tuple[int, int] = WIDE, **settings: object) -> BrowserContext:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **settings)
        context.set_default_timeout(5_000)
        contexts.append(context)

        def watch(page: Page) -> None:
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("request", lambda request: ours(request.url) or faults.append(request.url))

        context.on("page", watch)
        context.route(
            HOST, lambda route: route.fulfill(body="<!doctype html><title>host</title>", content_type="text/html")
        )
        return context

    def ours(url: str) -> bool:
        return (
            url == HOST
            or url.startswith(("data:", "blob:"))
            or re.fullmatch(r"file://[^?#]*/report\.html", url.partition("#")[0]) is not None
        )

    yield make
    for made in contexts:
        made.close()
    assert faults == []


@pytest.fixture
def opened(context: Callable[..., BrowserContext]) -> Callable[..., Shown]:
    """Opens a report as a file, or in a frame like that of MLflow's page of artifacts."""

    def open_report(
        path: Path, size: tuple[int, int] = WIDE, *, framed: bool = False, anchor: str = "", **settings: object
    ) -> Shown:
        page = context(size, **settings).new_page()
        if not framed:
            page.goto(path.as_uri() + anchor)
            return Shown(page, page.main_frame)
        page.goto(HOST)
        page.evaluate(FRAMED, path.read_text("utf-8"))
        shown = Shown(page, page.frames[1])
        shown("h1").click()  # gives the keyboard to the frame
        return shown

    return open_report


both_places = pytest.mark.parametrize("framed", [False, True], ids=["file", "frame"])


def names(options: Locator) -> list[str]:
    return options.evaluate_all("options => options.map(option => option.firstChild.textContent)")


def visible(locator: Locator) -> int:
    return sum(element.is_visible() for element in locator.all())


# Finding a layer ------------------------------------------------------------------------------------------------------


@both_places
def test_a_layer_is_found_by_the_keyboard(opened, report, comparison, framed):
    shown = opened(report, framed=framed)
    shown.press("/")
    expect(shown(".find input")).to_be_focused()
    shown.page.keyboard.type("LAYER2 conv")
    calls = comparison.evidence["published"].calls
    found = [call for call in calls if all(word in f"{call.key} {call.type}".lower() for word in ("layer2", "conv"))]
    assert 0 < len(found) < len(calls)
    options = shown(".find [role=option]")
    assert names(options) == [call.key for call in found]
    expect(shown(".find [role=status]")).to_have_text(f"{len(found)} of {len(calls)} calls")
    listed = [link.inner_text() for link in shown("nav.contents details > ol a").all() if link.is_visible()]
    assert all("layer2" in name or name == "Layers that matter" for name in listed)

    shown.press("ArrowDown", "ArrowUp", "ArrowUp")  # past the first to the last
    expect(options.last).to_have_attribute("aria-selected", "true")
    assert shown(".find input").get_attribute("aria-activedescendant") == options.last.get_attribute("id")
    shown.press("Enter")
    place = f"layer-{found[-1].position}"
    chapter = shown(f"#chapter-{place}")
    target = chapter if chapter.count() else shown(f"#{place}")
    expect(target).to_be_focused()
    assert target.evaluate(IN_VIEW)

    shown.press("/", "Escape")
    expect(shown(".find input")).to_have_value("")
    expect(shown(".find ul")).to_be_hidden()
    assert visible(shown("nav.contents details > ol a")) == shown("nav.contents details > ol a").count()


def test_what_no_call_has_is_not_found(opened, report, comparison):
    shown = opened(report)
    shown(".find input").fill("no such layer")
    expect(shown(".find [role=status]")).to_have_text(f"0 of {len(comparison.evidence['published'].calls)} calls")
    expect(shown(".find ul")).to_be_hidden()
    shown(".find input").press("Enter")  # leads nowhere
    expect(shown(".find input")).to_be_focused()


def test_a_call_without_a_chapter_is_found_in_its_row_even_if_that_is_filtered_away(opened, report):
    shown = opened(report)
    row = shown("#overview tr[id]:not(:has(a[href^='#chapter']))").last
    name = row.locator("th").inner_text().strip()
    shown("#overview .field").fill("no such row")
    expect(row).to_be_hidden()
    shown(".find input").fill(name)
    options = shown(".find [role=option]")
    options.nth(names(options).index(name)).click()
    expect(row).to_be_focused()
    assert row.evaluate(IN_VIEW)


# Runs ----------------------------------------------------------------------------------------------------------------


@both_places
def test_a_run_is_hidden_and_shown_again(opened, report, framed):
    shown = opened(report, framed=framed)
    button = shown("[data-toggle='1']")
    expect(button).to_have_text("int8")
    cells = shown("#overview tbody tr[id] >> nth=0").locator("td, th")
    curve = shown("#overview .curve").last.locator(".run-line-1")
    kinds = {
        "pictures": shown(".runs figure[data-run='1']"),
        "verdict": shown(".verdict[data-run='1']"),
        "strips": shown(".strip[data-run='1']"),
        "cells": cells,
        "prediction": shown(".prediction[data-run='1']"),
    }
    before = {name: visible(locator) for name, locator in kinds.items()}
    assert before["cells"] == 3 + 2 * 4
    assert all(before.values())
    expect(curve).to_be_visible()
    equal = shown("#overview thead th[colspan]").first

    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    after = {name: visible(locator) for name, locator in kinds.items()}
    assert after == dict.fromkeys(kinds, 0) | {"cells": 3 + 4}
    expect(curve).to_be_hidden()
    expect(equal).to_be_hidden()
    for run in (0, 2):
        assert visible(shown(f".runs figure[data-run='{run}']")) > 0
    expect(shown("#overview .curve").last.locator(".run-line-2")).to_be_visible()

    button.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "true")
    assert {name: visible(locator) for name, locator in kinds.items()} == before
    expect(curve).to_be_visible()


def test_cells_over_several_runs_shrink_with_them(opened, report):
    shown = opened(report)
    table = shown("#appendix table.identity").first
    spanning = table.locator("tbody td[colspan]").first
    assert spanning.evaluate("cell => cell.colSpan") == 3
    shown("[data-toggle='2']").click()
    assert spanning.evaluate("cell => cell.colSpan") == 2
    right = "cell => Math.round(cell.getBoundingClientRect().right)"
    assert spanning.evaluate(right) == table.locator("thead th").nth(2).evaluate(right)


def test_the_reference_cannot_be_hidden_and_one_run_has_no_toggles(opened, report, single):
    assert [button.inner_text() for button in opened(report)("[data-toggle]").all()] == list(LABELS[1:])
    assert opened(single)(".toggles, [data-toggle], .compare").count() == 0


# Two pictures on top of each other ------------------------------------------------------------------------------------


@both_places
def test_two_runs_are_compared_with_a_slider(opened, report, framed):
    shown = opened(report, framed=framed)
    button = shown(".compare").first
    figures = button.locator("xpath=preceding-sibling::*[1]").locator("figure img")
    sources = figures.evaluate_all("pictures => pictures.map(picture => picture.src)")
    assert len(sources) == 3
    button.focus()
    shown.press("Enter")
    under, over = shown(".plate img").all()
    assert [over.get_attribute("src"), under.get_attribute("src")] == sources[:2]
    clip = "picture => getComputedStyle(picture).clipPath"
    assert over.evaluate(clip) == "inset(0px 50% 0px 0px)"
    edge = shown("dialog input[type=range]")
    expect(edge).to_be_focused()
    shown.press("ArrowRight")
    assert over.evaluate(clip) == "inset(0px 49% 0px 0px)"
    shown.press("End")
    assert over.evaluate(clip) == "inset(0px 0% 0px 0px)"
    assert shown(".viewer-text").inner_text().startswith("Left of the edge: published. Right of it: int8. ")

    box = shown(".plate").bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    shown.page.mouse.move(box["x"] + box["width"] * 0.9, y)
    shown.page.mouse.down()
    shown.page.mouse.move(box["x"] + box["width"] * 0.25, y)
    shown.page.mouse.up()
    expect(edge).to_have_value("25")

    shown("dialog select").select_option("damaged")
    assert shown(".plate img").first.get_attribute("src") == sources[2]
    shown("[data-do=close]").focus()
    shown.press("ArrowLeft")
    expect(shown("dialog select")).to_have_value("int8")
    assert shown(".plate img").first.get_attribute("src") == sources[1]
    shown.press("Escape")
    expect(shown("dialog")).to_be_hidden()
    expect(button).to_be_focused()


def test_pictures_that_the_reference_does_not_have_are_not_compared(opened, report):
    shown = opened(report)
    groups = shown(".runs").evaluate_all(
        """groups => groups.map(group => [
            [...group.querySelectorAll("figure[data-run]")].map(figure => figure.dataset.run),
            group.nextElementSibling?.className === "compare",
        ])"""
    )
    assert {compared for _, compared in groups} == {True, False}
    for runs, compared in groups:
        assert compared == (len(runs) > 1 and runs[0] == "0")


def test_blinking_alternates_one_and_a_half_times_a_second(opened, report):
    shown = opened(report)
    shown(".compare").first.click()
    blink = shown(".blink")
    blink.click()
    expect(blink).to_have_attribute("aria-pressed", "true")
    over = shown(".plate img").last
    assert over.evaluate("picture => getComputedStyle(picture).clipPath") == "none"
    assert abs(over.evaluate(FLIPS) - 6) <= 1  # there and back, 1.5 times a second, for two seconds
    blink.click()
    assert over.evaluate("picture => picture.getAnimations().length") == 0


def test_who_prefers_reduced_motion_sees_no_blinking(opened, report):
    shown = opened(report, reduced_motion="reduce")
    shown(".compare").first.click()
    expect(shown("dialog input[type=range]")).to_be_visible()
    expect(shown(".blink")).to_be_hidden()
    shown(".blink").evaluate("button => button.click()")
    assert shown(".plate img").last.evaluate("picture => picture.getAnimations().length") == 0


# A picture, enlarged --------------------------------------------------------------------------------------------------


@both_places
def test_a_picture_is_enlarged_by_the_keyboard(opened, report, framed):
    shown = opened(report, framed=framed)
    first, second = (shown("main img.zoomable").nth(index) for index in (0, 1))
    first.focus()
    shown.press("Enter")
    large = shown(".plate img")
    expect(shown(".viewer-text")).to_have_text(first.get_attribute("alt"))
    width = large.evaluate("picture => picture.clientWidth")
    for keys, factor in ((["+", "+"], 2.25), (["-"], 1.5), (["0"], 1), (["-"], 1 / 1.5), (["0", "Control++"], 1)):
        shown.press(*keys)
        assert large.evaluate("picture => picture.clientWidth") == pytest.approx(width * factor, abs=2)
        expect(shown("dialog output")).to_have_text(f"{factor * 100:.0f} %")
    shown("[data-do=in]").click()
    assert large.evaluate("picture => picture.clientWidth") == pytest.approx(width * 1.5, abs=2)
    assert large.evaluate(
        "picture => picture.dispatchEvent(new WheelEvent('wheel', {ctrlKey: true, bubbles: true, cancelable: true}))"
    )
    shown.press("ArrowRight")
    assert large.get_attribute("src") == second.get_attribute("src")
    shown.press("ArrowLeft", "ArrowLeft")
    assert large.get_attribute("src") == shown("main img.zoomable").last.get_attribute("src")
    shown("[data-do=close]").click()
    expect(shown("dialog")).to_be_hidden()
    expect(first).to_be_focused()


def test_pictures_of_a_hidden_run_are_left_out(opened, report):
    shown = opened(report)
    shown("[data-toggle='1']").click()
    group = shown(".runs:has(+ .compare)").first.locator("figure img")
    group.nth(0).click()
    shown.press("ArrowRight")
    assert shown(".plate img").get_attribute("src") == group.nth(2).get_attribute("src")


# Links and contents ---------------------------------------------------------------------------------------------------


def test_a_file_opens_at_a_layer(opened, report):
    for place in ("chapter-layer-0", "layer-9"):
        shown = opened(report, anchor=f"#{place}")
        assert shown(f"#{place}").evaluate(IN_VIEW)
        expect(shown(f"#{place}")).to_be_focused()


def test_a_link_to_a_layer_is_put_into_the_address_and_copied(opened, report):
    shown = opened(report, permissions=["clipboard-read", "clipboard-write"])
    link = shown(".chapter h3 .self").nth(1)
    assert link.get_attribute("aria-label").startswith("Link to ")
    link.focus()
    shown.press("Enter")
    address = report.as_uri() + link.get_attribute("href")
    assert shown.page.url == address
    expect(link).to_have_class(re.compile("copied"))
    assert shown.page.evaluate("navigator.clipboard.readText()") == address
    shown("nav.contents a[href='#appendix']").click()
    assert shown.page.url.endswith("#appendix")
    shown.page.go_back()
    assert shown.page.url == address
    expect(shown(address[address.index("#") :])).to_be_focused()
    row = shown("#layer-5")
    row.hover()
    row.locator(".self").click()
    assert shown.page.url.endswith("#layer-5")


def test_in_a_frame_links_scroll_and_nothing_complains(opened, report):
    shown = opened(report, framed=True)
    for link in (shown(".chapter h3 .self").last, shown("nav.contents a[href='#method']"), shown(".suspects a").first):
        link.click()
        assert shown(link.get_attribute("href")).evaluate(IN_VIEW)
    assert shown.page.url == HOST


@both_places
def test_the_contents_mark_what_is_in_view(opened, report, framed):
    shown = opened(report, framed=framed)
    for place in ("#overview", ".chapter >> nth=2", "#appendix"):
        target = shown(place)
        target.evaluate("element => element.scrollIntoView()")
        current = shown("nav.contents [aria-current]")
        expect(current).to_have_attribute("href", f"#{target.get_attribute('id')}")
        assert current.evaluate(IN_VIEW)


def test_on_a_narrow_screen_the_contents_fold(opened, report):
    shown = opened(report, NARROW)
    link = shown("nav.contents a[href='#method']")
    expect(link).to_be_hidden()
    shown("nav.contents summary").click()
    link.click()
    expect(link).to_be_hidden()
    heading = shown("#method h2")
    assert heading.evaluate(IN_VIEW)
    assert heading.bounding_box()["y"] >= shown("nav.contents").bounding_box()["height"]  # not behind the bar
    shown.press("/")
    expect(shown(".find input")).to_be_focused()


# For everybody --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(opened, report, single, scheme):
    def axed(path: Path) -> Shown:
        shown = opened(path, color_scheme=scheme, bypass_csp=True)
        shown.page.add_script_tag(content=AXE)
        shown.frame.evaluate(ALL_LAID_OUT)  # axe skips the rest
        return shown

    def violations(shown: Shown, place: str | None = None) -> list[str]:
        return shown.page.evaluate(VIOLATIONS, [place, COLOUR_RULES if scheme == "dark" else None])

    assert violations(axed(single)) == []
    shown = axed(report)
    assert violations(shown) == []
    shown(".find input").fill("conv")
    shown("[data-toggle='1']").click()
    assert violations(shown, "nav.contents") == []
    shown("main img.zoomable").first.click()
    assert violations(shown, "dialog") == []
    shown.press("Escape")
    shown(".compare").first.click()
    shown(".blink").click()
    assert violations(shown, "dialog") == []


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_text_overflows_its_box_however_long_the_names(opened, hostile, size):
    shown = opened(hostile, size)
    shown.frame.evaluate(ALL_LAID_OUT)
    if size == NARROW:
        shown("nav.contents summary").click()
    assert shown.frame.evaluate(OVERFLOWING) == []
    shown(".find input").fill("www")
    assert shown(".find [role=option]").count() > 0
    assert shown.frame.evaluate(OVERFLOWING) == []
    shown(".find input").fill("")
    if size == NARROW:
        shown("nav.contents summary").click()
    shown(".compare").first.click()
    assert shown.frame.evaluate(OVERFLOWING) == []


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_the_page_does_not_scroll_sideways(opened, report, hostile, scripts):
    for path in (report, hostile):
        shown = opened(path, NARROWEST, java_script_enabled=scripts)
        assert shown.frame.evaluate("document.documentElement.scrollWidth") == NARROWEST[0]


def test_without_scripts_everything_is_there_and_no_dead_control(opened, report):
    shown = opened(report, java_script_enabled=False)
    hidden = (
        "elements => elements.filter(element => !element.getClientRects().length).map(element => element.outerHTML)"
    )
    assert shown("main img").count() > 30
    assert shown("main img, main tr, main svg.chart, nav.contents a").evaluate_all(hidden) == []
    assert visible(shown("input, button, select, dialog")) == 0


def test_the_script_is_small_and_holds_no_words(report):
    script = re.findall(r"<script>(.*?)</script>", report.read_text("utf-8"), re.DOTALL)[0]
    assert len(script.encode()) <= 20 * 1024
    assert re.findall(r"""["'`][A-Z][a-z]+ [a-z]""", script) == []

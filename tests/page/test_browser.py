"""The page in a real browser: drawn, moved by hand and by keys, on a phone, in the dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dagflow.page.build import write
from tests.page.variants import with_known_numbers

DRAWN = """() => [...document.querySelectorAll('.plot')].map(plot => ({
  box: plot.querySelector('svg').getBoundingClientRect().toJSON(),
  lines: [...plot.querySelectorAll('path.line')].map(p => [
    p.getTotalLength(), p.getAttribute('d').endsWith('h0'), getComputedStyle(p).stroke]),
}))"""
WIDTH = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"


class Visit:
    """A page that was opened, with all that it asked for and complained of."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.page = browser.new_context(**settings).new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda said: said.type in ("error", "warning") and self.complaints.append(said.text),
        )
        self.page.goto(address)


@pytest.fixture(scope="module")
def pages(
    run: Path, rich: Path, older: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Addresses of a page of one run, of two, and of one of an older format."""
    folder = tmp_path_factory.mktemp("pages")
    other = with_known_numbers(run, tmp_path_factory.mktemp("other") / "other", seed=1)
    files = {"one": [rich], "two": [rich, other], "older": [older]}
    return {
        name: write(runs, folder / f"{name}.html").as_uri() for name, runs in files.items()
    }  # fmt: skip


@pytest.fixture
def visit(browser: Any, pages: dict[str, str]) -> Iterator[Callable[..., Visit]]:
    """Open a page; in the end it has complained of nothing and asked nobody for anything."""
    visits: list[tuple[str, Visit]] = []

    def go(name: str, **settings: Any) -> Visit:
        visits.append((pages[name], Visit(browser, pages[name], **settings)))
        return visits[-1][1]

    yield go
    for address, opened in visits:
        asked = {url for url in opened.requests if not url.startswith("data:")}
        opened.page.context.close()
        assert asked == {address}
        assert not opened.complaints


@pytest.mark.parametrize("name", ["one", "two", "older"])
@pytest.mark.parametrize("script", [True, False])
def test_charts_are_drawn_with_and_without_script(visit, name: str, script: bool) -> None:
    page = visit(name, java_script_enabled=script).page
    charts = page.locator(".plot svg")
    assert charts.count() > 10
    if not script:
        box = charts.first.bounding_box()
        assert box["width"] > 200
        assert page.locator(".pair img").first.is_visible()
        assert not page.locator(".slider").first.is_visible()
        return
    for chart in page.evaluate(DRAWN):
        hidden = not chart["box"]["width"]  # in the panel of another run
        assert hidden or (chart["box"]["width"] > 200 and chart["box"]["height"] > 100)
        assert chart["lines"]
        for length, is_dot, stroke in chart["lines"]:
            assert is_dot or length > 100
            assert stroke.startswith("rgb")
    assert page.evaluate("window.hacked") is None


def test_the_slider_changes_the_pictures(visit) -> None:
    page = visit("one").page
    slider, output = page.locator("input[type=range]"), page.locator(".slider output")
    now = page.locator("img.now").first
    assert output.text_content() == "3"
    last = now.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert output.text_content() == "2"
    assert now.get_attribute("src") != last
    assert now.get_attribute("alt").endswith(", epoch 2")
    page.keyboard.press("Home")
    before = page.locator(".pair img").first.get_attribute("src")
    assert now.get_attribute("src") == before
    assert now.get_attribute("alt").endswith(", base model")
    page.keyboard.press("End")
    assert now.get_attribute("src") == last
    assert page.evaluate("document.querySelector('img.now').naturalWidth") == 96
    play = page.locator(".play")
    play.click()
    assert play.text_content() == "Stop"
    page.wait_for_timeout(600)
    assert output.text_content() != "0"
    play.click()
    assert play.text_content() == "Play"


def test_values_are_read_by_pointer_and_by_keys(visit) -> None:
    page = visit("one").page
    plot = page.locator("#chart-win-rate .plot")
    plot.hover()
    readout = page.locator("#chart-win-rate .readout")
    assert readout.is_visible()
    assert "Win rate" in readout.text_content()
    page.mouse.move(0, 0)
    assert not readout.is_visible()
    plot.focus()
    page.keyboard.press("Home")
    assert readout.text_content() == "base modelWin rate 0.5"
    page.keyboard.press("ArrowRight")
    assert readout.text_content().startswith("after 1 epoch")
    page.keyboard.press("Escape")
    assert not readout.is_visible()


def test_terms_are_explained_on_hover_and_on_focus(visit) -> None:
    page = visit("one").page
    tip, term = page.locator("#tip"), page.locator(".figures .term", has_text="win rate")
    term.hover()
    assert "ties count half" in tip.text_content()
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    term.focus()
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    term.click()
    assert page.evaluate("document.querySelector(':target').id") == "term-held_out.win_rate"
    broken = "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.hash.slice(1))"
    assert not page.evaluate(f"{broken}.filter(id => !document.getElementById(id))")


def test_several_runs_are_chosen_by_tabs(visit) -> None:
    page = visit("two").page
    panels = page.locator("#pictures .panel")
    assert [panels.nth(k).is_visible() for k in range(2)] == [True, False]
    page.locator("#pictures [role=tab]").first.focus()
    page.keyboard.press("ArrowRight")
    assert [panels.nth(k).is_visible() for k in range(2)] == [False, True]
    assert page.locator("#run .panel").nth(1).is_visible()  # everywhere at once


def test_the_theme_follows_the_system_or_the_reader(visit) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = (visit("one", color_scheme=scheme).page for scheme in ("light", "dark"))
    assert light.evaluate(colour) != dark.evaluate(colour)
    light.get_by_role("button", name="Theme").click()  # light
    light.get_by_role("button", name="Theme").click()  # dark
    assert light.evaluate(colour) == dark.evaluate(colour)
    light.reload()
    assert light.evaluate(colour) == dark.evaluate(colour)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), [("one", 1280), ("one", 360), ("two", 360)])
def test_everybody_can_read_it(visit, name: str, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    settings = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    page = visit(name, reduced_motion="reduce", **settings).page
    whole, window = page.evaluate(WIDTH)
    assert whole <= window
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    whole, window = page.evaluate(WIDTH)
    assert whole <= window
    found = axe.Axe().run(page).response
    bad = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert not [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in bad]
    assert len(found["passes"]) > 20

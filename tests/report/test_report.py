"""The report: one escaped file without network needs, looked at in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from probatum import Study
from probatum.drawing import charts
from probatum.errors import InputError
from probatum.report.commands import repeat_command
from probatum.report.write import render, write_report
from processes import PATIENCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def page_file(small_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_study.report(tmp_path_factory.mktemp("report") / "report.html")


def test_holds_what_it_promises(small_study: Study, page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    assert page_file.stat().st_size < 3_000_000
    for heading in (
        "Verdicts on accuracy",
        "Quality",
        "Calibration",
        "Reliability",
        "Learning curves",
        "Classes",
        "Data",
        "Plan",
        "Papers",
    ):
        assert re.search(rf"<h2[^>]*>{heading}", text), heading
    assert small_study.results.answer() in text
    assert "arXiv:2110.06537" in text
    assert repeat_command(small_study.results) in text.replace("&#34;", '"').replace("&#39;", "'")


def test_asks_nothing_of_the_network(page_file: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert all(link.startswith(("https://arxiv.org/", "data:")) for link in loaded), loaded
    assert not re.search(r"@import|url\(", text)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)


def test_every_text_is_escaped(small_study: Study) -> None:
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)>"
    results = small_study.results
    summary = {**results.summary, "name": evil, "notices": [evil], "classes": {evil: 3, "b": 2, "c": 1}}
    hurt = replace(
        results,
        summary=summary,
        plan=replace(results.plan, data=replace(results.plan.data, name=evil), skipped={evil: evil}),
    )
    tags = _Tags()
    tags.feed(render(hurt))
    assert tags.names.count("script") == 1
    assert "img" not in tags.names


def test_chart_labels_are_escaped() -> None:
    row = charts.Interval("<b>&", 0.1, 0.0, 0.2, "helps", "<i>")
    drawn = charts.forest([row], 0.05, "better", "worse", "<title>")
    assert "<b>" not in drawn
    assert "<i>" not in drawn


def test_report_is_written_whole_or_not_at_all(
    small_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(InputError, match="cannot be written: disk full"):
        write_report(small_study.results, path)
    assert path.read_text() == "old"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install Debian's package chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=CHROMIUM,
            timeout=1000 * PATIENCE,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_renders_in_a_browser_without_console_errors(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page.set_default_timeout(1000 * PATIENCE)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(page_file.as_uri())
    assert page.locator("h1").inner_text()
    assert page.locator("svg.chart").count() >= 5
    assert page.locator("svg.chart").first.bounding_box()["height"] > 50
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("Tab")  # the skip link
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "theme"
    page.keyboard.press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    page.locator("details summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1
    page.close()
    assert problems == []

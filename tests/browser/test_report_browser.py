"""report.html in a real browser, offline: no request, no console error, tables sort and filter, labels stay text."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from report_runs import HOSTILE, make_records, make_run

from convbench.report import build_report
from tests.precision_runs import precision_records, xnor_records

CHROMIUM = Path(os.environ.get("CONVBENCH_CHROMIUM", "/usr/bin/chromium"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM.exists() and os.environ.get("CONVBENCH_BROWSER") != "1",
        reason=f"no Chromium at {CHROMIUM} (CONVBENCH_CHROMIUM names another, CONVBENCH_BROWSER=1 makes this fail)",
    ),
]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BREAKOUT = "</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = make_records(layers=4, algorithms=20)
    for record in records:
        if record.case.label == "conv2_1":
            object.__setattr__(record.case, "label", f"conv2_1 {BREAKOUT}")
        if record.status == "failed":
            record.reason = f"the worker said {HOSTILE} {BREAKOUT}"
    return build_report(make_run(tmp_path_factory.mktemp("browser"), records)).html


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Any]:
    """open_page(width, scheme) -> page; afterwards there was no error, no message and no request but the file's own."""
    contexts, troubles = [], []

    def is_own(url: str) -> bool:
        return url.startswith(("data:", "blob:")) or url == report.as_uri()

    def start(width: int = 1440, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        page.on("request", lambda r: None if is_own(r.url) else troubles.append(f"request: {r.url}"))
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-ready=yes]", timeout=30_000)
        return page

    yield start
    for context in contexts:
        context.close()
    assert troubles == []


def column(page: Any, title: str) -> list[str]:
    """Texts of one column of the table of every row, as shown."""
    heads = page.locator("#rows-table thead th").all_inner_texts()
    at = next(i for i, head in enumerate(heads) if " ".join(head.split()) == title) + 1
    return page.locator(f"#rows-table tbody tr td:nth-child({at})").all_inner_texts()


def sort_by(page: Any, table: str, title: str, direction: str) -> None:
    """Clicks a heading and waits until the table says that it is sorted."""
    head = page.locator(table).locator("thead th", has_text=title)
    head.click()
    page.wait_for_function("([node, want]) => node.ariaSort === want", arg=[head.element_handle(), direction])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1440])
def test_page_fits_its_window(open_page: Any, width: int, scheme: str) -> None:
    page = open_page(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll, .dt-layout-table')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 29)"
    assert dark == (scheme == "dark")
    figures = page.evaluate(
        "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.currentSrc === i.src, i.alt.length > 20])"
    )
    assert figures and all(figure == [True, scheme == "light", True] for figure in figures)


def test_rows_sort_by_value(open_page: Any) -> None:
    page = open_page()
    page.get_by_label("rows", exact=False).first.select_option("-1")
    assert page.locator("#rows-table tbody tr").count() == 240
    sort_by(page, "#rows-table", "Time, ms", "ascending")
    times = [float(text.split("\n")[0]) for text in column(page, "Time, ms") if text.strip()]
    assert len(times) > 100 and times == sorted(times)
    assert column(page, "Time, ms")[-1].strip() == ""  # what has no time comes last
    sort_by(page, "#rows-table", "Speed-up", "descending")
    gains = [float(text.split("×")[0]) for text in column(page, "Speed-up") if text.strip()]
    assert gains == sorted(gains, reverse=True) and gains[0] > 1


def test_rows_filter(open_page: Any) -> None:
    page = open_page()
    page.locator("#filters select[data-key=pass]").select_option("bwd_data")
    page.locator("#filters select[data-key=algorithm]").select_option("onednn")
    assert column(page, "Algorithm") == ["onednn"] * 4  # not onednn_blocked
    assert column(page, "Pass") == ["bwd_data"] * 4
    page.locator("#filters select[data-key=algorithm]").select_option("")
    page.locator("#filters select[data-key=status]").select_option("timed_out")
    assert column(page, "Algorithm") == ["fft_pyfftw"]
    page.locator("#filters select[data-key=status]").select_option("")
    page.locator("#every-row input[type=search]").fill("winograd_f6")
    assert set(column(page, "Algorithm")) == {"winograd_f6_numpy"}
    page.locator("#every-row input[type=search]").fill("no such row")
    assert "no row fits" in page.locator("#rows-table tbody").inner_text()


def test_summary_sorts(open_page: Any) -> None:
    page = open_page()
    table = page.locator("#summary table").first
    sort_by(page, "#summary table >> nth=0", "Algorithm", "ascending")
    names = table.locator("tbody th").all_inner_texts()
    assert len(names) == 20 and names == sorted(names)
    sort_by(page, "#summary table >> nth=0", "Speed-up", "descending")
    assert table.locator("tbody tr").last.inner_text().split("\t")[1] == "none"


def test_details_show_everything_and_the_command(open_page: Any, report: Path) -> None:
    page = open_page()
    first = page.locator("#rows-table tbody tr").first
    button = first.get_by_role("button", name="Details")
    button.focus()
    page.keyboard.press("Enter")
    record = page.locator(".record")
    assert button.get_attribute("aria-expanded") == "true"
    text = record.inner_text()
    for name in ("workspace_bytes", "error_rel_l2", "time_s_ci_lo", "speedup_ci_hi", "case_id", "energy_j"):
        assert name in text
    assert "convbench run" in record.locator(".command").inner_text()
    button.click()
    assert page.locator(".record").count() == 0


def test_copy_gives_the_command_that_repeats_the_row(open_page: Any, browser: Any) -> None:
    page = open_page()
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.locator("#rows-table tbody tr").nth(2).get_by_role("button", name="Copy").click()
    page.wait_for_function("window.copied !== undefined")
    assert "--algorithm torch" in page.evaluate("window.copied")


def test_what_a_run_says_stays_text(open_page: Any) -> None:
    page = open_page()
    page.get_by_label("rows", exact=False).first.select_option("-1")
    page.locator("#filters select[data-key=status]").select_option("failed")
    page.get_by_role("button", name="Details").first.click()
    page.wait_for_timeout(300)
    assert HOSTILE in page.locator(".record").inner_text()
    assert page.title().startswith("VGG-16")
    assert page.locator("main script, main img[src=x]").count() == 0
    assert any(HOSTILE in text for text in page.locator("#best th").all_text_contents())
    assert any(BREAKOUT in text for text in page.locator("#matrix th").all_text_contents())
    assert page.evaluate("[...document.scripts].filter(s => !s.type).length") == 1


def test_policy_stops_a_script_that_got_in_after_all(browser: Any, report: Path, tmp_path: Path) -> None:
    """The second lock: even unescaped, a foreign script does not run and nothing is fetched."""
    broken = tmp_path / "broken.html"
    page_text = report.read_text()
    injected = f"<main id=\"main\">{HOSTILE}<img src='x' onerror=\"document.title='owned'\">"
    assert page_text.count('<main id="main">') == 1
    broken.write_text(page_text.replace('<main id="main">', injected))
    page = browser.new_page()
    page.goto(broken.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    assert page.title().startswith("VGG-16")
    page.close()


def test_keyboard_reaches_the_tables(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    regions = page.locator(".scroll, .dt-layout-table")
    assert regions.count() > 8
    assert all(regions.nth(i).get_attribute("tabindex") == "0" for i in range(regions.count()))


@pytest.fixture(scope="module")
def formats_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of several formats and two kinds of inputs, and one that sweeps the axes of XNOR-Net's figure 4."""
    records = [r for r in precision_records(inputs=("normal", "relu")) if "conv3_1" in r.case.label]
    records += [r for r in xnor_records(("packed",)) if r.case.problem.shape.c in (64, 256, 1024)]
    return build_report(make_run(tmp_path_factory.mktemp("formats"), records)).html


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_precision_fits_and_filters(browser: Any, formats_report: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    troubles: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(formats_report.as_uri())
    page.wait_for_selector("html[data-ready=yes]", timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    part = page.locator("#precision")
    assert "against another function" in part.inner_text()
    pictures = part.locator("img").evaluate_all(
        "nodes => nodes.map(i => [i.naturalWidth > 0, i.currentSrc === i.src, i.alt.length > 20])"
    )
    assert len(pictures) >= 4 and all(picture == [True, scheme == "light", True] for picture in pictures)
    heads = " ".join(part.locator("thead th").all_inner_texts()).replace("\n", " ")
    for title in ("Over naive float32", "Over oneDNN int8", "Formula", "Less than float64", "Relative L2 error"):
        assert title in heads
    for key, value in (("inputs", "relu"), ("semantics", "xnor")):
        page.locator(f"#filters select[data-key={key}]").select_option(value)
    assert set(column(page, "Inputs")) == {"relu"} and set(column(page, "Semantics")) == {"xnor"}
    assert set(column(page, "Exact result, ULP")) == {"1.50"}
    context.close()
    assert troubles == []

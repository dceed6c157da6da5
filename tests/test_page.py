"""The report in a browser: no violation that axe-core knows, nothing wider than the screen, charts and tables alive."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.report import __main__ as report
from stn_export.run.manifest import NetworkDirectory, network_directories
from tests import bench_rows
from tests.report_files import checks_of, comparison, export, write_points, write_training, write_verify
from tests.test_report import write_bench

MISSING = [name for name in ("playwright", "axe_playwright_python") if not find_spec(name)]
if not MISSING:
    from axe_playwright_python import sync_playwright as axe
    from playwright import sync_api as playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason="pip install 'stn-export[browser]'"),
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here"),
]


@pytest.fixture(scope="module")
def page_file(entered_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it."""
    run = Path(shutil.copytree(entered_run, tmp_path_factory.mktemp("page") / "run"))
    export(NetworkDirectory(run / "stn"), "folded-fp32", "folded-fp16", "decomposed-fp32")
    export(NetworkDirectory(run / "cnn"), "plain-fp32")
    write_verify(run, checks_of(run))
    write_training(run, comparison(3))
    write_points(run)
    write_bench(run, bench_rows.rows(bench_rows.artifacts_of(network_directories(run))))
    assert cli.run(report.main, ["--run", str(run)]) == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser, page_file: Path, width: int, scheme: str = "light"):
    """The page, unfolded and with all charts drawn; it complains of nothing and asks nobody."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.told = []
    page.on("pageerror", lambda error: page.told.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or page.told.append(request.url))
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    page.evaluate("document.querySelectorAll('figure.chart').forEach((each) => near.unobserve(each) || draw(each))")
    page.wait_for_function("[...document.querySelectorAll('figure.chart')].every((one) => one.view)", timeout=60_000)
    assert page.told == []
    return page


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_nothing_stands_in_anyones_way(browser, page_file: Path, width: int, scheme: str):
    page = opened(browser, page_file, width, scheme)
    for _ in ("once all charts are drawn", "as it opens"):
        found = axe.Axe().run(page)
        assert [(each["id"], each["nodes"][0]["html"][:120]) for each in found.response["violations"]] == []
        page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_tables_are_sorted_and_filtered_and_scales_change(browser, page_file: Path):
    page = opened(browser, page_file, 1280)
    table = page.locator("section#costs .scroll", has=page.locator("th", has_text="p50")).locator("table")
    table.locator("th button", has_text="p90").click()
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("p90")
    shown = [float(text) for text in table.locator("tbody td:nth-child(5)").all_inner_texts() if text != "–"]
    assert shown == sorted(shown)
    page.get_by_label("Filter the rows of: Latency at batch 1, and start-up").fill("folded-fp16 openvino")
    assert table.locator("tbody tr:visible").count() == 1
    figure = page.locator("figure.chart", has=page.locator("button.scale")).first
    before = figure.locator(".live svg").inner_html()
    figure.locator("button.scale").click()
    page.wait_for_function("(was) => document.querySelector('figure.chart .live svg').innerHTML !== was", arg=before)
    assert figure.locator("button.scale").inner_text() == "logarithmic scale"
    assert page.told == []


def test_without_a_script_and_in_print_the_pictures_stand_still(browser, page_file: Path):
    still = browser.new_context(java_script_enabled=False).new_page()
    still.goto(page_file.as_uri())
    for summary in still.locator("main > section > details > summary").all():
        summary.click()
    assert still.locator(".still svg:visible").count() == still.locator("figure.chart").count() > 8
    printed = opened(browser, page_file, 1280)
    printed.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = false))")
    printed.evaluate("dispatchEvent(new Event('beforeprint'))")
    printed.emulate_media(media="print")
    assert printed.locator(".live:visible").count() == 0
    assert printed.locator(".still svg:visible").count() == printed.locator("figure.chart").count()
    printed.evaluate("dispatchEvent(new Event('afterprint'))")
    assert printed.locator("details[open]").count() == 0


# By chart: texts that stick out of the picture or lie on each other, pictures that stick out of their frame, names that
# are cut short.
CUT_CHARTS = """() => [...document.querySelectorAll("figure.chart")].flatMap((figure) => {
  const svg = figure.querySelector(".live svg");
  const own = svg.getBoundingClientRect(), frame = figure.getBoundingClientRect();
  const title = figure.querySelector("figcaption span").textContent, found = [];
  if (own.right > frame.right + 1 || own.left < frame.left - 1) found.push([title, "the picture"]);
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect(), seen = text.getClientRects().length && getComputedStyle(text).opacity > 0;
    if (!seen || text.textContent === "") continue;
    const out = box.right > own.right + 1.5 || box.left < own.left - 1.5 || box.bottom > own.bottom + 1.5;
    if (out || text.textContent.endsWith("…")) found.push([title, text.textContent]);
  }
  for (const axis of svg.querySelectorAll(".role-axis-label")) {
    const boxes = [...axis.querySelectorAll("text")].filter((text) => getComputedStyle(text).opacity > 0)
      .map((text) => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([name, one], index) => boxes.slice(index + 1).forEach(([other, two]) => {
      const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
      const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
      if (wide > 1 && high > 3) found.push([title, name, other]);
    }));
  }
  return found;
})"""
# By table: its width, that of its frame, whether its first column stays, and whether its end can be reached.
TABLES = """() => [...document.querySelectorAll(".scroll")].map((frame) => {
  const first = frame.querySelector("tbody th"), left = frame.getBoundingClientRect().left;
  frame.scrollLeft = 1e6;
  const right = frame.querySelector("tbody tr").lastElementChild.getBoundingClientRect().right;
  const found = {
    name: frame.getAttribute("aria-label"), width: frame.scrollWidth, room: frame.clientWidth,
    stays: Math.abs(first.getBoundingClientRect().left - left) < 3,
    ends: right <= frame.getBoundingClientRect().right + 1,
    shadow: getComputedStyle(frame).backgroundImage.includes("gradient"),
    covered: first.getBoundingClientRect().width / frame.clientWidth,
  };
  frame.scrollLeft = 0;
  return found;
})"""


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_chart_and_no_table_is_cut(browser, page_file: Path, width: int):
    page = opened(browser, page_file, width)
    assert page.evaluate(CUT_CHARTS) == []
    tables = page.evaluate(TABLES)
    assert len(tables) > 15
    for table in tables:
        if table["width"] > table["room"] + 1:
            assert width < 1280, table
            assert table["stays"], table
            assert table["ends"], table
            assert table["shadow"], table
            assert table["covered"] < 0.5, table


def test_all_charts_are_of_one_width(browser, page_file: Path):
    page = opened(browser, page_file, 1280)
    script = "(of) => [...document.querySelectorAll(of)].map((each) => each.getBoundingClientRect().width)"
    widths = page.evaluate(script, "figure.chart .live svg")
    assert len(widths) > 8
    assert max(widths) - min(widths) < 30  # panels beside each other have gaps
    page.emulate_media(media="print")
    assert len({round(each) for each in page.evaluate(script, "figure.chart .still svg")}) < 3


def test_the_first_screen_says_what_to_deploy_and_how_to_call_it_and_the_page_is_short(browser, page_file: Path):
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.goto(page_file.as_uri())
    for place in ("dl.answer", ".call", ".call .copy", "nav"):
        box = page.locator(place).bounding_box()
        assert box["y"] + box["height"] < 900, place
    page.click(".call .copy")
    page.wait_for_function("document.querySelector('.copy').textContent === 'copied'")
    assert page.evaluate("navigator.clipboard.readText()").strip() == page.locator(".call code").inner_text().strip()
    link = page.locator(".call a").get_attribute("href")
    assert link.startswith("./stn/")
    assert page.evaluate("document.body.scrollHeight") < 5500
    page.locator("figure.chart").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('figure.chart').view", timeout=60_000)


def test_more_lines_are_drawn_when_asked_for(browser, page_file: Path):
    page = opened(browser, page_file, 1280)
    figure = page.locator("figure.chart", has=page.locator(".lines")).first
    buttons = figure.locator(".lines button")
    assert figure.locator("[aria-pressed=true]").count() == 5 < buttons.count()
    hidden = figure.locator("[aria-pressed=false]").first
    before = figure.locator(".live svg").inner_html()
    hidden.click()
    page.wait_for_function(
        "([figure, was]) => figure.querySelector('.live svg') && figure.querySelector('.live svg').innerHTML !== was",
        arg=[figure.element_handle(), before],
    )
    assert figure.locator(".count").inner_text() == f"6 of {buttons.count()} lines drawn"
    assert page.told == []

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
    """The page, scrolled through, so that all charts are drawn; it complains of nothing and asks nobody."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.told = []
    page.on("pageerror", lambda error: page.told.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or page.told.append(request.url))
    page.goto(page_file.as_uri())
    for place in range(0, page.evaluate("document.body.scrollHeight"), 600):
        page.evaluate(f"window.scrollTo(0, {place})")
        page.wait_for_timeout(60)
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
    page.get_by_label("Filter the rows of: One example").fill("folded-fp16 openvino")
    assert table.locator("tbody tr:visible").count() == 1
    figure = page.locator("figure.chart", has=page.locator("button")).first
    before = figure.locator(".live svg").inner_html()
    figure.locator("button").click()
    page.wait_for_function("(was) => document.querySelector('figure.chart .live svg').innerHTML !== was", arg=before)
    assert figure.locator("button").inner_text() == "logarithmic scale"
    assert page.told == []


def test_without_a_script_and_in_print_the_pictures_stand_still(browser, page_file: Path):
    still = browser.new_context(java_script_enabled=False).new_page()
    still.goto(page_file.as_uri())
    assert still.locator(".still svg:visible").count() == still.locator("figure.chart").count() > 8
    printed = opened(browser, page_file, 1280)
    printed.emulate_media(media="print")
    assert printed.locator(".live:visible").count() == 0
    assert printed.locator(".still svg:visible").count() == printed.locator("figure.chart").count()

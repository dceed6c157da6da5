"""The site of docs/ in a browser: no violation that axe-core knows, and no page wider than the screen."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.conftest import REPOSITORY

MISSING = [name for name in ("playwright", "axe_playwright_python", "mkdocs", "mkdocstrings") if not find_spec(name)]
if not MISSING:
    from axe_playwright_python import sync_playwright as axe
    from playwright import sync_api as playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason="pip install 'stn-export[browser,docs]'"),
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here"),
]
PAGES = sorted(path.stem for path in (REPOSITORY / "docs").glob("*.md"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a line for each request."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site, which is served from this process."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "light"), (1280, "dark")])
def test_every_page_can_be_read_by_everyone(site: str, width: int, scheme: str):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        wrong = []
        for name in PAGES:
            page.goto(f"{site}/{'' if name == 'index' else name + '/'}")
            found = axe.Axe().run(page).response["violations"]
            wrong += [(name, each["id"], each["nodes"][0]["html"][:120]) for each in found]
            if page.evaluate("document.documentElement.scrollWidth") > width:
                wrong.append((name, "is wider than the screen", ""))
        browser.close()
    assert wrong == []


def test_the_search_finds_a_rule(site: str):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(site)
        page.locator("[data-bs-target='#mkdocs_search_modal']").first.click()
        page.locator("#mkdocs-search-query").press_sequentially("STN015")
        page.locator("#mkdocs-search-results a", has_text="Lint rules").first.wait_for(timeout=20_000)
        browser.close()

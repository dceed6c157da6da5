"""The page on which a picture is turned by hand: it gives what ONNX Runtime gives, and asks nobody else."""

import json
import os
import re
import shutil
import socket
import struct
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from stn_export import cli
from stn_export.errors import UserError
from stn_export.play import __main__ as play

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
POSES = 50


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A directory that looks like ONNX Runtime for the browser."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in play.FILES:
        (folder / name).write_text("", encoding="utf-8")
    return folder


def test_the_folder_holds_all_that_the_page_asks_for(run: Path, runtime: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(play.main, ["--run", str(run), "--build-only", "--runtime", str(runtime)]) == 0
    assert "any static host" in capsys.readouterr().out
    about = json.loads((run / "play" / "play.json").read_text(encoding="utf-8"))
    assert [each["artifact"] for each in about["networks"]] == ["folded-fp32", "plain-fp32"]
    for each in about["networks"]:
        session = onnxruntime.InferenceSession(run / "play" / each["file"])
        given = {output.name for output in session.get_outputs()}
        assert given == {name for name in (each["output"], each["grid"], each["warped"]) if name}
    assert len(about["samples"]) == play.SAMPLES
    for name in ("index.html", "play.js", "play.css", *play.FILES):
        assert (run / "play" / name).is_file()


def test_what_cannot_be_played_is_said(entered_run: Path, run: Path, runtime: Path, tmp_path: Path):
    with pytest.raises(UserError, match="holds no ONNX file for the page"):
        play.build(entered_run, tmp_path / "page", runtime)
    shutil.rmtree(run / "stn")
    with pytest.raises(UserError, match=r"no network of .* has a sampling site"):
        play.build(run, tmp_path / "page", runtime)


@pytest.mark.parametrize(
    ("npm", "said"), [(None, "there is no npm"), ("#!/bin/sh\necho offline >&2; exit 1\n", "offline")]
)
def test_without_npm_there_is_one_line(npm: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if npm:
        (tmp_path / "npm").write_text(npm, encoding="utf-8")
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=said):
        play.fetched()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium here")
@pytest.mark.parametrize(
    ("query", "flags", "poses", "where"),
    [
        ("", (), POSES, "in WebAssembly, one thread"),
        ("?webgpu", ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"), 3, "in WebGPU, "),
        ("", ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"), 3, "in WebAssembly, one thread"),
    ],
    ids=["WebAssembly", "WebGPU", "no WebGPU in software unless asked"],
)
def test_the_page_gives_what_onnx_runtime_gives(query: str, flags: tuple[str, ...], poses: int, where: str, run: Path):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'stn-export[browser]'")
    try:
        names = play.build(run, run / "play", Path(given) if (given := os.environ.get("STN_EXPORT_ORT_WEB")) else None)
    except UserError as error:
        pytest.skip(error.message)
    files = [run / "play" / name for name in ("stn.onnx", "cnn.onnx")]
    sessions = [onnxruntime.InferenceSession(file) for file in files]
    places = np.random.default_rng(0).uniform((-8, -8, -180, 0.5), (8, 8, 180, 2), (poses, 4))
    with served(run / "play", names) as address, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *flags])
        page, told = browser.new_page(), []
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((address, "data:", "blob:")) or told.append(asked.url))
        page.on("console", lambda said: told.append(said.text) if "WebGPU does not run" in said.text else None)
        page.goto(address + query)
        page.wait_for_function("window.play", timeout=60_000)
        page.wait_for_function("document.getElementById('speed').textContent.includes(' in ')", timeout=120_000)
        assert where in page.inner_text("#speed")
        for x, y, angle, scale in places.tolist():
            found = page.evaluate("(pose) => play.at(pose)", {"x": x, "y": y, "angle": angle, "scale": scale})
            fed = np.array(found["values"], np.float32).reshape(1, 3, 32, 32)
            for session, values in zip(sessions, found["outputs"], strict=True):
                [expected] = session.run(["log_probs"], {"images": fed})
                np.testing.assert_allclose(values, expected[0], atol=1e-4)
        page.click("#spin")
        page.wait_for_timeout(2500)
        print(f"\n{page.evaluate('play.frames()')} frames a second: {page.inner_text('#speed')}")
        assert told == []
        browser.close()


# Stands in for ONNX Runtime: the first three calls of a network take 120 ms, all others 2 ms or, of the second, 6 ms.
STAND_IN = """
const about = await (await fetch("play.json")).json();
export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
const wait = (milliseconds) => { const end = performance.now() + milliseconds; while (performance.now() < end); };
export const InferenceSession = { async create(file) {
  const second = about.networks[0].file !== file;
  const { grid, warped } = about.networks[0];
  let calls = 0;
  return { async run() {
    wait(++calls <= 3 ? 120 : second ? 6 : 2);
    const values = (...dims) => ({ dims, data: new Float32Array(dims.reduce((a, b) => a * b, 1)) });
    const named = { [grid]: values(1, 2, 2, 2), [warped]: values(1, 3, 4, 4) };
    return new Proxy(named, { get: (known, name) => known[name] ?? values(1, 10) });
  } };
} };
"""


@pytest.fixture
def phone(run: Path, runtime: Path):
    """The page with a stand-in for the runtime, on a phone; it complains of nothing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'stn-export[browser]'")
    (runtime / "ort.wasm.min.mjs").write_text(STAND_IN, encoding="utf-8")
    names = play.build(run, run / "play", runtime)
    with served(run / "play", names) as address, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).new_page()
        told: list[str] = []
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(address)
        page.wait_for_function("document.getElementById('speed').textContent.includes(' ms')", timeout=60_000)
        yield page
        assert told == []
        browser.close()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no chromium here")
def test_a_phone_chooses_a_picture_turns_it_with_two_fingers_and_is_told_warm_times(phone, tmp_path: Path):
    first = [float(found) for found in re.findall(r"([\d.]+) ms", phone.inner_text("#speed"))]
    assert len(first) == 2
    assert 2 <= first[0] < first[1] < 40, "the first calls count"
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390

    Image.new("RGB", (30, 20), "red").save(tmp_path / "own.png")
    phone.set_input_files("#file", tmp_path / "own.png")
    phone.wait_for_function("play.size().join() === '30,20'")
    (tmp_path / "none.png").write_text("no picture", encoding="utf-8")
    phone.set_input_files("#file", tmp_path / "none.png")
    phone.wait_for_function("document.getElementById('said').textContent.startsWith('none.png is no picture')")
    assert phone.evaluate("play.size()") == [30, 20]

    touch = phone.context.new_cdp_session(phone)

    def fingers(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": left + x, "y": top + y, "id": index} for index, (x, y) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    phone.locator("#input").scroll_into_view_if_needed()
    box = phone.locator("#input").bounding_box()
    left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    fingers("touchStart", (-30, 0), (30, 0))
    fingers("touchMove", (0, -60), (0, 60))
    fingers("touchEnd")
    pose = phone.evaluate("play.pose()")
    assert pose["scale"] == pytest.approx(2, rel=0.05)
    assert abs(pose["angle"]) == pytest.approx(90, abs=3)
    fingers("touchStart", (0, 0))
    fingers("touchMove", (25, 0))
    fingers("touchEnd")
    after = phone.evaluate("play.pose()")
    assert (after["x"] - pose["x"], after["y"] - pose["y"]) == (pytest.approx(25 * 48 / box["width"], rel=0.05), 0)


def status(address: str, path: str, host: str | None = None, method: str = "GET") -> int:
    """How a request is answered."""
    port = int(address.rstrip("/").rpartition(":")[2])
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": host.format(port=port)} if host else {})
    return connection.getresponse().status


def test_only_what_the_page_is_made_of_is_served_and_to_its_own_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = tmp_path / "page"
    (folder / "deep").mkdir(parents=True)
    for name in ("index.html", "stn.onnx", ".secret", "other.txt", "deep/file"):
        (folder / name).write_text("x" * 2_000_000, encoding="utf-8")
    (folder / "link").symlink_to("/etc/passwd")
    with served(folder, frozenset({"index.html", "stn.onnx", "link"})) as address:
        assert [status(address, path) for path in ("/", "/index.html", "/stn.onnx?v=1")] == [200] * 3
        refused = ("/.secret", "/other.txt", "/deep/", "/deep/file", "/link", "/../page/stn.onnx", "/%00", "/%2e%2e/x")
        assert {path: status(address, path) for path in refused} == dict.fromkeys(refused, 404)
        assert status(address, "/other.txt", method="HEAD") == 404
        assert [status(address, "/", host) for host in ("localhost:{port}", "127.0.0.1:{port}")] == [200] * 2
        assert [status(address, "/", host) for host in ("evil.example:{port}", "evil.example", "")] == [403, 403, 200]
        with socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))) as broken:
            broken.sendall(b"GET /stn.onnx HTTP/1.1\r\nHost: localhost:1\r\n\r\n")
            broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


class served:  # noqa: N801
    """A folder on the loopback."""

    def __init__(self, folder: Path, names: frozenset[str]) -> None:
        self.server = play.serving(folder, names)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

"""The page on which a picture is turned by hand: it gives what ONNX Runtime gives, and asks nobody else."""

import json
import os
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
    with pytest.raises(UserError, match=r"no network of .* samples anything"):
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
def test_the_page_gives_what_onnx_runtime_gives(run: Path):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'stn-export[browser]'")
    try:
        names = play.build(run, run / "play", Path(given) if (given := os.environ.get("STN_EXPORT_ORT_WEB")) else None)
    except UserError as error:
        pytest.skip(error.message)
    files = [run / "play" / name for name in ("stn.onnx", "cnn.onnx")]
    sessions = [onnxruntime.InferenceSession(file) for file in files]
    poses = np.random.default_rng(0).uniform((-8, -8, -180, 0.5), (8, 8, 180, 2), (POSES, 4))
    with served(run / "play", names) as address, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, told = browser.new_page(), []
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((address, "data:", "blob:")) or told.append(asked.url))
        page.goto(address)
        page.wait_for_function("window.play", timeout=60_000)
        for x, y, angle, scale in poses.tolist():
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

"""docs/dream/ in a real browser: its numbers beside the Python models', and what a user does with it.

The browser is Chromium without a window, driven over a pipe (Chrome DevTools Protocol), so no package is needed.
"""

import base64
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from models import controller, rnn, settings, vae, weights, worlds
from tests.conftest import ROOT
from tools import export_dream, serve_dream

import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
# --no-sandbox is for root, as in CI; without the five after it Chromium asks for Google's hosts at every start.
FLAGS = (
    "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-gpu --remote-debugging-pipe"
).split()
# Chromium takes commands on file descriptor 3 and answers on 4.
ON_PIPES = "import os, sys; [os.dup2(int(sys.argv[k]), 2 + k) for k in (1, 2)]; os.execv(sys.argv[3], sys.argv[3:])"
TRAINED = ROOT / "models" / "trained"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
STATES = 100


class Browser:
    """Chromium, spoken to over two pipes."""

    def __init__(self, profile: Path) -> None:
        ends = [*os.pipe(), *os.pipe()]
        commands, self.input, self.output, answers = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
        for end in ends:
            os.close(end)
        launch = [sys.executable, "-c", ON_PIPES, str(commands), str(answers), CHROMIUM, *FLAGS]
        launch += [f"--user-data-dir={profile}"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(launch, pass_fds=(commands, answers), **quiet)
        os.close(commands), os.close(answers)
        self.received, self.calls, self.events = b"", 0, []

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(20)
        os.close(self.input), os.close(self.output)

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict:
        """Send a command and wait for its result; events that come meanwhile are kept."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.input, data) :]
        while (answer := self.receive(30)).get("id") != message["id"]:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def receive(self, seconds: float) -> dict:
        while b"\0" not in self.received:
            assert select.select([self.output], [], [], seconds)[0], "Chromium does not answer"
            part = os.read(self.output, 1 << 20)
            assert part, "Chromium has ended"
            self.received += part
        answer, self.received = self.received.split(b"\0", 1)
        return json.loads(answer)


class Page:
    """A tab with the dream's page in it, and the worker of that page."""

    def __init__(self, browser: Browser, url: str, **media: object) -> None:
        self.browser, self.url = browser, url
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        self.worker = None
        browser.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        features = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)

    def call(self, method: str, **parameters: object) -> dict:
        return self.browser.call(method, self.session, **parameters)

    def open(self) -> "Page":
        """Load the page and wait for its first picture, or for the sentence that says why there is none."""
        self.call("Page.navigate", url=self.url)
        self.until("document.readyState === 'complete'")
        if not self.url.startswith("file:"):
            while not (started := [e for e in self.browser.events if e.get("method") == "Target.attachedToTarget"]):
                self.browser.events.append(self.browser.receive(15))
            self.worker = started[-1]["params"]["sessionId"]
            for method in ("Runtime.enable", "Network.enable", "Runtime.runIfWaitingForDebugger"):
                self.browser.call(method, self.worker)
        self.until("document.documentElement.dataset.state !== 'loading'")
        return self

    def run(self, expression: str, worker: bool = False) -> object:
        """What an expression is worth in the page, or in its worker."""
        session = self.worker if worker else self.session
        options = {"returnByValue": True, "awaitPromise": True}
        result = self.browser.call("Runtime.evaluate", session, expression=expression, **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str, worker: bool = False) -> object:
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + 15
        while not (value := self.run(expression, worker)):
            assert time.monotonic() < end, expression
            time.sleep(0.02)
        return value

    def numbers(self, expression: str) -> np.ndarray:
        """The numbers of an array of arrays in the worker, as float32 (rows, …)."""
        text = f"""(() => {{
            const rows = {expression};
            const bytes = new Uint8Array(Float32Array.from(rows.flatMap((row) => [...row])).buffer);
            let text = "";
            for (let k = 0; k < bytes.length; k += 8192) text += String.fromCharCode(...bytes.subarray(k, k + 8192));
            return [rows.length, btoa(text)];
        }})()"""
        rows, data = self.run(text, worker=True)
        return np.frombuffer(base64.b64decode(data), "<f4").reshape(rows, -1)

    def key(self, code: str, down: bool) -> None:
        kind, number = "rawKeyDown" if down else "keyUp", {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}.get(code, 0)
        self.call("Input.dispatchKeyEvent", type=kind, code=code, key=code, windowsVirtualKeyCode=number)

    def press(self, code: str) -> None:
        self.key(code, True)
        self.key(code, False)

    def complaints(self) -> list[str]:
        """Errors on the console, and requests to elsewhere."""
        found = []
        for event in self.browser.events:
            method, about = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown" or (method == "Log.entryAdded" and about["entry"]["level"] == "error"):
                found.append(json.dumps(about))
            if method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
                found.append(json.dumps(about))
            if method == "Network.requestWillBeSent":
                url = about["request"]["url"]
                if not url.startswith((self.url.split("/docs")[0], "data:")):
                    found.append(url)
        return found


@contextmanager
def served(file: Path):
    """The address of the page, with `file` as its weights."""
    with serve_dream.make_server(0, file) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}{serve_dream.URL}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def trained():
    """The shipped V, M, C and dream starts, in single precision whatever the processor likes best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "precision", lambda: "float32")
        v, m, c = worlds.load(TRAINED)
    return v, m, c, worlds.load_starts(TRAINED, v)


@pytest.fixture(scope="module")
def binary(trained, tmp_path_factory):
    """The shipped weights as the page reads them."""
    path = tmp_path_factory.mktemp("dream") / "dream.bin"
    path.write_bytes(export_dream.pack(*trained, STATES))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Browser(tmp_path_factory.mktemp("chromium"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def address(binary):
    with served(binary) as url:
        yield url

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

from models import controller, loading, rnn, vae, worlds
from pipeline import UserError
from tests.conftest import ROOT
from tools import export_dream, serve_dream

import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
# --no-sandbox is for root, as in CI. Without those of the second line it asks for Google's hosts at every start.
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
FLAGS += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
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
        kind, number = (
            "rawKeyDown" if down else "keyUp",
            {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}.get(code, 0),
        )
        self.call("Input.dispatchKeyEvent", type=kind, code=code, key=code, windowsVirtualKeyCode=number)

    def press(self, code: str) -> None:
        self.key(code, True)
        self.key(code, False)

    def complaints(self) -> list[str]:
        """Errors on the console, and requests to elsewhere."""
        found = []
        for event in self.browser.events:
            method, about = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown" or (
                method == "Log.entryAdded" and about["entry"]["level"] == "error"
            ):
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
        patch.setattr(vae, "dtype_policy", lambda: "float32")
        v, m, c = worlds.load(TRAINED)
    return v, m, c, loading.load_starts(TRAINED, v)


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


@pytest.fixture
def new_page(browser):
    """Makes pages, and closes them after the test."""
    made = []

    def make(url: str, **media: str) -> Page:
        made.append(Page(browser, url, **media))
        return made[-1]

    yield make
    for page in made:
        browser.call("Target.closeTarget", targetId=page.target)


# What both sides compute


def real_states(m, starts: dict, count: int) -> list[np.ndarray]:
    """z, h and c before it, and the action, at the end of `count` windows of real frames."""
    mu, action = starts["mu"][:count].astype("f4"), starts["action"][:count].astype("f4")
    state = m.initial_state(count)
    for k in range(mu.shape[1] - 1):
        state = m.update_state(mu[:, k], action[:, k], state)
    return [mu[:, -1], *map(np.asarray, state), action[:, -1]]


@needs_chromium
def test_the_page_computes_what_python_computes(new_page, address, trained):
    v, m, c, starts = trained
    z, h, cell, action = real_states(m, starts, STATES)
    random = np.random.default_rng(1)
    uniform, normal = random.random((STATES, 32), np.float32), random.standard_normal((STATES, 32), np.float32)
    taus = random.uniform(0.1, 2, STATES).astype("f4")
    page = new_page(address).open()
    page.press("KeyP")
    given = {"z": z, "h": h, "cell": cell, "action": action, "uniform": uniform, "normal": normal, "taus": taus}
    text = json.dumps({name: array.astype(float).tolist() for name, array in given.items()})
    page.run(f"self.given = {text}; given.state = (k) => [given.h[k], given.cell[k]]; 0", worker=True)

    def in_page(expression: str) -> np.ndarray:
        return page.numbers(f"given.z.map((z, k) => {expression})")

    def close(ours: np.ndarray, theirs: np.ndarray) -> None:
        theirs = np.asarray(theirs).reshape(STATES, -1)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-2, rtol=0)

    close(in_page("vae.decode(z)"), v.decode(z))
    rgba = in_page("picture_of(z)").reshape(-1, 64, 64, 4)
    assert np.abs(rgba[..., :3] - vae.to_uint8(v.decode(z)).numpy().astype(int)).max() <= 2  # of 255
    assert (rgba[..., 3] == 255).all()

    prediction, state = m.step(z, action, (h, cell))
    close(in_page("rnn.step(z, given.action[k], given.state(k))[1][0]"), state[0])
    close(in_page("rnn.step(z, given.action[k], given.state(k))[1][1]"), state[1])
    for name, values in zip(("logits", "mu", "log_sigma"), prediction):
        close(in_page(f"rnn.step(z, given.action[k], given.state(k))[0].{name}"), values)
    for name in ("reward", "done"):
        close(in_page(f"[rnn.step(z, given.action[k], given.state(k))[0].{name}]"), getattr(prediction, name))

    features = np.concatenate([z, h], 1)
    close(
        in_page("act(weights.arrays.controller, [...z, ...given.h[k]], 3)"),
        controller.act(np.tile(c, (STATES, 1)), features),
    )

    # Both draw from M's prediction as Python has it: half precision would let some `uniform` choose the next Gaussian.
    asked = [np.asarray(part).reshape(STATES, -1).astype(float).tolist() for part in prediction[:3]]
    page.run(f"given.prediction = {json.dumps(asked)}; 0", worker=True)
    parts = "const [logits, mu, log_sigma] = given.prediction.map((rows) => Float32Array.from(rows[k]));"
    page.run(f"given.predicted = (k) => {{ {parts} return {{ logits, mu, log_sigma }}; }}; 0", worker=True)
    there = "given.predicted(k)"
    drawn = in_page(f"rnn.sample({there}, given.taus[k], [given.uniform[k], given.normal[k]])")
    close(drawn, m.sample(prediction, taus[:, None], (uniform, normal)))
    weight = np.exp(prediction.logits)
    close(in_page(f"rnn.mean({there})"), (weight * prediction.mu.numpy()).sum(-1) / weight.sum(-1))


@needs_chromium
def test_the_first_frames_of_a_dream(new_page, address, trained, monkeypatch):
    """Fifty frames with the same noise, on the same half-precision numbers.

    Then both sides compute the same, but for single-precision rounding: 1e-6 a step, fed back with each z. 1e-5 was
    seen after 50 frames; 1e-3 leaves room for other processors, and is far below what a mistake makes (z has a
    spread of about 1). With the unrounded numbers a `uniform` sometimes chooses another Gaussian, and the dreams part.
    Even so a `uniform` can lie on the edge between two Gaussians of new weights: then take other tracks.
    """
    _, m, c, starts = trained
    half = rnn.MDNRNN()
    half.set_weights([array.astype(np.float16).astype(np.float32) for array in m.get_weights()])
    monkeypatch.setattr(rnn, "dtype_policy", lambda: "float32")
    chosen = np.unique(np.linspace(0, len(starts["mu"]) - 1, STATES).astype(int))
    world = worlds.DreamWorld(half, {name: starts[name][chosen] for name in ("mu", "action")}, 4, 0.9, 50)
    tracks = np.arange(10, 14)
    seen = [[] for _ in tracks]
    rounded = np.tile(c.astype(np.float16).astype(np.float32), (len(tracks), 1))
    returns, lengths = world.drive(rounded, tracks, lambda step: seen[step.episode].append(step))
    assert lengths.max() == 50

    page = new_page(address).open()
    for episode, track in enumerate(tracks):
        start, noise = world._dream_noise(int(track))
        parts = [(row[:32].tolist(), row[32:64].tolist(), float(row[64])) for row in noise.astype(float)]
        rows = page.numbers(f"""{json.dumps(parts)}.reduce((rows, noise) => {{
            if (self.trial.ended) return rows;
            const {{ z, state, action, prediction }} = self.trial;
            rows.push([...z, ...state[0], ...action, prediction.reward]);
            self.trial.step(null, 0.9, noise);
            return rows;
        }}, (self.trial = new Dream(weights, rnn, {start}), []))""")
        theirs = np.array([[*now.z, *now.h, *now.action, now.reward] for now in seen[episode]])
        np.testing.assert_allclose(rows, theirs, atol=1e-3, rtol=0)
        assert page.run("[trial.frames, trial.ended]", worker=True) == [lengths[episode], bool(lengths[episode] < 50)]
        assert page.run("trial.total", worker=True) == pytest.approx(returns[episode], abs=1e-2)


# What a user does


@pytest.fixture
def page(new_page, address):
    """The page, dreaming. Whatever a test does with it, nothing complains and no request goes elsewhere."""
    page = new_page(address).open()
    yield page
    assert page.complaints() == []


STATE = "document.documentElement.dataset.state"
DRIVER = "document.getElementById('driver').innerText"
ACTION = "['steering', 'gas', 'brake'].map((id) => Number(document.getElementById(id).ariaValueNow))"
PICTURE = "document.getElementById('picture').toDataURL()"
EXPECTED = "document.getElementById('expected').toDataURL()"
SHOWN = (
    "[...document.querySelectorAll('#messages p')].filter((p) => p.checkVisibility()).map((p) => p.innerText).join()"
)


@needs_chromium
def test_keys_drive_and_let_go(page):
    page.until(f"{DRIVER} === 'The controller drives'")
    for codes, action in ((["ArrowLeft", "ArrowUp"], [-1, 1, 0]), (["KeyD", "KeyS"], [1, 0, 0.8])):
        for code in codes:
            page.key(code, True)
        page.until(f"{DRIVER} === 'You drive' && String({ACTION}) === '{','.join(map(str, action))}'")
        assert page.run("dream.action", worker=True) == action
        for code in codes:
            page.key(code, False)
        page.until(f"{DRIVER} === 'The controller drives' && String({ACTION}) !== '{','.join(map(str, action))}'")
    # What the controller does is C's own again.
    page.press("KeyP")
    page.until(f"{STATE} === 'paused'")
    c = "act(dream.controller, [...dream.z, ...dream.state[0]], 3)"
    assert page.run(f"String(dream.action) === String({c})", worker=True)
    assert page.run("scrollY") == 0


@needs_chromium
def test_a_key_let_go_elsewhere_is_let_go(page):
    page.key("ArrowUp", True)
    page.until(f"{DRIVER} === 'You drive'")
    page.run("dispatchEvent(new Event('blur'))")
    page.until(f"{DRIVER} === 'The controller drives'")


@needs_chromium
def test_pause_continue_new_dream(page):
    page.until("Number(document.getElementById('time').value) > 0.1")
    page.press("KeyP")
    page.until(f"{STATE} === 'paused' && !waiting")
    frames = page.run("dream.frames", worker=True)
    time.sleep(0.2)
    assert page.run("dream.frames", worker=True) == frames
    page.press("KeyP")
    page.until(f"dream.frames > {frames + 5}", worker=True)
    page.run("self.old = dream; 0", worker=True)
    page.press("KeyN")
    page.until("dream !== old && dream.frames > 0", worker=True)


@needs_chromium
def test_temperature_acts_at_once(page):
    page.run(
        "self.sample = rnn.sample; rnn.sample = (p, t, n) => sample.call(rnn, p, self.asked = t, n); 0", worker=True
    )
    page.until("self.asked === 1", worker=True)
    page.run("document.getElementById('temperature').focus()")
    for key, value in (("End", 2), ("Home", 0.1)):
        page.call(
            "Input.dispatchKeyEvent", type="rawKeyDown", key=key, code=key, windowsVirtualKeyCode=36 - (key == "End")
        )
        page.until(f"document.getElementById('temperature-value').value === '{value:.2f}'")
        page.until(f"self.asked === {value}", worker=True)
    # On a slider the arrow keys are the slider's.
    page.press("ArrowRight")
    page.until("self.asked === 0.15", worker=True)
    assert page.run(DRIVER) == "The controller drives"


@needs_chromium
def test_a_latent_changes_the_picture(page):
    page.until("Number(document.getElementById('time').value) > 0.1")
    page.run("document.querySelector('#latents input').focus()")
    page.press("ArrowRight")  # pauses
    page.until(f"{STATE} === 'paused' && !waiting && !changed")
    latent = int(page.run("document.activeElement.parentElement.innerText"))
    before = page.run(f"[dream.z[{latent}], dream.z[0]]", worker=True)
    pictures = page.run(f"[{PICTURE}, {EXPECTED}]")
    for _ in range(100):
        page.press("ArrowRight")
    page.until("!waiting && !changed")
    after = page.run(f"[dream.z[{latent}], dream.z[0]]", worker=True)
    assert after[0] > min(before[0] + 0.5, 3.9)
    assert latent == 0 or after[1] == before[1]
    changed = page.run(f"[{PICTURE}, {EXPECTED}]")
    assert all(old != new for old, new in zip(pictures, changed))
    # The dream goes on from there.
    frames = page.run("dream.frames", worker=True)
    page.press("KeyP")
    page.until(f"dream.frames > {frames + 5}", worker=True)


@needs_chromium
def test_a_dream_that_m_ends_says_so(page):
    page.run(
        "dream.step = function (...a) { this.prediction.done = 99; Dream.prototype.step.apply(this, a) }; 0",
        worker=True,
    )
    page.until(f"{STATE} === 'ended'")
    assert page.run(SHOWN).startswith("M ended this dream")
    assert page.run("document.getElementById('pause').disabled")
    page.press("KeyN")
    page.until(f"{STATE} === 'running' && {SHOWN} === ''")


@needs_chromium
@pytest.mark.parametrize("language", ["en", "ko"])
def test_a_phone(new_page, address, language):
    page = new_page(f"{address}#{language}")
    page.call("Emulation.setDeviceMetricsOverride", **PHONE)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.open()
    assert page.run("document.documentElement.scrollWidth") == PHONE["width"]
    shown = "[...document.querySelectorAll('body :not(.for-readers, .for-readers *)')]"
    too_wide = f"{shown}.filter((e) => e.getBoundingClientRect().right > innerWidth)"
    assert page.run(f"{too_wide}.map((e) => e.outerHTML)") == []
    assert page.run("document.documentElement.lang") == language
    small = (
        "[...document.querySelectorAll('button, input, nav a')].filter((e) => e.getBoundingClientRect().height < 24)"
    )
    assert page.run(f"{small}.map((e) => e.outerHTML)") == []
    middle = "(() => { const r = document.querySelector('[data-key=up]').getBoundingClientRect();"
    x, y = page.run(f"{middle} return [r.x + r.width / 2, r.y + r.height / 2]; }})()")
    page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    page.until("document.getElementById('driver').dataset.driver === 'user'")
    assert page.run(ACTION) == [0, 1, 0]
    page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.until("document.getElementById('driver').dataset.driver === 'controller'")
    assert page.complaints() == []


# Contrast as WCAG 2 defines it, of each piece of text that is shown, on the nearest background that is painted.
CONTRAST = """(() => {
    const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
        .reduce((sum, part, k) => sum + part * [0.2126, 0.7152, 0.0722][k], 0);
    const painted = (e) => {
        const colour = getComputedStyle(e).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? painted(e.parentElement) : colour;
    };
    const poor = [];
    for (const e of document.querySelectorAll("body *")) {
        if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
        if (e.closest(".for-readers")) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(painted(e))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([e.outerHTML, (a + 0.05) / (b + 0.05)]);
    }
    return [poor, painted(document.querySelector("h1"))];
})()"""


@needs_chromium
def test_light_and_dark_can_be_read(new_page, address):
    backs = set()
    for scheme in ("light", "dark"):
        page = new_page(address, color_scheme=scheme).open()
        page.key("ArrowUp", True)
        page.until(f"{DRIVER} === 'You drive'")
        for _ in range(2):
            poor, back = page.run(CONTRAST)
            assert poor == []
            backs.add(back)
            page.key("ArrowUp", False)
            page.until(f"{DRIVER} === 'The controller drives'")
    assert len(backs) == 2


@needs_chromium
def test_reduced_motion_starts_paused_and_nothing_shifts(new_page, address):
    page = new_page(address, reduced_motion="reduce")
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="self.shifts = []; "
        "new PerformanceObserver((list) => shifts.push(...list.getEntries().map((e) => e.value)))"
        ".observe({ type: 'layout-shift', buffered: true })",
    )
    # High enough for all of the page: what moves out of sight does not count as a shift.
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=2400, deviceScaleFactor=1, mobile=True)
    page.open()
    page.until("z && !waiting")
    assert page.run(STATE) == "paused"
    assert page.run(
        "[...document.getElementById('picture').getContext('2d').getImageData(0, 0, 9, 9).data].some((b) => b)"
    )
    page.press("KeyP")
    page.until("Number(document.getElementById('time').value) > 1.2")  # the speeds are shown by then
    assert sum(page.run("shifts")) < 0.01


@needs_chromium
def test_all_works_from_the_keyboard_and_focus_is_seen(page):
    reached = []
    for _ in range(80):
        page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        page.call("Input.dispatchKeyEvent", type="keyUp", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        name, outline = page.run(
            "[document.activeElement.id || document.activeElement.ariaLabel || document.activeElement.dataset.key"
            " || document.activeElement.href,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if name is None:  # beyond the last one
            break
        assert outline == "solid", name
        reached.append(name)
    assert {"begin", "pause", "temperature", "left", "up", "z 0"} <= set(reached)


@needs_chromium
@pytest.mark.parametrize("language", ["ko-KR,ko", "de-DE,de"])
def test_language_is_the_browsers_until_chosen(new_page, address, language):
    page = new_page(address)
    agent = page.browser.call("Browser.getVersion")["userAgent"]
    page.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
    page.open()
    korean = language.startswith("ko")
    assert page.run("document.title") == ("꿈속을 달리다" if korean else "Drive in the dream")
    page.run(f"document.querySelector('nav a[hreflang={'en' if korean else 'ko'}]').click()")
    page.until(f"document.title === '{'Drive in the dream' if korean else '꿈속을 달리다'}'")
    texts = "[...document.querySelectorAll('[lang=%s]:not([data-always])')].filter((e) => e.checkVisibility()).length"
    assert page.run(texts % ("ko" if korean else "en")) == 0


def test_each_text_is_there_in_both_languages():
    html = (serve_dream.PAGE / "index.html").read_text()
    html = re.sub(r"<noscript>.*?</noscript>", "", html, flags=re.S)
    english, korean = html.count('<span lang="en">'), html.count('<span lang="ko">')
    assert english == korean > 40
    assert html.count("<li>") == 10
    for link in re.findall(r'href="(\.\./[^"]+)"', html):
        assert (serve_dream.PAGE / link).exists(), link


# Binaries that are not what they should be


def broken(binary: Path, kind: str) -> bytes:
    data = bytearray(binary.read_bytes())
    if kind == "flipped":
        data[len(data) // 2] ^= 1
    if kind == "header":
        data[12] ^= 1
    return {
        "cut": data[:-9],
        "short": data[:12],
        "empty": b"",
        "foreign": b"<!doctype html>",
        "version": data[:8] + b"\2" + data[9:],
    }.get(kind, bytes(data))


@needs_chromium
@pytest.mark.parametrize(
    ("kind", "reason", "sentence"),
    [
        ("missing", "missing", "The weights are not here. Run make dream"),
        ("foreign", "foreign", "The file dream.bin is not a file of weights."),
        ("empty", "foreign", "The file dream.bin is not a file of weights."),
        ("version", "version", "The file dream.bin has another version than this page."),
        ("flipped", "damaged", "The file dream.bin is damaged."),
        ("cut", "damaged", "The file dream.bin is damaged."),
        ("short", "damaged", "The file dream.bin is damaged."),
        ("header", "damaged", "The file dream.bin is damaged."),
    ],
)
def test_a_bad_binary_is_a_sentence(new_page, binary, tmp_path, kind, reason, sentence):
    file = tmp_path / "dream.bin"
    if kind != "missing":
        file.write_bytes(broken(binary, kind))
    with served(file) as url:
        page = new_page(url).open()
        assert page.run(STATE) == reason
        assert page.run(SHOWN).startswith(sentence)
        assert page.run("document.getElementById('begin').disabled")
        page.run("location.hash = 'ko'")
        page.until("document.documentElement.lang === 'ko'")
        assert "make dream" in page.run(SHOWN)
        assert not re.search("[a-z]{3,} [a-z]{3,} [a-z]{3,}", page.run(SHOWN))


@needs_chromium
def test_opened_as_a_file_it_says_what_to_do(new_page):
    page = new_page((serve_dream.PAGE / "index.html").as_uri()).open()
    assert "make dream" in page.run(SHOWN)


@needs_chromium
def test_an_error_in_the_worker_is_a_sentence(new_page, address):
    page = new_page(address).open()
    page.run("dream.step = () => { throw Error('planted') }; 0", worker=True)
    page.until(f"{STATE} === 'broken'")
    assert page.run(SHOWN) == "The dream stopped because of an error. Load the page again."


@needs_chromium
def test_a_page_that_nobody_sees_does_nothing(page, new_page):
    page.until("dream.frames > 5", worker=True)
    other = new_page("about:blank")
    other.call("Page.bringToFront")
    page.until("document.visibilityState === 'hidden'")
    time.sleep(0.1)  # for what was asked before
    frames = page.run("dream.frames", worker=True)
    time.sleep(0.5)
    assert page.run("dream.frames", worker=True) == frames
    page.call("Page.bringToFront")
    page.until(f"dream.frames > {frames + 5}", worker=True)


# What makes and serves the binary


def test_export_takes_ones_own_weights_where_all_are_there(linked, tmp_path, capsys, as_script, monkeypatch):
    for name in ("MODELS", "OUTPUT", "STARTS"):
        monkeypatch.setattr(export_dream, name, getattr(export_dream, name))  # so that they are put back
    as_script(export_dream, f"MODELS={linked}", f"OUTPUT={tmp_path}/new/dream.bin", "STARTS=3")
    lines = f"showing your own weights, {linked}\nmade: {tmp_path}/new/dream.bin (1.6 MB)\n"
    assert capsys.readouterr().out == lines
    assert os.listdir(tmp_path / "new") == ["dream.bin"]
    (linked / "dream_starts.npz").unlink()
    assert loading.choose_weights(linked, *export_dream.NEEDED) == TRAINED
    assert "has no dream_starts.npz" in capsys.readouterr().out


def test_export_refuses_what_half_precision_cannot_hold(loaded):
    starts = {"mu": np.full((2, 4, 32), 7e4), "action": np.zeros((2, 4, 3))}
    with pytest.raises(UserError, match=r"starts\.mu has numbers beyond 65,504"):
        export_dream.pack(*loaded, starts, 2)


def test_the_server_shows_the_page_and_scripts_and_nothing_else(tmp_path):
    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(origin + path) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code

    with served(tmp_path / "missing.bin") as url:
        origin = url.removesuffix(serve_dream.URL)
        for path in ("/", "/docs/dream/", "/docs/dream/page.js", "/02_train_vae.py", "/models/worlds.py"):
            assert status(path) == 200, path
        for path in (
            "/README.md",
            "/.git/config",
            "/models/trained/",
            "/docs/",
            "/docs/dream/../../README.md",
            "/.venv/",
        ):
            assert status(path) == 404, path
        # Where the port is taken, another one.
        with serve_dream.make_server(int(url.split(":")[2].split("/")[0]), tmp_path) as other:
            assert str(other.server_port) not in url

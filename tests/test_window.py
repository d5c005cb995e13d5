"""The window of SHOW=True on a real screen: Xvfb's."""

import os
import shutil
import subprocess
import sys
import time

from pipeline.video import enlarged
from tests.conftest import ROOT

import numpy as np
import pytest
from PIL import Image, ImageGrab


@pytest.fixture
def screen():
    """The number of a screen of 1280×800, such as ":5"."""
    if not shutil.which("Xvfb"):
        pytest.skip("Xvfb is not installed here (Debian: apt install xvfb)")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp", "-noreset"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        yield f":{server.stdout.readline().strip()}"
        server.terminate()


def show(screen: str, *command: str) -> subprocess.Popen:
    """Start Python with that screen, as a user would: nothing here has told it to do without."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SDL_")} | {"DISPLAY": screen}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": env}
    return subprocess.Popen([sys.executable, *command], **options)


def picture(screen: str, process: subprocess.Popen, seconds: float = 60) -> Image.Image:
    """What is on the screen once there is something."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        image = ImageGrab.grab(xdisplay=screen).convert("RGB")
        if len(image.getcolors(1 << 24)) > 20:
            return image
        time.sleep(0.1)
    raise AssertionError(f"nothing on the screen, exit code {process.poll()}: {process.communicate()[1][-500:]}")


def share(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 12) -> float:
    """How much of the picture has about that colour."""
    return (np.abs(np.asarray(image, int) - colour).max(-1) <= tolerance).mean()


def test_the_drive_is_shown(screen, tmp_path):
    process = show(screen, "06_visualise.py", "SHOW=True", f"DATA={tmp_path}", "MODELS=models/trained")
    try:
        image = picture(screen, process)
        assert share(image, (102, 204, 102)) > 0.05  # gym's grass …
        assert share(image, (102, 102, 102), 20) > 0.002  # … and road: little of it while the camera is high up
        assert share(image, (255, 255, 255)) > 0.03  # the labels' ground
        left, top, right, bottom = image.getbbox()
        assert right - left > 0.85 * 1280  # large enough to look at
        assert bottom - top > 300
    finally:
        process.terminate()
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130, told


POLE = """
from pipeline import video
window = video.Window("CartPole-v1", 50)
import tensorflow  # its LLVM is what Mesa would find
def play(env):
    env.reset(seed=0)
    for step in range(200):
        env.step(step % 2)
video.show_episode("CartPole-v1", play, None, window)
"""


def test_the_pole_is_shown(screen, tmp_path):
    path = tmp_path / "pole.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{POLE}")
    process = show(screen, str(path))
    try:
        image = picture(screen, process)
        assert share(image, (202, 152, 101)) > 0.001  # the pole …
        assert share(image, (255, 255, 255)) > 0.5  # … before nothing
        assert image.getbbox()[2] - image.getbbox()[0] == 1080
    finally:
        process.terminate()
        process.communicate(timeout=20)


CLOSES = """
import sys
from pipeline import video
window = video.Window("a window", 50)
from models.car_racing import CarRacing64  # turns the screen off for all that comes later
import numpy as np
import pygame
noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
for number in range(1000):
    window.show(noise)
    if number == 0:
        print(window.surface.get_size(), flush=True)
        sys.stdin.readline()
        pygame.event.post(pygame.event.Event({event}))
    if window.closed:
        break
print(number, window.closed, pygame.display.get_init())
window.show(noise)
"""


@pytest.mark.parametrize("event", ["pygame.QUIT", "pygame.KEYDOWN, key=pygame.K_ESCAPE"])
def test_the_button_and_escape_close_the_window(screen, tmp_path, event):
    path = tmp_path / "closes.py"
    path.write_text(CLOSES.format(event=event))
    env = {name: value for name, value in os.environ.items() if not name.startswith("SDL_")}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    env |= {"DISPLAY": screen, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(path)], env=env, **options) as process:
        assert process.stdout.readline() == "(1080, 720)\n"
        picture(screen, process)
        told, _ = process.communicate("\n")
    assert told == "1 True False\n"


def test_the_size_of_the_window():
    assert enlarged((696, 238), (1280, 800)) == (1152, 394)
    assert enlarged((600, 400), (1280, 800)) == (1080, 720)
    assert enlarged((600, 400), (320, 200)) == (600, 400)  # it is never made smaller

import os
import re

from models import loading
from models.recording import Recording, expect, open_loop
from models.rnn import Prediction
from pipeline import UserError, video
from pipeline.files import load_npz, save_npz
from tests.conftest import ROOT, run_script, script_module

import h5py
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

SMALL = ("MAX_STEPS=84", "MAX_DREAM_STEPS=12", "DREAMS=2", "WORKERS=1", "NUM_ENVS=2")


def module_in(folder, **constants):
    """06 as a module that thinks it lies in `folder`, constants set."""
    module = script_module("06_visualise.py")
    module.__file__ = str(folder / "06_visualise.py")
    vars(module).update(constants)
    return module


def test_pictures_and_score(untrained, tmp_path):
    random = np.random.default_rng(1)
    history = {"fitness": random.normal(size=(3, 4)), "eval_generation": np.array([2]), "eval_real": np.ones((1, 5))}
    save_npz(tmp_path / "controller.npz", **history)
    places = (f"MODELS={untrained}", f"DATA={tmp_path}")
    result = run_script("06_visualise.py", *places, *SMALL, "EPISODES=2", "BASELINE_EPISODES=1", "SHOW=True")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    if "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ:
        assert lines.pop(0).startswith("no window: ")
    assert lines[0] == f"showing your own weights, {untrained}"
    number = r"(-?\d+\.\d+)"
    actions = f"on average steering {number}, gas {number}, brake {number}"
    drove = f"track 1000: a return of {number} in 84 steps, no lap; {actions}"
    returned = float(re.fullmatch(drove, lines[1])[1])
    last = r"score over 2 tracks: -?\d+\.\d ± \d+\.\d \(gym renderer, tracks 1000–1001, at most 84 steps each\)"
    assert re.fullmatch(last, lines[-1])

    made = set(re.findall(r"\S+/(\w+\.\w+) \(", result.stdout))
    names = {"agent.gif", "expects.png", "predictions.png", "dreams.gif", "curves.png", "score.png", "score.npz"}
    assert {name for name in made if not name.endswith("mp4")} == names
    for name in names - {"score.npz"}:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
            if name.endswith("gif"):  # untrained, M ends its dreams at once
                assert picture.n_frames == 20 if name == "agent.gif" else picture.n_frames >= 1
    assert not list(tmp_path.glob(".tmp-*"))

    # The drive that was shown is the one that was scored.
    score = load_npz(tmp_path / "score.npz", "06")
    assert score["agent"].shape == (2,)
    assert score["zero"].shape == score["random"].shape == (1,)
    assert round(float(score["agent"][0]), 1) == returned


def test_the_mean_action_counts_every_step_once():
    class Did:
        def __init__(self, *action):
            self.action = np.array(action)

    episodes = [[Did(-1, 1, 0)] * 3, [Did(1, 0, 0.5)]]
    assert module_in(ROOT).mean_action(episodes) == "on average steering -0.50, gas 0.75, brake 0.12"


def test_missing_weights(tmp_path, as_script, monkeypatch):
    monkeypatch.setattr(loading, "SHIPPED", tmp_path)
    with pytest.raises(SystemExit, match=r"vae\.weights\.h5 is missing: run 02_train_vae\.py first$"):
        as_script(module_in(ROOT), f"MODELS={tmp_path / 'none'}", f"DATA={tmp_path}")


def test_memory_of_another_vision(linked, tmp_path, as_script):
    path = linked / "rnn.weights.h5"
    content = path.read_bytes()
    path.unlink()  # a link: the other tests' file stays as it is
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        file.attrs["vae"] = "0" * 16
    with pytest.raises(SystemExit, match=r"was trained on another vae .*: run 04_train_rnn.py again$"):
        as_script(module_in(ROOT), f"MODELS={linked}", f"DATA={tmp_path}")


@pytest.mark.parametrize("constant", ["EPISODES=101", "MAX_STEPS=1001", "MAX_STEPS=50", "WORKERS=0", "CONTROLLER=me"])
def test_bad_constants(tmp_path, as_script, constant):
    module = module_in(ROOT)
    with pytest.raises(SystemExit) as end:
        as_script(module, constant, f"DATA={tmp_path}", f"MODELS={tmp_path}")
    assert constant.split("=")[0] in str(end.value)


def test_shipped_weights_are_shown_while_ones_own_are_not_all_there(untrained, linked, tmp_path, capsys, monkeypatch):
    shipped = tmp_path / "trained"
    shipped.mkdir()
    monkeypatch.setattr(loading, "SHIPPED", shipped)
    needed = ("vae.weights.h5", "rnn.weights.h5")
    assert loading.choose_weights(linked, *needed) == linked
    assert capsys.readouterr().out == f"showing your own weights, {linked}\n"
    (linked / "rnn.weights.h5").unlink()
    assert loading.choose_weights(linked, *needed) == linked  # nothing is shipped: loading tells what is missing
    assert capsys.readouterr().out == ""
    for path in untrained.iterdir():
        os.link(path, shipped / path.name)
    assert loading.choose_weights(linked, *needed) == shipped
    expected = f"showing the shipped weights, models/trained: {linked} has no rnn.weights.h5 of your own\n"
    assert capsys.readouterr().out == expected


def some_recording(n=9):
    random = np.random.default_rng(2)
    z, action = random.normal(size=(n, 32)).astype(np.float32), random.uniform(0, 1, (n, 3)).astype(np.float32)
    return Recording(random.integers(0, 256, (n, 64, 64, 3), np.uint8), z, action, np.zeros(n, np.float32))


def test_open_loop_continues_from_the_real_state(loaded):
    _, rnn, _ = loaded
    recording = some_recording()
    dreamed = open_loop(rnn, recording, np.array([2, 8]), 4, 1.0, np.random.default_rng(3))
    assert dreamed.shape == (2, 5, 32)
    np.testing.assert_array_equal(dreamed[:, 0], recording.z[[2, 8]])
    # M's state is that of a whole sequence, and the noise is drawn step by step for all dreams together.
    whole = rnn(recording.z[None], recording.action[None])
    random = np.random.default_rng(3)
    uniform, normal = random.random((2, 32), np.float32), random.standard_normal((2, 32), np.float32)
    part = Prediction(*(array[:, 2] for array in whole))
    expected = rnn.sample(part, 1.0, (uniform[:1], normal[:1]))
    np.testing.assert_allclose(dreamed[0, 1], expected[0], atol=1e-4)


def test_expectation_is_the_mixture_of_numpy():
    """Of mixtures whose components lie apart, which those of an untrained M do not."""
    random = np.random.default_rng(0)
    logits, mu, log_sigma = random.normal(0, 1, (9, 32, 5)), random.normal(0, 2, (9, 32, 5)), np.full((9, 32, 5), -1.0)
    parts = [tf.constant(part[None]) for part in (logits, mu, log_sigma, np.zeros(9), np.zeros(9))]
    expected = expect(lambda z, action: Prediction(*parts), some_recording())
    component = np.argmax(logits[3] + random.gumbel(size=(20_000, 32, 5)), -1)[..., None]
    mean = np.take_along_axis(mu[3][None], component, -1)[..., 0]
    z = mean + np.exp(-1.0) * random.normal(size=mean.shape)
    np.testing.assert_allclose(expected.mean[3], z.mean(0), atol=5 * z.std() / 20_000**0.5)
    np.testing.assert_allclose(expected.variance[3], z.var(0), rtol=0.1)


def test_the_score_is_the_mean_and_the_standard_deviation():
    module = module_in(ROOT)
    returns = {"agent": np.array([900.0, 100.0, 920.0]), "zero": np.array([-30.0])}
    lines = module.score_lines(np.array([1000, 1001, 1002]), returns)
    assert lines[-1] == "score over 3 tracks: 640.0 ± 381.9 (gym renderer, tracks 1000–1002)"
    assert lines[-2] == "worst: track 1001 (100.0), track 1000 (900.0), track 1002 (920.0)"
    assert lines[1].split() == ["controller", "3", "640.0", "±", "381.9", "100.0", "920.0"]


def test_a_dreamer_has_files_of_its_own():
    module = module_in(ROOT, CONTROLLER="dream_controller", DATA="d")
    assert str(module.output_path("agent.gif")) == "d/dream_controller_agent.gif"


def test_a_history_that_is_none(tmp_path):
    module = module_in(tmp_path, DATA=str(tmp_path), MODELS=str(tmp_path))
    save_npz(tmp_path / "controller.npz", something=np.zeros(3))
    with pytest.raises(UserError, match="not the history of a run: delete it and run 05_train_controller"):
        module.draw_curves(tmp_path)


def test_no_history(tmp_path, capsys):
    module_in(tmp_path, DATA=str(tmp_path), MODELS=str(tmp_path)).draw_curves(tmp_path)
    assert "controller.npz" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.png"))


def test_gif_keeps_colours_and_time(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    frames = []
    for x in range(10):
        frame = np.full((64, 80, 3), (100, 202, 100), np.uint8)
        frame += np.random.default_rng(x).integers(0, 6, frame.shape, np.uint8)  # V's grass flickers a little
        frame[30:34, 5 * x : 5 * x + 4] = (204, 0, 0)
        frames.append(frame)
    (path,) = video.moving(tmp_path / "a.gif", frames, 12.5)
    with Image.open(path) as film:
        assert film.n_frames == 10
        for x, frame in enumerate(frames):
            film.seek(x)
            assert film.info["duration"] == 80
            shown = np.array(film.convert("RGB")).astype(int)
            assert np.abs(shown - frame).max() <= 2 * video.FLICKER
            assert np.abs(shown[31, 5 * x + 1] - (204, 0, 0)).max() <= 4


def test_an_ffmpeg_that_fails_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\ncat >/dev/null\necho 'no such codec' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    paths = video.moving(tmp_path / "a.gif", [np.zeros((64, 64, 3), np.uint8)] * 2, 12.5)
    assert paths == [tmp_path / "a.gif"]
    assert capsys.readouterr().out == f"{tmp_path / 'a.mp4'} was not made: ffmpeg says no such codec\n"

"""01, 05 and 07 as a user runs them, with constants so small that each takes seconds."""

from models import worlds
from models.car_racing import CarRacing64
from models.tracks import ROLLOUT_TRACKS
from pipeline import rollouts
from pipeline.files import load_npz, save_npz
from tests.conftest import refused, run_script, script_module

import numpy as np
import pytest

GENERATE, EVOLVE, DREAM = "01_generate_data.py", "05_train_controller.py", "07_dream_train.py"


@pytest.fixture(scope="module")
def generate():
    return script_module(GENERATE)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("rollouts/*.npz")}


def test_01_adds_what_is_missing_and_keeps_what_is_there(tmp_path, generate):
    data = tmp_path / "data"
    options = ("MAX_STEPS=25", f"DATA={data}", f"MODELS={tmp_path / 'models'}")
    first = run_script(GENERATE, "ROLLOUTS=3", "WORKERS=1", *options)
    assert (first.returncode, first.stderr) == (0, "")
    assert "3 of 3 rollouts to make" in first.stdout
    assert (data / "rollouts.png").exists()
    made = contents(data)
    assert sorted(made) == [f"rollout-100000{i}.npz" for i in range(3)]

    damaged = data / "rollouts" / "rollout-1000001.npz"
    damaged.write_bytes(b"")
    kept = data / "rollouts" / "rollout-1000000.npz"
    save_npz(kept, **rollouts.read(kept))  # the same arrays in other bytes
    bytes_of_kept = kept.read_bytes()
    second = run_script(GENERATE, "ROLLOUTS=5", "WORKERS=2", *options)
    assert (second.returncode, second.stderr) == (0, "")
    assert f"{damaged} is damaged and is made again." in second.stdout
    assert "3 of 5 rollouts to make" in second.stdout
    after = contents(data)
    assert len(after) == 5
    assert kept.read_bytes() == bytes_of_kept
    assert after[damaged.name] == made[damaged.name]  # the same seed, the same bytes, whichever worker
    assert after["rollout-1000002.npz"] == made["rollout-1000002.npz"]
    assert not list(data.rglob(".tmp-*"))

    third = run_script(GENERATE, "ROLLOUTS=5", *options)
    assert third.returncode == 0
    assert "has all 5 of these rollouts; ROLLOUTS=10 would add as many again" in third.stdout
    env = CarRacing64("fast")
    for seed in ROLLOUT_TRACKS[1:5]:
        found = rollouts.read(data / "rollouts" / f"rollout-{seed}.npz")
        for name, array in generate.random_rollout(env, seed, 25).items():
            np.testing.assert_array_equal(found[name], array)


def test_random_rollouts_are_what_02_and_04_read(generate):
    """Played again from its actions, a rollout is the game's own; done means left the field, never the frame limit."""
    env, kinds = CarRacing64("fast"), set()
    for seed in range(1_000_000, 1_000_020):
        rollout = generate.random_rollout(env, seed, 80)
        rollouts.check(rollout)
        frames = len(rollout["done"])
        assert frames <= 80
        assert not rollout["done"][:-1].any()
        assert rollout["done"].any() == (rollout["reward"] <= -90).any()
        assert (rollout["action"].min(0) >= (-1, 0, 0)).all()
        assert (rollout["action"].max(0) <= 1).all()
        env.reset(seed=seed)
        started = np.abs(rollout["obs"][0].astype(int) - env.state).mean() < 1
        kinds.add("start" if started else "moved")
        if started:
            for t, action in enumerate(rollout["action"]):
                frame, reward, *_ = env.step(action)
                np.testing.assert_array_equal(frame, rollout["obs"][t + 1])
                assert rollout["reward"][t] == np.float32(reward)
    assert kinds == {"start", "moved"}


def test_01_some_leave_the_field(generate, monkeypatch):
    monkeypatch.setattr(generate, "LEAVE_SHARE", 1.0)
    env = CarRacing64("fast")
    ends = [generate.random_rollout(env, seed, 300)["done"][-1] for seed in range(1_000_000, 1_000_008)]
    assert np.mean(ends) >= 0.25


def test_01_with_a_controller(tmp_path, untrained):
    data, options = (
        tmp_path / "data",
        ("POLICY=controller", "WORKERS=1", "MAX_STEPS=12", "NUM_ENVS=4", f"MODELS={untrained}"),
    )
    result = run_script(GENERATE, *options, f"DATA={data}", "ROLLOUTS=6", "FIRST_ROLLOUT=10")
    assert (result.returncode, result.stderr) == (0, "")
    made = contents(data)
    assert sorted(made) == [f"rollout-10000{i}.npz" for i in range(10, 16)]
    env = CarRacing64("fast")
    for name in made:
        rollout = rollouts.read(data / "rollouts" / name)
        assert len(rollout["done"]) == 12
        assert not rollout["done"].any()
        frame, _ = env.reset(seed=int(name[8:-4]))
        for t, action in enumerate(rollout["action"]):
            np.testing.assert_array_equal(frame, rollout["obs"][t])
            frame, reward, *_ = env.step(action)
            assert rollout["reward"][t] == np.float32(reward)
        np.testing.assert_array_equal(frame, rollout["obs"][-1])


SMALL = (
    "GENERATIONS=2",
    "POPULATION=4",
    "EVAL_EVERY=1",
    "EVAL_EPISODES=2",
    "WORKERS=1",
    "NUM_ENVS=4",
    "MAX_IDLE_STEPS=8",
)


def test_05_evolves(tmp_path, linked):
    (linked / "controller.weights.h5").unlink()
    result = run_script(EVOLVE, *SMALL, "EPISODES=1", f"MODELS={linked}", f"DATA={tmp_path}")
    assert (result.returncode, result.stderr) == (0, "")
    assert "generation 2/2  best " in result.stdout
    record = load_npz(tmp_path / "controller.npz", "")
    assert record["fitness"].shape == (2, 4)
    assert record["eval_real"].shape == (2, 2)
    assert (tmp_path / "controller.png").exists()
    assert worlds.load(linked)[2].any()


def test_07_dreams(tmp_path, linked, as_script, capsys):
    (linked / "dream_controller.weights.h5").unlink()
    more = "EPISODES=2", "HARD_TRACKS=1", "DREAM_ENVS=8", "MAX_DREAM_STEPS=6", f"MODELS={linked}", f"DATA={tmp_path}"
    as_script(script_module(DREAM), *SMALL, *more)
    assert "generation 2/2  best " in capsys.readouterr().out
    record = load_npz(tmp_path / "dream_controller.npz", "")
    assert record["fitness"].shape == (2, 4)
    assert record["eval_real"].shape == record["eval_dream"].shape == (2, 2)
    assert (tmp_path / "dream_controller.png").exists()
    assert worlds.load(linked, "dream_controller")[2].any()


def test_05_goes_on_from_the_dreamer(tmp_path, linked, as_script, capsys):
    dreamer = worlds.load(linked, "dream_controller")[2]
    (linked / "controller.weights.h5").unlink()
    more = "EPISODES=1", "INIT_FROM=dream_controller", f"MODELS={linked}", f"DATA={tmp_path}"
    as_script(script_module(EVOLVE), *SMALL, *more)
    assert "starting from the dream controller:  real " in capsys.readouterr().out
    record = load_npz(tmp_path / "controller.npz", "")
    np.testing.assert_array_equal(record["x0"], dreamer)
    assert record["eval_generation"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("script", [EVOLVE, DREAM])
def test_nothing_to_learn_with(tmp_path, linked, as_script, script):
    module = script_module(script)
    for name, cure in (("rnn", "04_train_rnn.py"), ("vae", "02_train_vae.py")):
        (linked / f"{name}.weights.h5").unlink()
        with pytest.raises(SystemExit) as end:
            as_script(module, f"MODELS={linked}", f"DATA={tmp_path}")
        line = f"{script}: {linked / name}.weights.h5 is missing: run {cure} first"
        assert end.value.code == line


def test_07_without_starts(tmp_path, linked, as_script):
    (linked / "dream_starts.npz").unlink()
    with pytest.raises(SystemExit) as end:
        as_script(script_module(DREAM), f"MODELS={linked}", f"DATA={tmp_path}")
    assert end.value.code == f"{DREAM}: {linked / 'dream_starts.npz'} is missing: run 03_series.py first"


def test_01_with_a_controller_that_is_not_there(tmp_path, linked, as_script):
    (linked / "controller.weights.h5").unlink()
    module = script_module(GENERATE)
    with pytest.raises(SystemExit) as end:
        as_script(module, "POLICY=controller", f"MODELS={linked}", f"DATA={tmp_path}")
    path = linked / "controller.weights.h5"
    assert end.value.code == f"{GENERATE}: {path} is missing: run 05_train_controller.py first"


BAD = [
    (GENERATE, "ROLLOUTS=0", "ROLLOUTS=0 must be above 0"),
    (GENERATE, "MAX_STEPS=-1", "MAX_STEPS=-1 must be above 0"),
    (GENERATE, "WORKERS=0", "WORKERS=0 must be above 0"),
    (GENERATE, "MAX_ACTION_REPEAT=0", "MAX_ACTION_REPEAT=0 must be above 0"),
    (GENERATE, "POLICY=dream", "POLICY=dream must be one of random, controller"),
    (GENERATE, "CONTROLLER=best", "must be one of controller, dream_controller"),
    (GENERATE, "LEAVE_SHARE=0.7", "MOVING_START_SHARE and LEAVE_SHARE are shares of the rollouts"),
    (GENERATE, "FIRST_ROLLOUT=99_000", "a SEED has 100,000 tracks"),
    (GENERATE, "SEED=11", "SEED can be 10 at most"),
    (GENERATE, "START_SPEEDS=(5,)", "START_SPEEDS=(5,) must be two numbers"),
    (GENERATE, "START_SPEEDS=(50,10)", "the lower one first"),
    (GENERATE, "ACTION_NOISE=()", "ACTION_NOISE must not be empty"),
    (EVOLVE, "POPULATION=3", "POPULATION must be at least 4"),
    (EVOLVE, "EPISODES=0", "EPISODES=0 must be above 0"),
    (EVOLVE, "SIGMA=0", "SIGMA=0.0 must be above 0"),
    (EVOLVE, "SEED=-1", "SEED=-1 must be at least 0"),
    (EVOLVE, "SEED=100_000", "SEED, GENERATIONS or EPISODES is too large"),
    (EVOLVE, "EVAL_EPISODES=101", "EVAL_EPISODES can be 100 at most"),
    (EVOLVE, "FEATURES=h", "FEATURES=h must be one of zh, z"),
    (EVOLVE, "INIT_FROM=best", "INIT_FROM=best must be one of zero, dream_controller, controller"),
    (DREAM, "TEMPERATURE=0", "TEMPERATURE=0.0 must be above 0"),
    (DREAM, "DREAM_ENVS=1.5", "DREAM_ENVS=1.5: expected something such as"),
    (DREAM, "POPULATION=2", "POPULATION must be at least 4"),
]


@pytest.mark.parametrize(("script", "argument", "told"), BAD)
def test_a_bad_constant_is_one_line(tmp_path, monkeypatch, script, argument, told):
    """In this process, but as by `python script NAME=value`."""
    import runpy
    import signal
    import sys

    from tests.conftest import ROOT

    old = signal.getsignal(signal.SIGTERM)
    folders = f"DATA={tmp_path / 'data'}", f"MODELS={tmp_path / 'models'}"
    monkeypatch.setattr(sys, "argv", [script, argument, *folders])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    signal.signal(signal.SIGTERM, old)
    assert end.value.code.startswith(f"{script}: ")
    assert told in end.value.code
    assert "\n" not in end.value.code


def test_a_folder_that_cant_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(run_script(EVOLVE, f"DATA={tmp_path / 'file'}", f"MODELS={tmp_path}"))
    assert "can't be used as a folder" in line

"""02, 03 and 04 end to end on a few short drives of the real game: what they write, refuse and survive."""

import contextlib
import io
import json
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline import UserError, rollouts
from pipeline.files import load_npz, save_npz

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TINY = {
    "02_train_vae.py": ["EPOCHS=2", "FRAMES_PER_EPOCH=32", "BATCH_SIZE=8", "SHUFFLE_BUFFER=16", "VALIDATION_FRAMES=8"],
    "03_series.py": ["DREAM_STARTS=16"],
    "04_train_rnn.py": ["EPOCHS=2", "FRAMES_PER_EPOCH=200", "BATCH_SIZE=4", "SEQUENCE_LENGTH=20"],
}


def run(script, folder, *constants):
    """Run a script in this process (TensorFlow is loaded once): its exit code and what it printed, or its one line."""
    arguments = [script, f"DATA={folder / 'data'}", f"MODELS={folder / 'models'}", *TINY[script], *constants]
    output, before, handler = io.StringIO(), sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = arguments
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return 0, output.getvalue()
    except SystemExit as end:
        if not isinstance(end.code, str) or "\n" in end.code:
            raise AssertionError(f"not one line: {end.code!r}") from None
        return 1, output.getvalue() + end.code
    finally:
        sys.argv = before
        signal.signal(signal.SIGTERM, handler)


def history(folder, name):
    with np.load(folder / "models" / f"{name}.checkpoint.npz", allow_pickle=False) as file:
        return json.loads(str(file["history"]))


@pytest.fixture(scope="session")
def drives():
    """Six drives of 24 frames (one of 30) on the real game, as 01 writes them: name to arrays."""
    from models.car_racing import CarRacing64

    game, result = CarRacing64("fast"), {}
    for seed in range(1_000_000, 1_000_006):
        random = np.random.default_rng(seed)
        frames, rewards = [game.reset(seed=seed)[0]], []
        actions = random.uniform((-1, 0, 0), (1, 1, 0.2), (30 if seed == 1_000_002 else 24, 3)).astype(np.float32)
        for action in actions:
            frame, reward, *_ = game.step(action)
            frames.append(frame)
            rewards.append(reward)
        done = np.zeros(len(actions), bool)
        done[-1] = seed == 1_000_003
        result[f"rollout-{seed}.npz"] = {
            "obs": np.array(frames),
            "action": actions,
            "reward": np.array(rewards, np.float32),
            "done": done,
        }
    return result


@pytest.fixture(scope="session")
def trained(drives, tmp_path_factory):
    """A folder in which 02, 03 and 04 have run to their ends, and what they printed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data" / "rollouts").mkdir(parents=True)
    for name, arrays in drives.items():
        save_npz(folder / "data" / "rollouts" / name, level=1, **arrays)
    (folder / "data" / "rollouts" / ".tmp-rollout-7.npz").write_bytes(b"left behind by a killed run")
    printed = {}
    for script in TINY:
        code, printed[script] = run(script, folder)
        assert code == 0, printed[script]
    return folder, printed


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of that folder to spoil."""
    shutil.copytree(trained[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_they_write_what_they_say(trained):
    folder, printed = trained
    for name in ("vae_loss", "vae_reconstructions", "vae_latents", "rnn_loss", "rnn_dream"):
        assert (folder / "data" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in printed["04_train_rnn.py" if name.startswith("rnn") else "02_train_vae.py"]
    assert not list(folder.rglob(".tmp-*.h5")) + list((folder / "data").glob(".tmp-*"))
    assert "active latents" in printed["02_train_vae.py"]
    for yardstick in ("persistence", "linear regression", "M  ", "entropy of V's posterior"):
        assert yardstick in printed["04_train_rnn.py"]
    assert [entry["epoch"] for entry in history(folder, "vae")] == [1, 2]
    assert (folder / "models" / "vae.weights.h5").stat().st_size < 18e6  # without the optimizer


@pytest.mark.parametrize(("name", "first", "decay"), [("vae", 1e-3, 0.95), ("rnn", 2e-3, 0.94)])
def test_the_learning_rate_decays_from_epoch_to_epoch(trained, name, first, decay):
    found = [entry["learning_rate"] for entry in history(trained[0], name)]
    assert found == pytest.approx([first, first * decay], rel=1e-6)


def test_the_held_out_rollout_is_never_trained_on(trained, drives):
    """There is one of the six; what 02 and 04 learn from are the other five."""
    assert len(rollouts.held_out(drives)) == 1
    for script in ("02_train_vae.py", "04_train_rnn.py"):
        assert "5 rollouts to learn from, 1 held out" in trained[1][script]


def test_less_noise_in_z_lowers_its_floor(trained, copy):
    def floor(printed):
        return float(printed.partition("entropy of V's posterior")[2].split()[0])

    (copy / "models" / "rnn.checkpoint.npz").unlink()
    code, printed = run("04_train_rnn.py", copy, "EPOCHS=1", "Z_NOISE=0.5")
    assert code == 0
    assert floor(printed) == pytest.approx(floor(trained[1]["04_train_rnn.py"]) + np.log(0.5 / 0.25), abs=0.002)


def test_series_holds_every_frame_once(trained, drives):
    folder, _ = trained
    series = load_npz(folder / "data" / "series.npz", "03_series.py")
    assert list(series["names"]) == sorted(drives)
    assert series["lengths"].tolist() == [24, 24, 30, 24, 24, 24]
    assert {name: str(array.dtype) for name, array in series.items() if name not in ("names", "vae")} == {
        "mu": "float16",
        "logvar": "float16",
        "action": "float16",
        "reward": "float32",
        "done": "bool",
        "lengths": "int32",
    }
    assert len(series["mu"]) == 6 * 25 + 6
    first = 25 + 25  # the third drive's
    third = drives["rollout-1000002.npz"]
    np.testing.assert_allclose(series["action"][first : first + 30], third["action"], atol=1e-3)
    np.testing.assert_array_equal(series["reward"][first : first + 31], [*third["reward"], 0])
    assert np.flatnonzero(series["done"]).tolist() == [first + 31 + 23]

    from models import weights
    from models.vae import VAE

    vae = VAE()
    weights.load(folder / "models" / "vae.weights.h5", vae)
    assert str(series["vae"]) == weights.fingerprint(vae.get_weights())
    mu, logvar = vae.encode(np.resize(third["obs"], (64, 64, 64, 3)))
    np.testing.assert_allclose(series["mu"][first : first + 31], mu[:31], atol=0.01)
    np.testing.assert_allclose(series["logvar"][first : first + 31], logvar[:31], atol=0.01)

    starts = load_npz(folder / "models" / "dream_starts.npz", "03_series.py")
    assert starts["mu"].shape == starts["logvar"].shape == (16, 16, 32)
    assert starts["action"].shape == (16, 16, 3)
    rows = {series["action"][row : row + 16].tobytes(): row for row in range(len(series["mu"]) - 15)}
    places = [rows[window.tobytes()] for window in starts["action"]]
    drive_starts = np.cumsum([0, 25, 25, 31, 25, 25])
    for place in places:  # in one drive, each frame with an action, and on the road
        begin = drive_starts[drive_starts <= place][-1]
        end = begin + series["lengths"][drive_starts.tolist().index(begin)]
        assert place + 15 < end
        assert series["reward"][place : min(place + 48, end)].sum() > 0
    assert set(places) & set(drive_starts)


@pytest.mark.parametrize(("script", "name"), [("02_train_vae.py", "vae"), ("04_train_rnn.py", "rnn")])
def test_a_run_in_two_parts_equals_one(trained, copy, script, name):
    for path in (copy / "models").glob(f"{name}.*"):
        path.unlink()
    assert run(script, copy, "EPOCHS=1")[0] == 0
    code, printed = run(script, copy)
    assert code == 0
    assert "1 of 2 epochs done" in printed
    assert history(copy, name) == history(trained[0], name)
    with (
        np.load(copy / "models" / f"{name}.checkpoint.npz") as one,
        np.load(trained[0] / "models" / f"{name}.checkpoint.npz") as other,
    ):
        for array in one.files:
            np.testing.assert_array_equal(one[array], other[array], err_msg=array)


@pytest.mark.parametrize(("script", "name"), [("02_train_vae.py", "vae"), ("04_train_rnn.py", "rnn")])
def test_finished_changed_and_going_on(copy, script, name):
    before = history(copy, name)
    code, printed = run(script, copy)
    assert code == 0
    assert "EPOCHS=4 trains it further" in printed
    assert history(copy, name) == before

    code, printed = run(script, copy, "LEARNING_RATE=0.01", "SEED=5")
    assert code == 1
    for part in ("LEARNING_RATE: 0.00", "→ 0.01", "SEED: 1 → 5", "FINE_TUNE=True"):
        assert part in printed
    assert "BATCH_SIZE" not in printed

    code, printed = run(script, copy, "LEARNING_RATE=0.00001", "FINE_TUNE=True", "EPOCHS=1")
    assert code == 0
    assert [entry["epoch"] for entry in history(copy, name)] == [0, 1]
    best = min(entry["val_loss"] for entry in before)
    assert history(copy, name)[0]["val_loss"] == pytest.approx(best, rel=1e-5)  # it began with the best weights
    none_better = history(copy, name)[0]["val_loss"] <= history(copy, name)[1]["val_loss"]
    assert ("no epoch was better" in printed) == none_better


@pytest.mark.parametrize("script", ["02_train_vae.py", "04_train_rnn.py"])
def test_any_seed(copy, script):
    """Keras and NumPy's old generator take 32 bits only."""
    code, printed = run(script, copy, "SEED=4294967296", "FINE_TUNE=True", "EPOCHS=1")
    assert code == 0, printed


def test_missing_input_is_one_line_that_names_the_script(copy):
    series = copy / "data" / "series.npz"
    series.unlink()
    assert "run 03_series.py first" in run("04_train_rnn.py", copy)[1]
    (copy / "models" / "vae.weights.h5").unlink()
    code, printed = run("03_series.py", copy)
    assert code == 1
    assert "run 02_train_vae.py first" in printed
    shutil.rmtree(copy / "data" / "rollouts")
    for script in ("02_train_vae.py", "03_series.py"):
        code, printed = run(script, copy)
        assert code == 1
        assert "run 01_generate_data.py first" in printed


def test_another_v_is_refused(copy):
    from models import weights
    from models.vae import VAE

    weights.save(copy / "models" / "vae.weights.h5", VAE())
    code, printed = run("04_train_rnn.py", copy)
    assert code == 1
    assert "another V" in printed
    assert "03_series.py" in printed
    assert run("03_series.py", copy)[0] == 0
    code, printed = run("04_train_rnn.py", copy)  # the checkpoint is of the old series
    assert code == 1
    assert "rnn.checkpoint.npz belongs to an earlier V: delete it" in printed


@pytest.mark.parametrize("script", ["02_train_vae.py", "04_train_rnn.py"])
def test_a_loss_gone_bad_keeps_the_last_good_weights(copy, script):
    name = "vae" if script.startswith("02") else "rnn"
    weights = copy / "models" / f"{name}.weights.h5"
    before = weights.read_bytes()
    code, printed = run(script, copy, "LEARNING_RATE=1e30", "FINE_TUNE=True", "FRAMES_PER_EPOCH=800")
    assert code == 1
    assert " at step " in printed
    assert "last good weights are kept" in printed
    assert weights.read_bytes() == before


def spoil(path, how, drives):
    arrays = dict(drives[path.name])
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-2_000])
    elif how == "one byte changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif how == "text":
        path.write_text("hello")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "pickle":
        np.savez(path, **arrays | {"reward": np.array([{"not": "a number"}] * 24, object)})
    else:
        name, value = {
            "no done": ("done", None),
            "obs float": ("obs", arrays["obs"].astype(np.float32)),
            "obs 96×96": ("obs", np.zeros((25, 96, 96, 3), np.uint8)),
            "action float64": ("action", arrays["action"].astype(np.float64)),
            "actions of two": ("action", arrays["action"][:, :2]),
            "reward missing one": ("reward", arrays["reward"][:-1]),
            "reward infinite": ("reward", np.full(24, np.inf, np.float32)),
            "action not a number": ("action", np.full((24, 3), np.nan, np.float32)),
            "done of numbers": ("done", np.zeros(24, np.int64)),
            "no frames": ("obs", arrays["obs"][:1]),
        }[how]
        arrays[name] = value
        if how == "no frames":
            arrays |= {name: arrays[name][:0] for name in ("action", "reward", "done")}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


SPOILT = [
    *("empty", "truncated", "one byte changed", "text", "folder", "pickle", "no done", "obs float", "obs 96×96"),
    *("action float64", "actions of two", "reward missing one", "reward infinite", "action not a number"),
    *("done of numbers", "no frames"),
]


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_rollout_is_refused_in_one_line(drives, tmp_path, how):
    path = tmp_path / "rollout-1000000.npz"
    save_npz(path, level=1, **drives[path.name])
    rollouts.read(path)
    assert rollouts.length(path) == 25
    spoil(path, how, drives)
    with pytest.raises(UserError, match=r"rollout-1000000\.npz") as error:
        rollouts.read(path)
    assert "\n" not in str(error.value)
    assert "01_generate_data.py" in str(error.value)
    rollouts.length(path)  # whatever it says, it doesn't raise


def test_damaged_rollouts_are_named_and_left_out(copy, drives):
    # One that lies about its length, one that can't be opened; neither is the held-out one.
    held_out = rollouts.held_out(drives)
    spoilt = [name for name in drives if name not in held_out][:2]
    for name, how in zip(spoilt, ("truncated", "reward infinite")):
        spoil(copy / "data" / "rollouts" / name, how, drives)
    code, printed = run("03_series.py", copy)
    assert code == 0
    assert [name for name in drives if name in printed] == spoilt
    series = load_npz(copy / "data" / "series.npz", "03")
    assert list(series["names"]) == [name for name in drives if name not in spoilt]
    assert len(series["mu"]) == (series["lengths"] + 1).sum()
    (copy / "models" / "vae.checkpoint.npz").unlink()
    code, printed = run("02_train_vae.py", copy)
    assert code == 0
    assert [printed.count(f"{name} ") for name in spoilt] == [1, 1]  # once, however many epochs


def test_held_out_rollouts_depend_on_their_names_alone():
    names = [f"rollout-{seed}.npz" for seed in range(1_000_000, 1_002_000)]
    held_out = rollouts.held_out(names)
    assert 70 < len(held_out) < 130
    assert rollouts.held_out(names[::-1]) == held_out
    assert rollouts.held_out(names[:500]) == held_out & set(names[:500])
    assert len(rollouts.held_out(names[:2])) == 1


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("series", "truncated"),
        ("series", "empty"),
        ("series", "pickle"),
        ("series", "rows"),
        ("series", "missing"),
        ("series", "nan"),
        ("vae.checkpoint", "truncated"),
        ("vae.checkpoint", "empty"),
        ("vae.checkpoint", "other model"),
        ("vae.checkpoint", "nan"),
        ("vae.weights", "truncated"),
        ("vae.weights", "other model"),
    ],
)
def test_other_damaged_files_are_one_line(copy, name, how):
    path = copy / ("data/series.npz" if name == "series" else f"models/{name}")
    if name == "vae.weights":
        path = path.with_suffix(".weights.h5")
    elif name != "series":
        path = path.with_suffix(".checkpoint.npz")
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "other model":
        shutil.copy(path.with_name(path.name.replace("vae", "rnn")), path)
    else:
        arrays = load_npz(path, "x")
        if how == "pickle":
            arrays["lengths"] = np.array([{}] * 6, object)
        elif how == "rows":
            arrays["mu"] = arrays["mu"][:-1]
        elif how == "missing":
            del arrays["logvar"]
        else:
            bad = "mu" if name == "series" else "optimizer_03"
            arrays[bad] = np.full_like(arrays[bad], np.nan)
        np.savez(path, **arrays)
    script = "04_train_rnn.py" if name == "series" else "03_series.py" if name == "vae.weights" else "02_train_vae.py"
    code, printed = run(script, copy)
    assert code == 1
    assert path.name in printed


@pytest.mark.parametrize(("script", "name"), [("02_train_vae.py", "vae"), ("04_train_rnn.py", "rnn")])
def test_a_full_disk_leaves_the_old_files_whole(copy, script, name):
    files = {path: path.read_bytes() for path in (copy / "models").glob(f"{name}*")}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        code, printed = run(script, copy, "EPOCHS=20", "LEARNING_RATE=0.0001", "FINE_TUNE=True")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 1
    assert "no room to write" in printed
    for path, content in files.items():
        assert path.read_bytes() == content
    assert not list((copy / "models").glob(".tmp-*"))


def test_ctrl_c_says_how_to_go_on(copy):
    """In a process of its own, since it ends without Python's clean-up."""
    (copy / "models" / "vae.checkpoint.npz").unlink()
    constants = [*TINY["02_train_vae.py"], f"DATA={copy / 'data'}", f"MODELS={copy / 'models'}", "EPOCHS=1000"]
    with open(copy / "printed", "w+") as output:
        process = subprocess.Popen(
            [sys.executable, "02_train_vae.py", *constants], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 60
        while not (copy / "models" / "vae.checkpoint.npz").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        output.seek(0)
        printed = output.read()
    assert "Traceback" not in printed
    assert "continues from what is saved" in printed
    done = len(history(copy, "vae"))
    code, printed = run("02_train_vae.py", copy, f"EPOCHS={done + 1}")
    assert code == 0
    assert f"{done} of {done + 1} epochs done" in printed

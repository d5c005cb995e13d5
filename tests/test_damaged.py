"""Damaged and foreign files: each is one line that names the file and the cure, or is left out by name. Never used."""

import os
import pickle
import zipfile
from pathlib import Path

from models import history, loading, weights
from models.rnn import MDNRNN
from models.vae import VAE
from pipeline import UserError, environment, rollouts
from pipeline.files import load_npz, save_npz
from pipeline.training import ResumableTraining

import h5py
import numpy as np
import pytest


class Trap:
    """Pickled, it makes a file when it is loaded: so much for code in data."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def objects(path):
    """An array of pickled objects, as NumPy itself would write it."""
    name = "obs" if path.name.startswith("rollout") else "mu"
    np.savez(path, **{name: np.array([Trap(path.parent / "sprung")], object)})


def pickled(path):
    path.write_bytes(pickle.dumps(Trap(path.parent / "sprung")))


def pickle_in_a_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("obs.npy", pickle.dumps(Trap(path.parent / "sprung")))
        archive.writestr("vae.npy", pickle.dumps(Trap(path.parent / "sprung")))


def truncated(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) * 2 // 3])


def flipped(path):
    """One bit is another, in the middle of the data."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.unlink()
    path.write_bytes(content)


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_huge_header(path):
    """It says that it holds more numbers than any memory."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("obs", "mu", "vae", "fitness", "constants"):
            header = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)}
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(file, header)


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def one_array(path):
    with open(path, "wb") as file:
        np.save(file, np.arange(5))


NPZ = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncated,
    "flipped": flipped,
    "text": lambda path: path.write_text("<html>404</html>"),
    "a folder": a_folder,
    "objects": objects,
    "pickled": pickled,
    "pickle in a zip": pickle_in_a_zip,
    "huge header": a_huge_header,
    "other zip": other_zip,
    "one array": one_array,
    "other arrays": lambda path: np.savez(path, x=np.arange(5), vae=np.array("0123")),
}


def one_line(error, path, cure) -> None:
    line = str(error.value)
    assert "\n" not in line
    assert path.name in line
    assert cure in line
    assert not (path.parent / "sprung").exists()


def changed(path, **arrays):
    """The same file with some arrays others; None takes one away."""
    found = load_npz(path, "") | arrays
    save_npz(path, **{name: array for name, array in found.items() if array is not None})


@pytest.fixture
def rollout(some_rollouts, tmp_path):
    path = tmp_path / "rollout-1000000.npz"
    path.write_bytes((some_rollouts / path.name).read_bytes())
    return path


@pytest.mark.parametrize("kind", NPZ)
def test_a_damaged_rollout(rollout, kind, capsys):
    NPZ[kind](rollout)
    with pytest.raises(UserError) as error:
        rollouts.read(rollout)
    one_line(error, rollout, "run 01_generate_data.py")
    skipped = set()
    assert list(rollouts.read_all([rollout, rollout], skipped)) == []
    assert skipped == {rollout}
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1  # named once
    assert rollout.name in told[0]
    if kind not in ("flipped", "huge header", "objects"):  # there the header is whole
        assert rollouts.length(rollout) == 0


LENGTH = 30


@pytest.mark.parametrize(
    "arrays",
    [
        {"obs": None},
        {"done": None},
        {"obs": np.zeros((LENGTH + 1, 96, 96, 3), np.uint8)},
        {"obs": np.zeros((LENGTH + 1, 64, 64, 3), np.float32)},
        {"obs": np.zeros((LENGTH, 64, 64, 3), np.uint8)},
        {"obs": np.array(1, np.uint8)},
        {"action": np.zeros((LENGTH, 2), np.float32)},
        {"action": np.zeros((LENGTH, 3), np.float64)},
        {"action": np.full((LENGTH, 3), np.nan, np.float32)},
        {"reward": np.full(LENGTH, np.inf, np.float32)},
        {"reward": np.zeros(LENGTH + 1, np.float32)},
        {"done": np.zeros(LENGTH, np.int64)},
        {"action": np.array(["a"] * LENGTH)},
        {"obs": np.zeros((1, 64, 64, 3), np.uint8), "action": np.zeros((0, 3), np.float32)}
        | {"reward": np.zeros(0, np.float32), "done": np.zeros(0, bool)},
    ],
    ids=lambda arrays: " ".join(
        f"{name} {array if array is None else f'{array.dtype}{array.shape}'}" for name, array in arrays.items()
    ),
)
def test_a_rollout_of_wrong_arrays(some_rollouts, tmp_path, arrays):
    path = tmp_path / "rollout-1.npz"
    whole = next(path for path in some_rollouts.iterdir() if rollouts.length(path) == LENGTH + 1)
    path.write_bytes(whole.read_bytes())
    rollouts.read(path)
    changed(path, **arrays)
    with pytest.raises(UserError, match="is not a valid rollout file") as error:
        rollouts.read(path)
    one_line(error, path, "Delete it and run 01_generate_data.py")


def test_too_few_rollouts(tmp_path):
    with pytest.raises(UserError, match=r"holds 0 rollouts.*run 01_generate_data.py first"):
        rollouts.find(tmp_path)


@pytest.mark.parametrize("kind", NPZ)
def test_damaged_starts_of_dreams(linked, loaded, kind):
    path = linked / "dream_starts.npz"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # no link any more
    NPZ[kind](path)
    with pytest.raises(UserError) as error:
        loading.load_starts(linked, loaded[0])
    one_line(error, path, "run 03_series.py")


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": None},
        {"action": None},
        {"mu": np.zeros((6, 4, 31), np.float16)},
        {"mu": np.zeros((6, 3, 32), np.float16)},
        {"mu": np.zeros((6, 4, 32), np.int32)},
        {"mu": np.full((6, 4, 32), np.nan, np.float16)},
        {"action": np.zeros((6, 4, 3), "U3")},
        {"mu": np.zeros((0, 4, 32)), "action": np.zeros((0, 4, 3))},
        {"mu": np.zeros((6, 32)), "action": np.zeros((6, 3))},
    ],
)
def test_starts_of_wrong_arrays(linked, loaded, arrays):
    changed(linked / "dream_starts.npz", **arrays)
    with pytest.raises(UserError, match="does not hold starts of dreams") as error:
        loading.load_starts(linked, loaded[0])
    one_line(error, linked / "dream_starts.npz", "run 03_series.py")


@pytest.mark.parametrize("kind", [kind for kind in NPZ if kind != "missing"])
def test_a_damaged_history(tmp_path, kind):
    """More of them, array by array, in test_evolution.py."""
    path = tmp_path / "controller.npz"
    save_npz(path, mu=np.random.default_rng(0).normal(size=1000))
    NPZ[kind](path)
    constants = {"POPULATION": 8, "EVAL_EPISODES": 5, "FEATURES": "zh", "SCRIPT": "05_train_controller.py"}
    with pytest.raises(UserError) as error:
        history.load_history(path, constants, ("real",))
    one_line(error, path, "run 05_train_controller.py")


def h5(change):
    """A change of an h5 file in place."""

    def damage(path):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def datasets(file) -> list[str]:
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def lose_a_layer(file):
    del file[datasets(file)[0].split("/vars")[0]]


def reshape_a_layer(file):
    name = datasets(file)[0]
    shape = file[name].shape
    del file[name]
    file[name] = np.zeros((*shape[:-1], shape[-1] + 1), np.float32)


def text_in_a_layer(file):
    name = datasets(file)[0]
    del file[name]
    file[name] = "hello"


def one_nan(file):
    file[datasets(file)[-1]][-1] = np.nan


def nothing_left(file):
    for name in list(file):
        del file[name]


def instead(name):
    """Another file of the same folder in its place."""

    def damage(path):
        origin = {}
        with h5py.File(path) as file:
            origin.update(file.attrs)
        path.unlink()
        path.write_bytes((path.parent / f"{name}.weights.h5").read_bytes())
        with h5py.File(path, "r+") as file:  # even if it said the right thing about where it comes from
            file.attrs.update(origin)

    return damage


def fresh(content):
    def damage(path):
        path.unlink()
        path.write_bytes(content)

    return damage


WEIGHTS = {
    "missing": lambda path: path.unlink(),
    "empty": fresh(b""),
    "text": fresh(b"<html>404</html>"),
    "pickled": fresh(pickle.dumps([1, 2, 3])),
    "truncated": truncated,
    "a folder": a_folder,
    "flipped": flipped,
    "nothing left": h5(nothing_left),
    "text in a layer": h5(text_in_a_layer),
    "one nan": h5(one_nan),
}
LAYERS = {"a layer less": h5(lose_a_layer), "a layer of another shape": h5(reshape_a_layer)}


@pytest.mark.parametrize("kind", [*WEIGHTS, *LAYERS, "rnn", "controller"])
def test_damaged_weights_of_v(linked, kind):
    path = linked / "vae.weights.h5"
    (WEIGHTS | LAYERS | {name: instead(name) for name in ("rnn", "controller")})[kind](path)
    with pytest.raises(UserError) as error:
        weights.load(path, VAE())
    one_line(error, path, "run 02_train_vae.py")


@pytest.mark.parametrize("kind", [*WEIGHTS, *LAYERS, "vae", "controller"])
def test_damaged_weights_of_m(linked, loaded, kind):
    path = linked / "rnn.weights.h5"
    origin = loading.fingerprints(*loaded[:2])["vae"]
    (WEIGHTS | LAYERS | {name: instead(name) for name in ("vae", "controller")})[kind](path)
    with pytest.raises(UserError) as error:
        weights.load(path, MDNRNN(), vae=origin)
    one_line(error, path, "run 04_train_rnn.py")


CONTROLLER = {
    "fewer numbers": h5(lambda file: (file.__delitem__("controller"), file.create_dataset("controller", (99,)))),
    "a group": h5(lambda file: (file.__delitem__("controller"), file.create_group("controller"))),
    "infinite": h5(lambda file: file["controller"].__setitem__(3, np.inf)),
    "vae": instead("vae"),
    "rnn": instead("rnn"),
}


@pytest.mark.parametrize("kind", [*WEIGHTS, *CONTROLLER])
def test_a_damaged_controller(linked, loaded, kind):
    path = linked / "controller.weights.h5"
    (WEIGHTS | CONTROLLER)[kind](path)
    with pytest.raises(UserError) as error:
        weights.load_controller(path.parent, "controller", **loading.fingerprints(*loaded[:2]))
    one_line(error, path, "run 05_train_controller.py")


@pytest.mark.parametrize("other", ["vae", "rnn"])
def test_a_controller_of_another_v_or_m(linked, loaded, other):
    origin = loading.fingerprints(*loaded[:2]) | {other: "0123456789abcdef"}
    with pytest.raises(UserError, match=f"was trained on another {other} than the one here"):
        weights.load_controller(linked, "controller", **origin)


def test_weights_that_do_not_say_what_they_were_trained_on(linked, loaded):
    path = linked / "rnn.weights.h5"
    h5(lambda file: file.attrs.clear())(path)
    with pytest.raises(UserError, match="another vae"):
        weights.load(path, MDNRNN(), vae=loading.fingerprints(*loaded[:2])["vae"])


@pytest.fixture
def model():
    """A small compiled Keras model: restoring a checkpoint does not depend on which one it is."""
    import keras

    model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(30)], name="model")
    model.compile("sgd", "mse")  # few numbers beside the kernel: what is damaged is a number
    model.optimizer.build(model.trainable_variables)
    return model


SETTINGS = {"EPOCHS": 3, "BATCH_SIZE": 10, "FINE_TUNE": False, "SEED": 1}


@pytest.fixture
def checkpoint(tmp_path, model):
    """A checkpoint after one epoch, and what makes another `ResumableTraining` of the same run."""
    path, best = tmp_path / "vae.checkpoint.npz", tmp_path / "vae.weights.h5"
    best.write_bytes(b"")

    def make(data="6 rollouts", **changed):
        return ResumableTraining(path, best, "02_train_vae.py", SETTINGS | changed, data, lambda: None, 10)

    run = make()
    run.set_model(model)
    run.history = [{"epoch": 1, "val_loss": 2.0}]
    run.save()
    return path, make


def test_a_checkpoint_comes_back(checkpoint, model):
    before = model.get_weights()
    model.set_weights([array + 1 for array in before])
    run = checkpoint[1]()
    assert run.restore(model) == 1
    assert run.history == [{"epoch": 1, "val_loss": 2.0}]
    for array, expected in zip(model.get_weights(), before):
        np.testing.assert_array_equal(array, expected)


def test_a_run_that_continues_with_other_cores_says_so(checkpoint, model, monkeypatch, capsys):
    checkpoint[1]().restore(model)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(environment, "threads", lambda: 77)
    checkpoint[1]().restore(model)
    assert "77" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [kind for kind in NPZ if kind != "missing"])
def test_a_damaged_checkpoint(checkpoint, model, kind):
    path, make = checkpoint
    NPZ[kind](path)
    with pytest.raises(UserError) as error:
        make().restore(model)
    one_line(error, path, "")
    assert ("move it away" if kind == "a folder" else "delete") in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"BATCH_SIZE": 20}, "BATCH_SIZE: 10 → 20"),
        ({"SEED": 2, "BATCH_SIZE": 20}, "BATCH_SIZE: 10 → 20, SEED: 1 → 2"),
        ({"data": "7 rollouts"}, "the data: 6 rollouts → 7 rollouts"),
    ],
)
def test_a_checkpoint_with_different_settings(checkpoint, model, options, told):
    with pytest.raises(UserError, match=told):
        checkpoint[1](**options).restore(model)


def test_the_best_epoch_is_the_one_of_the_lowest_validation_loss(checkpoint, model, capsys):
    """Also across a resume, whatever the training loss says."""
    _, make = checkpoint
    saved = []

    def train(*val_losses):
        run = make()
        epoch = run.restore(model)
        run.save_weights = lambda: saved.append(run.epoch)
        run.set_model(model)
        run.set_params({"steps": 1})
        for val_loss in val_losses:
            run.on_epoch_begin(epoch)
            epoch += 1
            run.on_epoch_end(epoch - 1, {"loss": 10.0 - epoch, "val_loss": val_loss})
        return run

    assert train(1.5, 1.0).best["epoch"] == 3  # the checkpoint's own epoch had 2.0
    assert train(1.2, 0.9, 0.95).best["epoch"] == 5
    assert saved == [2, 3, 5]
    assert capsys.readouterr().out.count("(best so far)") == 3


def test_a_loss_that_is_not_finite_ends_the_run(checkpoint, model):
    run = checkpoint[1]()
    run.set_params({"steps": 5})
    run.on_epoch_begin(3)
    run.on_train_batch_end(0, {"loss": 1.0})
    for loss in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="at step 2 of epoch 4; the last good weights are kept"):
            run.on_train_batch_end(1, {"loss": loss})

"""Weights on disk, each with the fingerprint of what it was trained on.

V, M and C belong together: an M or C that learned on another V is silently worthless, so its file carries the
fingerprint of that V (and C's that of M too), and `load` refuses a mixture.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from models.controller import PARAMETERS
from pipeline import UserError
from pipeline.files import atomic_write, reading

import h5py
import numpy as np

# Which script makes which file.
PRODUCERS = {
    "vae": "02_train_vae.py",
    "rnn": "04_train_rnn.py",
    "controller": "05_train_controller.py",
    "dream_controller": "07_dream_train.py",
    "cartpole": "cartpole_dqn.py",
}
CHANGED = "is damaged, its numbers are not those that were saved"


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """16 hexadecimal digits of the SHA-256 over the arrays' shapes and float32 bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array, np.float32)
        digest.update(str(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def save(path: Path | str, model, **origin: str) -> None:
    """Write a Keras model's weights, whole or not at all, with what they were trained on, e.g. `vae=fingerprint`.

    Keras would save a compiled model's optimizer too (V: 17 MB becomes 52), so a copy without one is saved.
    """
    plain = _uncompiled(model)
    plain.set_weights(model.get_weights())
    with atomic_write(path) as temporary:
        plain.save_weights(temporary)
        with h5py.File(temporary, "r+") as file:
            file.attrs.update(origin, weights=fingerprint(model.get_weights()))


def load(path: Path | str, model, **origin: str) -> None:
    """Read weights into a built Keras model.

    Raises `UserError` when the file is missing, damaged or of another model (naming the script that makes it), or when
    it was trained on something else than `origin` says.
    """
    path = Path(path)
    found = check(path, **origin)
    if _number_of_weights(path) != model.count_params():
        cure = f"change models/sizes.py back if you changed it, or move the file away and run {producer(path)}"
        raise UserError(f"{path} does not hold the weights of a {model.name} of this size: {cure}")
    plain = _uncompiled(model)
    with reading(path, producer(path), f"does not hold the weights of a {model.name}"):
        plain.load_weights(path)
    arrays = plain.get_weights()
    if not all(np.isfinite(array).all() for array in arrays) or found.get("weights") not in (None, fingerprint(arrays)):
        raise UserError(f"{path} {CHANGED}: delete it and run {producer(path)}")
    model.set_weights(arrays)


def _number_of_weights(path: Path) -> int:
    sizes: list[int] = []
    with reading(path, producer(path)), h5py.File(path, "r") as file:
        file.visititems(lambda _, item: sizes.append(getattr(item, "size", 0)))  # a group has none
    return sum(sizes)


def _uncompiled(model):
    """A model of the same kind without an optimizer, which Keras would write and look for; itself if it has none."""
    return type(model)() if model.compiled else model


def producer(path: Path) -> str:
    """The script that makes the weights file `path`."""
    return PRODUCERS[path.name.removesuffix(".weights.h5")]


def check(path: Path, **origin: str) -> dict[str, str]:
    """The origin that the weights in `path` carry. Raises `UserError` as `load` does."""
    with reading(path, producer(path), "is damaged or not a weights file"), h5py.File(path, "r") as file:
        found = {name: str(value) for name, value in file.attrs.items()}
    for name, value in origin.items():
        if found.get(name) != value:
            raise UserError(f"{path} was trained on another {name} than the one here: run {producer(path)} again")
    return found


def save_controller(path: Path | str, parameters: np.ndarray, **origin: str) -> None:
    """Write C's 867 numbers, whole or not at all, with the fingerprints of its V and M."""
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        file["controller"] = np.asarray(parameters, np.float32)
        file.attrs.update(origin, weights=fingerprint([parameters]))


def load_controller(folder: Path | str, name: str, **origin: str) -> np.ndarray:
    """The numbers, float32 (867,), of the "controller" or "dream_controller". Raises `UserError` as `load` does."""
    path = Path(folder, f"{name}.weights.h5")
    found = check(path, **origin)
    fault = f"does not hold {PARAMETERS} finite numbers of a controller"
    with reading(path, producer(path), fault), h5py.File(path, "r") as file:
        parameters = np.asarray(file["controller"], np.float32)
    if parameters.shape != (PARAMETERS,) or not np.isfinite(parameters).all():
        raise UserError(f"{path} {fault}: delete it and run {producer(path)}")
    if found.get("weights") not in (None, fingerprint([parameters])):
        raise UserError(f"{path} {CHANGED}: delete it and run {producer(path)}")
    return parameters

"""V, M, C and the dream starts of a folder, each refused where it does not fit the others."""

from pathlib import Path

from models import controller, weights
from models.rnn import MDNRNN
from models.sizes import ACTION_DIM, LATENT_DIM
from models.vae import VAE
from pipeline import UserError
from pipeline.files import load_npz

import numpy as np

SHIPPED = Path(__file__).parent / "trained"


def choose_weights(folder: Path, *needed: str) -> Path:
    """`folder` where it has all the `needed` files, else the shipped weights where they have them; says which."""
    missing = [name for name in needed if not (folder / name).exists()]
    if missing and all((SHIPPED / name).exists() for name in needed):
        print(f"showing the shipped weights, models/trained: {folder} has no {missing[0]} of your own")
        return SHIPPED
    if not missing and folder.resolve() != SHIPPED.resolve():
        print(f"showing your own weights, {folder}")
    return folder  # where something is missing, loading says what, and which script makes it


def load(folder: Path | str, name: str = "controller") -> tuple[VAE, MDNRNN, np.ndarray]:
    """V, M and C of `folder`, or its "dream_controller". Raises `UserError` where one is missing or does not fit."""
    vae, rnn = load_models(folder)
    return vae, rnn, weights.load_controller(folder, name, **fingerprints(vae, rnn))


def load_models(folder: Path | str) -> tuple[VAE, MDNRNN]:
    """V and M of `folder`. Raises `UserError` where one is missing or M was trained on another V."""
    vae, rnn = VAE(), MDNRNN()
    weights.load(Path(folder, "vae.weights.h5"), vae)
    weights.load(Path(folder, "rnn.weights.h5"), rnn, vae=weights.fingerprint(vae.get_weights()))
    return vae, rnn


def fingerprints(vae: VAE, rnn: MDNRNN) -> dict[str, str]:
    """What a controller that is trained with these carries."""
    return {"vae": weights.fingerprint(vae.get_weights()), "rnn": weights.fingerprint(rnn.get_weights())}


def get_weights(vae: VAE, rnn: MDNRNN) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """V and M as arrays, for workers that may be on another machine."""
    return vae.get_weights(), rnn.get_weights()


def build_models(models: tuple[list[np.ndarray], list[np.ndarray]]) -> tuple[VAE, MDNRNN]:
    """V and M again, of what `get_weights` returns."""
    vae, rnn = VAE(), MDNRNN()
    vae.set_weights(models[0])
    rnn.set_weights(models[1])
    return vae, rnn


def load_starts(folder: Path | str, vae: VAE) -> dict[str, np.ndarray]:
    """Where dreams start: mu (n, k, 32) and action (n, k, 3). Raises `UserError` where missing or of another V."""
    path = Path(folder, "dream_starts.npz")
    starts = load_npz(path, "03_series.py")
    if str(starts.get("vae")) != weights.fingerprint(vae.get_weights()):
        raise UserError(f"{path} was made with another V than the one here: run 03_series.py again")
    mu, action = (starts.get(name, np.zeros(0)) for name in ("mu", "action"))
    fits = mu.ndim == action.ndim == 3 and mu.shape[:2] == action.shape[:2] and mu.size > 0
    fits = fits and (mu.shape[2], action.shape[2]) == (LATENT_DIM, ACTION_DIM)
    if not (fits and all(array.dtype.kind == "f" and np.isfinite(array).all() for array in (mu, action))):
        raise UserError(f"{path} does not hold starts of dreams: delete it and run 03_series.py")
    return starts


def feature_basis(
    rnn: MDNRNN, starts: dict[str, np.ndarray], features: str, components: int, whiten: bool
) -> np.ndarray:
    """`controller.feature_basis` of what a controller sees at the last frame of each dream start: z and h, or z."""
    mu, action = starts["mu"].astype(np.float32), starts["action"].astype(np.float32)
    h, _ = rnn.unroll(mu[:, :-1], action[:, :-1])[-1]
    seen = np.concatenate([mu[:, -1], h], 1) if features == "zh" else mu[:, -1]
    return controller.feature_basis(seen, components, whiten)

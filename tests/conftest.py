"""What several tests use: the scripts as modules, a folder of untrained weights, tiny rollouts of the real game."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from models.tracks import ROLLOUT_TRACKS
from pipeline import script
from pipeline.files import save_npz

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

# A shell's background jobs ignore Ctrl-C, and so would the scripts that are started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def script_module(name: str) -> ModuleType:
    """A numbered script as a module, without running its `main()`."""
    spec = importlib.util.spec_from_file_location(name.split("_", 1)[1].removesuffix(".py"), ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(name: str, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run a script as a user would, NAME=value arguments and all."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    # Importing car_racing for another test has told this process to do without a screen: a user's shell has not.
    env = {key: value for key, value in os.environ.items() if key != "SDL_VIDEODRIVER"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=env)


def refused(result: subprocess.CompletedProcess) -> str:
    """The one line that a script ended with; fails for any other end."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 1, result.stderr
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def as_script(tmp_path, monkeypatch):
    """Call a script's `main()` in this process, constants set as from the shell; a `UserError` is a SystemExit."""

    old = signal.getsignal(signal.SIGTERM)

    def call(module: ModuleType, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        script.run(module.main, vars(module))

    yield call
    signal.signal(signal.SIGTERM, old)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A folder of weights that fit together but have learned nothing, and starts of dreams: what 02 to 05 leave."""
    from models import weights
    from models.rnn import MDNRNN
    from models.vae import VAE

    import keras

    folder = tmp_path_factory.mktemp("untrained")
    keras.utils.set_random_seed(7)
    vae, rnn = VAE(), MDNRNN()
    v = weights.fingerprint(vae.get_weights())
    origin = {"vae": v, "rnn": weights.fingerprint(rnn.get_weights())}
    weights.save(folder / "vae.weights.h5", vae)
    weights.save(folder / "rnn.weights.h5", rnn, vae=v)
    random = np.random.default_rng(8)
    for name in ("controller", "dream_controller"):
        weights.save_controller(folder / f"{name}.weights.h5", random.normal(0, 0.1, 867), **origin)
    mu, action = random.normal(size=(6, 4, 32)), random.uniform(0, 1, (6, 4, 3))
    starts = {"mu": mu.astype(np.float16), "action": action.astype(np.float16), "vae": np.array(v)}
    save_npz(folder / "dream_starts.npz", **starts)
    return folder


@pytest.fixture(scope="session")
def loaded(untrained):
    """V, M and C of `untrained`. Don't freeze this M: others use it."""
    from models import worlds

    return worlds.load(untrained)


@pytest.fixture(scope="session")
def some_rollouts(tmp_path_factory):
    """A folder of six short rollouts of the real game, as 01 writes them."""
    from models.car_racing import CarRacing64

    folder = tmp_path_factory.mktemp("rollouts")
    generate, env = script_module("01_generate_data.py"), CarRacing64("fast")
    for seed in ROLLOUT_TRACKS[:6]:
        save_npz(folder / f"rollout-{seed}.npz", level=1, **generate.random_rollout(env, seed, 30))
    return folder


@pytest.fixture
def linked(untrained, tmp_path):
    """A folder of one's own with the untrained weights in it, to break some of them."""
    folder = tmp_path / "models"
    folder.mkdir()
    for path in untrained.iterdir():
        os.link(path, folder / path.name)
    return folder

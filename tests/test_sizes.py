"""Other sizes of V, M and C, changed in models/sizes.py alone: all scripts follow, and old weights are refused."""

import re
import shutil
import subprocess
import sys

from tests.conftest import ROOT

import pytest

SEARCH = "GENERATIONS=1 POPULATION=4 EVAL_EPISODES=1 MAX_IDLE_STEPS=5 NUM_ENVS=4 WORKERS=1"
STEPS = {
    "01_generate_data.py": "ROLLOUTS=4 MAX_STEPS=60 WORKERS=1",
    "02_train_vae.py": "EPOCHS=1 FRAMES_PER_EPOCH=64 BATCH_SIZE=16 SHUFFLE_BUFFER=32 VALIDATION_FRAMES=16",
    "03_series.py": "DREAM_STARTS=16 WARMUP_FRAMES=8",
    "04_train_rnn.py": "EPOCHS=1 FRAMES_PER_EPOCH=400 BATCH_SIZE=4 SEQUENCE_LENGTH=20",
    "05_train_controller.py": f"{SEARCH} EPISODES=1",
    "07_dream_train.py": f"{SEARCH} EPISODES=2 HARD_TRACKS=1 DREAM_ENVS=4 MAX_DREAM_STEPS=5",
    "06_visualise.py": "MAX_STEPS=84 MAX_DREAM_STEPS=8 DREAMS=2 NUM_ENVS=2",
}


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    """The project with 16 latents, 128 units and 3 Gaussians, without the shipped weights."""
    folder = tmp_path_factory.mktemp("smaller")
    for name in ("models", "pipeline"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.h5", "*.npz", "demo", "__pycache__")
        )
    for name in STEPS:
        shutil.copy(ROOT / name, folder)
    sizes = (folder / "models" / "sizes.py").read_text()
    for name, size in (("LATENT_DIM", 16), ("HIDDEN_SIZE", 128), ("MIXTURES", 3)):
        sizes, count = re.subn(rf"^{name} = \d+", f"{name} = {size}", sizes, flags=re.MULTILINE)
        assert count == 1
    (folder / "models" / "sizes.py").write_text(sizes)
    return folder


def run(folder, script, constants):
    command = [sys.executable, script, *constants.split()]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def test_all_steps_with_other_sizes(smaller):
    for script, constants in STEPS.items():
        result = run(smaller, script, constants)
        assert (result.returncode, result.stderr) == (0, ""), script
    for name in ("agent.gif", "dreams.gif", "expects.png", "predictions.png"):
        assert (smaller / "data" / name).stat().st_size > 1_000


def test_weights_of_other_sizes_are_one_line(smaller, untrained):
    result = run(smaller, "06_visualise.py", f"MODELS={untrained} DATA={smaller / 'other'}")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "vae.weights.h5 does not hold the weights of a vae of this size: change models/sizes.py back" in line

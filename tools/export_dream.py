"""Write the weights that docs/dream/ dreams with: V's decoder, M, C and some starts of dreams, in half precision.

Reads   V, M, C and the dream starts in MODELS, or the shipped ones in models/trained/ while one's own aren't all there
Writes  OUTPUT: 8 bytes of magic; the version, the length of the header and the CRC-32 of all that follows, uint32
        each; the header (JSON: sizes, and name and shape of each array, in order); the arrays, float16. All of it
        little-endian

`make dream` runs this and then serves the page.
"""

import json
import zlib
from pathlib import Path

from models import settings

import numpy as np

MODELS = "models"
OUTPUT = "data/dream/dream.bin"
STARTS = 128  # so many of the starts of dreams, evenly spaced

ROOT = Path(__file__).parent.parent
MAGIC = b"WMDREAM\n"
VERSION = 1  # of the layout; docs/dream/models.js reads this one only


def main() -> None:
    """Export the weights of MODELS, or the shipped ones."""
    from models import worlds

    folder = choose_weights(Path(MODELS))
    vae, rnn, parameters = worlds.load(folder)
    data = pack(vae, rnn, parameters, worlds.load_starts(folder, vae), STARTS)
    settings.make_folder(Path(OUTPUT).parent, "the folder of OUTPUT")
    with settings.whole(OUTPUT) as temporary:
        temporary.write_bytes(data)
    print(f"made: {OUTPUT} ({len(data) / 1e6:.1f} MB)")


def choose_weights(models: Path) -> Path:
    """The folder to export: `models` where V, M, C and the dream starts are all there, else the shipped."""
    needed = [*(f"{name}.weights.h5" for name in ("vae", "rnn", "controller")), "dream_starts.npz"]
    missing = [name for name in needed if not (models / name).exists()]
    if not missing:
        print(f"with your own weights in {models}")
        return models
    print(f"with the shipped weights in models/trained ({models} has no {missing[0]})")
    return ROOT / "models" / "trained"


def pack(vae, rnn, parameters: np.ndarray, starts: dict[str, np.ndarray], count: int) -> bytes:
    """The whole binary, with `count` of the `starts`. Raises `Refused` for a number that half precision can't hold."""
    chosen = np.unique(np.linspace(0, len(starts["mu"]) - 1, count).astype(int))
    arrays = {
        **decoder_arrays(vae),
        **rnn_arrays(rnn),
        "controller": parameters,
        "starts.mu": starts["mu"][chosen],
        "starts.action": starts["action"][chosen],
    }
    with np.errstate(over="ignore"):
        halves = {name: np.asarray(array).astype("<f2") for name, array in arrays.items()}
    for name, array in halves.items():
        if not np.isfinite(array).all():
            raise settings.Refused(f"{name} has numbers beyond 65,504, the largest of half precision: train it again")
    latents, hidden_size = starts["mu"].shape[-1], rnn.lstm.units
    header = {
        "sizes": {
            "latents": latents,
            "actions": starts["action"].shape[-1],
            "hidden_size": hidden_size,
            "mixtures": rnn.mixture.units // (3 * latents),
        },
        "arrays": [(name, array.shape) for name, array in halves.items()],
    }
    text = json.dumps(header).encode()
    body = text + b"".join(array.tobytes() for array in halves.values())
    numbers = np.array([VERSION, len(text), zlib.crc32(body)], "<u4")
    return MAGIC + numbers.tobytes() + body


def decoder_arrays(vae) -> dict[str, np.ndarray]:
    """V's decoder. Kernels of deconvolutions as (channels, k, k, filters), which is how the page walks through them.

    Nothing lies between the dense layer and the first deconvolution, whose input is one pixel, so their product is one
    matrix from z to that deconvolution's output: 0.1 million numbers instead of 3.3 million.
    """
    first, *others = vae.deconvolutions
    kernel = np.asarray(first.kernel, np.float64).reshape(-1, first.kernel.shape[-1])  # (k·k·filters, 1024)
    shape = tuple(first.kernel.shape[:-1])
    bias = np.asarray(vae.dense.bias, np.float64) @ kernel.T
    arrays = {
        f"vae.{first.name}.kernel": (np.asarray(vae.dense.kernel, np.float64) @ kernel.T).reshape(-1, *shape),
        f"vae.{first.name}.bias": bias.reshape(shape) + np.asarray(first.bias),
    }
    for layer in others:
        arrays[f"vae.{layer.name}.kernel"] = np.moveaxis(np.asarray(layer.kernel), -1, 0)
        arrays[f"vae.{layer.name}.bias"] = np.asarray(layer.bias)
    return arrays


def rnn_arrays(rnn) -> dict[str, np.ndarray]:
    """M. The rows of the LSTM's kernel are those of z, the action and h."""
    cell = rnn.lstm.cell
    arrays = {
        "rnn.lstm.kernel": np.concatenate([cell.kernel, cell.recurrent_kernel]),
        "rnn.lstm.bias": np.asarray(cell.bias),
    }
    for layer in (rnn.mixture, rnn.reward, rnn.done):
        arrays[f"rnn.{layer.name}.kernel"] = np.asarray(layer.kernel)
        arrays[f"rnn.{layer.name}.bias"] = np.asarray(layer.bias)
    return arrays


if __name__ == "__main__":
    settings.run(main, globals())

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

from pipeline import UserError, script
from pipeline.files import atomic_write, ensure_dir

import numpy as np

MODELS = "models"
OUTPUT = "data/dream/dream.bin"
STARTS = 128  # so many of the starts of dreams, evenly spaced

NEEDED = ("vae.weights.h5", "rnn.weights.h5", "controller.weights.h5", "dream_starts.npz")
MAGIC = b"WMDREAM\n"
VERSION = 1  # of the layout; docs/dream/models.js reads this one only


def main() -> None:
    """Export the weights of MODELS, or the shipped ones."""
    from models import loading

    folder = loading.choose_weights(Path(MODELS), *NEEDED)
    vae, rnn, parameters = loading.load(folder)
    data = pack(vae, rnn, parameters, loading.load_starts(folder, vae), STARTS)
    ensure_dir(Path(OUTPUT).parent, "the folder of OUTPUT")
    with atomic_write(OUTPUT) as temporary:
        temporary.write_bytes(data)
    print(f"made: {OUTPUT} ({len(data) / 1e6:.1f} MB)")


def pack(vae, rnn, parameters: np.ndarray, starts: dict[str, np.ndarray], count: int) -> bytes:
    """The whole binary, with `count` of the `starts`. Raises `UserError` for a number beyond half precision."""
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
            raise UserError(f"{name} has numbers beyond 65,504, the largest of half precision: train it again")
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
    script.run(main, globals(), reads=("MODELS",))

"""Rollouts on disk, as 01 writes them and 02 and 03 read them.

One `rollout-<track seed>.npz` each; for T frames driven

    obs     uint8   (T+1, 64, 64, 3)   obs[t] is what was seen before action[t], obs[T] what was seen last
    action  float32 (T, 3)             steering −1 to 1, gas 0 to 1, brake 0 to 1
    reward  float32 (T,)               follows action[t]
    done    bool    (T,)               left the field or finished the lap after action[t]; never the frame limit
    constants  text                    JSON of what it was made with (not in those of earlier versions)
"""

import json
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import UserError
from pipeline.files import load_npz, pack_npz, reading

import numpy as np

PRODUCER = "01_generate_data.py"
SHAPES = {"obs": (64, 64, 3), "action": (3,), "reward": (), "done": ()}  # of one frame
TYPES = {"obs": np.uint8, "action": np.float32, "reward": np.float32, "done": np.bool_}
HELD_OUT_SHARE = 20  # about one rollout in so many is never trained on


def find(folder: Path | str) -> list[Path]:
    """The rollouts in `folder`, in order of their names. Raises `UserError` where there are fewer than two."""
    paths = sorted(Path(folder).glob("rollout-*.npz"))
    if len(paths) < 2:  # one to learn from, one held out
        raise UserError(f"{folder} holds {len(paths)} rollouts, at least 2 are needed: run {PRODUCER} first")
    return paths


def held_out(names: Iterable[str]) -> set[str]:
    """Those of the rollouts that are never trained on, at least one.

    It depends on a rollout's name alone, so that V and M leave out the same ones, and further rollouts change nothing.
    """
    hashes = {name: zlib.crc32(name.encode(errors="surrogateescape")) for name in names}
    chosen = {name for name in hashes if hashes[name] % HELD_OUT_SHARE == 0}
    return chosen or {min(hashes, key=lambda name: hashes[name])}


def summary(paths: Iterable[Path]) -> str:
    """A text that changes when a rollout is added, removed or rewritten with another size."""
    paths = list(paths)
    digits = zlib.crc32(
        "\n".join(f"{path.name} {path.stat().st_size}" for path in paths).encode(errors="surrogateescape")
    )
    return f"{len(paths)} rollouts ({digits:08x})"


def check(arrays: dict[str, np.ndarray]) -> None:
    """Raises `UserError` saying what is wrong, where `arrays` are no rollout."""
    for name, shape in SHAPES.items():
        if name not in arrays:
            raise UserError(f"it has no {name}")
        array = arrays[name]
        if array.dtype != TYPES[name] or array.shape[1:] != shape or array.ndim != len(shape) + 1:
            raise UserError(
                f"its {name} is {array.dtype} {array.shape}, not {np.dtype(TYPES[name])} (frames, *{shape})"
            )
        if name != "obs" and len(array) != len(arrays["obs"]) - 1:
            raise UserError(f"it has {len(array)} {name}s for {len(arrays['obs'])} observations")
        if not np.isfinite(array).all():
            raise UserError(f"its {name} is not finite everywhere")
    if len(arrays["action"]) == 0:
        raise UserError("it has no frames")


def pack(settings: dict[str, Any], **arrays: np.ndarray) -> bytes:
    """The file of a rollout, with the settings that decide what is in it. Workers make it, the script writes it."""
    return pack_npz(level=1, constants=np.array(json.dumps(settings)), **arrays)


def made_otherwise(folder: Path, seeds: Iterable[int], constants: dict[str, Any]) -> dict[str, list[Path]]:
    """Those of the rollouts on the tracks `seeds` that say they were made with other constants, by the difference."""
    constants = json.loads(json.dumps(constants))  # as they come back: tuples are lists
    found: dict[str, list[Path]] = {}
    for seed in sorted(seeds):
        path = folder / f"rollout-{seed}.npz"
        try:
            with reading(path, PRODUCER), np.load(path, allow_pickle=False) as file:
                old = json.loads(str(file["constants"]))
                differ = [name for name in constants if name in old and old[name] != constants[name]]
        except UserError:  # it is of an earlier version; or no rollout, and who reads it says so
            continue
        if differ:
            told = ", ".join(f"{name}: {old[name]} → {constants[name]}" for name in differ)
            found.setdefault(told, []).append(path)
    return found


def read(path: Path) -> dict[str, np.ndarray]:
    """One rollout, checked. Raises `UserError` where it is missing, damaged or none."""
    arrays = load_npz(path, PRODUCER)
    try:
        check(arrays)
    except UserError as error:
        raise UserError(f"{path} is not a valid rollout file: {error}. Delete it and run {PRODUCER}") from None
    return arrays


def read_all(paths: Iterable[Path], skipped: set[Path]) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """Rollout after rollout, read ahead by a thread.

    A damaged one is left out: it is named on stderr when it is met first, and put into `skipped`.
    """
    with ThreadPoolExecutor(1) as thread:
        ahead: deque[tuple[Path, Future]] = deque()
        for path in paths:
            ahead.append((path, thread.submit(read, path)))
            if len(ahead) > 3:
                yield from _readable(ahead.popleft(), skipped)
        while ahead:
            yield from _readable(ahead.popleft(), skipped)


def _readable(item: tuple[Path, Future], skipped: set[Path]) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    path, reading = item
    try:
        yield path, reading.result()
    except UserError as error:
        if path not in skipped:
            print(f"left out: {error}", file=sys.stderr, flush=True)
            skipped.add(path)


def some_frames(paths: list[Path], most: int, skipped: set[Path]) -> np.ndarray:
    """At most `most` frames uint8 (n, 64, 64, 3), spread over at most 50 of the rollouts.

    Raises `UserError` where none of them can be read.
    """
    paths = paths[:: -(-len(paths) // 50)]
    each = max(most // len(paths), 1)
    parts = []
    for _, rollout in read_all(paths, skipped):
        obs = rollout["obs"]
        parts.append(obs[np.unique(np.linspace(0, len(obs) - 1, each).astype(int))])
    if not parts:
        raise UserError(f"none of the held-out rollouts can be read: run {PRODUCER}")
    return np.concatenate(parts)


def frame_stream(paths: list[Path], random: np.random.Generator, skipped: set[Path]) -> Iterator[np.ndarray]:
    """The frames of one rollout after the other in random order, uint8 (T+1, 64, 64, 3), over and over.

    It ends only if none of the rollouts can be read.
    """
    while True:
        found = False
        for _, rollout in read_all([paths[place] for place in random.permutation(len(paths))], skipped):
            found = True
            yield rollout["obs"]
        if not found:
            return


def length(path: Path) -> int:
    """How many observations (T+1) a rollout says it has: from the header, without unpacking it. 0 when unreadable."""
    try:
        with (
            reading(path, PRODUCER),
            np.load(path, allow_pickle=False) as file,
            file.zip.open("obs.npy") as member,
        ):
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return header(member)[0][0]
    except UserError:  # `read` says what is wrong with it
        return 0

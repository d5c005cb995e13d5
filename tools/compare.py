"""The fast world beside gym's own on whole drives, in figures and as a picture: python -m tools.compare

Rewards and ends must be the same on every step; how far the pictures are apart is printed, and
docs/images/renderers.png shows some of them: gym's picture, ours, the difference eight times as strong.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from models.car_racing import ZOOM_FRAMES, CarRacing64
from tools.driver import Driver, off_the_field

import cv2
import numpy as np

PICTURE = Path("docs/images/renderers.png")
AT_MOST = 0.5, 3.0  # of 255: mean over all frames, and on the worst single one after the zoom


class Drive(NamedTuple):
    """A drive to compare on."""

    seed: int
    kind: str  # "lap": along the road until the lap is finished; "leave": off the field after a while
    frames: int = 1_000


class Result(NamedTuple):
    """What came of it. The frames are gym's and ours, a few of each."""

    drive: Drive
    same: bool  # rewards, terminated, truncated: on every step
    left_field: bool
    lap_finished: bool
    differences: list[float]  # mean absolute difference of each frame's pictures, of 255
    frames: list[tuple[int, np.ndarray, np.ndarray]]


def compare(drive: Drive) -> Result:
    """Drive gym's world and ours with the same actions."""
    gyms, ours = CarRacing64("gym"), CarRacing64("fast")
    frames = [env.reset(seed=drive.seed)[0] for env in (gyms, ours)]
    # Lively, but less so on some tracks, so that the lap is finished there.
    driver = Driver(ours, drive.seed, speed=95, lively=(0.0, 0.3, 0.6)[drive.seed % 3])
    differences, kept, same = [difference(*frames)], [(0, *frames)], True
    for t in range(1, drive.frames + 1):
        off = drive.kind == "leave" and t > 100 + drive.seed // 5 % 5 * 40
        action = (off_the_field(ours) if off else driver()).astype(np.float32)
        steps = [env.step(action) for env in (gyms, ours)]
        frames = [step[0] for step in steps]
        same &= steps[0][1:4] == steps[1][1:4]
        differences.append(difference(*frames))
        if t % 60 == 20:
            kept.append((t, *frames))
        if steps[0][2] or steps[0][3]:
            break
    kept.append((t, *frames))
    return Result(drive, same, steps[0][2], gyms.lap_finished, differences, kept)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of two pictures."""
    return float(np.abs(one.astype(int) - other).mean())


def draw(results: list[Result], path: Path) -> None:
    """Columns of frames; rows of gym's, ours, and the difference eight times as strong."""
    start, lap, left = results[0].frames, results[0].frames, next(r for r in results if r.left_field).frames
    worst = max((kept for result in results for kept in result.frames if kept[0] > ZOOM_FRAMES), key=_apart)
    columns = [start[0], start[1], lap[2], *(result.frames[4] for result in results[1:5]), left[-2], left[-1], worst]
    labels = [f"frame {column[0]}" for column in columns]
    labels[-3:] = ["leaving", "off the field", "the worst"]
    size, gap, side = 128, 6, 100
    sheet = np.full((3 * (size + gap) + 24, side + len(columns) * (size + gap), 3), 255, np.uint8)
    for y, name in enumerate(("gym", "ours", "difference x8")):
        _write(sheet, name, 4, 24 + y * (size + gap) + size // 2)
    for x, (label, (_, gyms, ours)) in enumerate(zip(labels, columns)):
        left_edge = side + x * (size + gap)
        _write(sheet, label, left_edge, 16)
        apart = np.minimum(8 * np.abs(gyms.astype(int) - ours), 255).astype(np.uint8)
        for y, picture in enumerate((gyms, ours, apart)):
            top = 24 + y * (size + gap)
            large = cv2.resize(picture, (size, size), interpolation=cv2.INTER_NEAREST)
            sheet[top : top + size, left_edge : left_edge + size] = large
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1])


def _apart(kept: tuple[int, np.ndarray, np.ndarray]) -> float:
    return difference(*kept[1:])


def _write(sheet: np.ndarray, text: str, x: int, y: int) -> None:
    cv2.putText(sheet, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)


def main() -> None:
    """Compare on as many tracks as asked for, every fifth of them off the field."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tracks", type=int, nargs="?", default=24)
    count = parser.parse_args().tracks
    results = []
    for i in range(count):
        result = compare(Drive(3_000 + i, "leave" if i % 5 == 4 else "lap"))
        results.append(result)
        end = "left the field" if result.left_field else "lap finished" if result.lap_finished else "out of time"
        after = result.differences[ZOOM_FRAMES + 1 :]
        print(
            f"track {result.drive.seed}: {len(result.differences) - 1:4} frames, {end:14}  "
            f"rewards and ends {'the same' if result.same else 'DIFFER'}, difference "
            f"{np.mean(result.differences):.2f}, worst {max(after):.2f}",
            flush=True,
        )
    every = np.concatenate([result.differences for result in results])
    worst = max(max(result.differences[ZOOM_FRAMES + 1 :]) for result in results)
    same, left, laps = (sum(getattr(r, name) for r in results) for name in ("same", "left_field", "lap_finished"))
    draw(results, PICTURE)
    print(f"{count} tracks, {len(every):,} frames, {left} left the field, {laps} laps finished")
    print(f"rewards, terminations and truncations the same on {same} of {count}")
    print(f"mean absolute difference {every.mean():.2f} of 255, worst frame after the zoom {worst:.2f}")
    print(f"some of them: {PICTURE}")
    if not (same == count and left >= 3 and laps >= 3 and every.mean() <= AT_MOST[0] and worst <= AT_MOST[1]):
        sys.exit("NOT what is asked for")


if __name__ == "__main__":
    main()

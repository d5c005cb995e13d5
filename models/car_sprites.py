"""The car, the gauges and the score of a 64×64 picture of CarRacing: small sprites, drawn once each by gym's own code.

The car is always at the same place, upright; only its wheels turn and roll.
"""

import math
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from models.car_track import GROUND, ROUNDING_OFFSET, SIZE, zoom
from pipeline.files import suppress_stderr

import cv2
import numpy as np

with suppress_stderr():  # gym's notice, once per process otherwise
    import Box2D
    import pygame
    from gym.envs.box2d import car_dynamics
    from gym.envs.box2d import car_racing as gym_racing

_BOX = (slice(42, 52), slice(29, 35))  # rows and columns that the car can cover, within these of gym's pixels:
_TOP, _BOTTOM, _LEFT, _RIGHT = 525, 650, 375, 625
_BAR_WINDOW = (0, 700, gym_racing.WINDOW_W, 100)  # where the bar with the gauges is in gym's window
_PHASES = 8  # of a wheel that rolls
_PER_RADIAN = 10  # steps of a wheel that turns


def draw_car(picture: np.ndarray, car: car_dynamics.Car, frame: int) -> None:
    """Lay the car over a picture, uint8 (64, 64, 3), `frame` frames into the zoom of the first second."""
    heading = car.hull.angle
    left, right, *_ = wheels = car.wheels
    rolls = [int(wheel.phase * (_PHASES / (2 * math.pi))) % _PHASES for wheel in wheels]
    steers = [round((wheel.angle - heading) * _PER_RADIAN) for wheel in (left, right)]
    transmittance, colour = _body(frame, rolls[2], rolls[3])
    coverage, highlight = _front_wheels(_nearest(frame), *steers, rolls[0], rolls[1])
    box = picture[_BOX]
    ground = cv2.multiply(box, cv2.subtract(transmittance, coverage), scale=1 / 255)
    cv2.add(ground, cv2.add(colour, highlight), box)


def _nearest(frame: int) -> int:
    """A wheel is no larger than a pixel: it needs no sprite of its own for each frame of the zoom."""
    return (frame + 4) // 5 * 5


@lru_cache(maxsize=4_000)
def _body(frame: int, left_roll: int, right_roll: int) -> tuple[np.ndarray, np.ndarray]:
    """The hull and the rear wheels: how much of the ground shows past them (0 to 255), and their colour.

    uint8 (10, 6, 3) each, as for the wheels.
    """
    hull = _hull(frame)
    left, right = _wheel(_nearest(frame), 2, 0, left_roll), _wheel(_nearest(frame), 3, 0, right_roll)
    colour = hull * (204 - ROUNDING_OFFSET, 0, 0) + left[1] + right[1]
    return _to_bytes(255 * (1 - hull - left[0] - right[0])), _to_bytes(colour)


@lru_cache(maxsize=100)
def _hull(frame: int) -> np.ndarray:
    return _averaged(_drawn_by_gym(frame)[..., 0] == 204)


@lru_cache(maxsize=10_000)
def _front_wheels(
    frame: int, left_steer: int, right_steer: int, left_roll: int, right_roll: int
) -> tuple[np.ndarray, np.ndarray]:
    """How much of the ground the front wheels hide beside the hull, and the light of their white patches."""
    left, right = _wheel(frame, 0, left_steer, left_roll), _wheel(frame, 1, right_steer, right_roll)
    return _to_bytes(255 * (left[0] + right[0])), _to_bytes(left[1] + right[1])


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values.clip(0, 255) + 0.5, (*values.shape[:2], 3)).astype(np.uint8)


@lru_cache(maxsize=10_000)
def _wheel(frame: int, wheel: int, steer_step: int, roll_step: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of the ground that a wheel hides, and its white patch's light: float32 (10, 6, 1) each."""
    drawn = _drawn_by_gym(frame, wheel, steer_step / _PER_RADIAN, (roll_step + 0.5) * 2 * math.pi / _PHASES)
    patch = drawn[..., 1] == 77
    black = drawn[..., 0] + drawn[..., 1] == 0
    return _averaged(patch | black), _averaged(patch) * (77 - ROUNDING_OFFSET)


def _drawn_by_gym(frame: int, wheel: int | None = None, steer: float = 0, phase: float = 0) -> np.ndarray:
    """The car's hull, with one wheel or none, as gym's own code draws it on green: uint8 (125, 250, 3)."""
    car = car_dynamics.Car(Box2D.b2World((0, 0)), 0, 0, 0)
    car.drawlist = [car.hull]
    if wheel is not None:
        car.drawlist = [car.wheels[wheel], car.hull]
        car.wheels[wheel].angle, car.wheels[wheel].phase = steer, phase
    surface = pygame.Surface((_RIGHT - _LEFT, _BOTTOM - _TOP))
    surface.fill((0, 255, 0))
    centre = (gym_racing.WINDOW_W / 2 - _LEFT, gym_racing.WINDOW_H / 4 - (gym_racing.WINDOW_H - _BOTTOM))
    car.draw(surface, zoom(frame), centre, 0, draw_particles=False)
    return pygame.surfarray.array3d(surface).transpose(1, 0, 2)[::-1]


def _averaged(mask: np.ndarray) -> np.ndarray:
    """The share of each of our pixels that a mask over gym's pixels covers: (125, 250) to float32 (10, 6, 1)."""
    rows, columns = _downscale_matrices()
    return (rows @ mask @ columns)[..., None]


@lru_cache(maxsize=1)
def _downscale_matrices() -> tuple[np.ndarray, np.ndarray]:
    """What turns gym's pixels into ours in the box around the car, to 96 and then to 64: (10, 125), (250, 6)."""
    matrices = []
    for pixels in (gym_racing.WINDOW_H, gym_racing.WINDOW_W):
        matrix: Any = np.eye(pixels, dtype=np.float32)
        for side in (gym_racing.STATE_H, SIZE):
            matrix = cv2.resize(matrix, (pixels, side), interpolation=cv2.INTER_AREA)
        matrices.append(matrix)
    return matrices[0][_BOX[0], _TOP:_BOTTOM], matrices[1][_BOX[1], _LEFT:_RIGHT].T


# Screen pixels per unit of each value, as in CarRacing._render_indicators.
_GAUGE_PIXELS: dict[str | int, float] = {"speed": -0.4, "steering": -250.0, "turning": -20.0}
_WHEEL_PIXELS = -0.2


def draw_bar(picture: np.ndarray, car: car_dynamics.Car, score: float) -> None:
    """Draw the black bar with speed, four wheels' spin, steering, turning, and the score; a sprite for each length."""
    bar = picture[GROUND:]
    bar[:] = _score(int(score))
    hull, wheels, floor = car.hull, car.wheels, math.floor
    velocity = hull.linearVelocity
    vx, vy = velocity.x, velocity.y
    spins = [floor(_WHEEL_PIXELS * wheel.omega) for wheel in wheels]
    for columns, sprite in (
        _gauge("speed", floor(_GAUGE_PIXELS["speed"] * math.sqrt(vx * vx + vy * vy))),
        _gauge("steering", floor(_GAUGE_PIXELS["steering"] * wheels[0].joint.angle)),
        _gauge("turning", floor(_GAUGE_PIXELS["turning"] * hull.angularVelocity)),
        _spins(*spins),
    ):
        part = bar[:, columns]
        cv2.add(part, sprite, part)  # not past 255: the wheels' gauges touch each other


@lru_cache(maxsize=5_000)
def _spins(*pixels: int) -> tuple[slice, np.ndarray]:
    """The gauges of the four wheels, as `_gauge`."""
    bar = np.zeros((SIZE - GROUND, SIZE, 3), np.uint8)
    for wheel, length in enumerate(pixels):
        cv2.add(bar, _bar_with(wheel, length), bar)
    return _cropped(bar)


@lru_cache(maxsize=5_000)
def _gauge(gauge: str, pixels: int) -> tuple[slice, np.ndarray]:
    """A gauge: the columns of the bar that it is in, and these columns, uint8 (8, n, 3)."""
    return _cropped(_bar_with(gauge, pixels))


def _cropped(bar: np.ndarray) -> tuple[slice, np.ndarray]:
    lit = np.flatnonzero(bar.any((0, 2)))
    columns = slice(lit[0], lit[-1] + 1) if lit.size else slice(0, 1)
    return columns, bar[:, columns].copy()


@lru_cache(maxsize=1_000)
def _bar_with(gauge: str | int, pixels: int) -> np.ndarray:
    """The bar with one gauge alone (a number is a wheel's), as gym draws it: uint8 (8, 64, 3)."""
    value = (pixels + 1e-3) / _GAUGE_PIXELS.get(gauge, _WHEEL_PIXELS) if pixels else 0.0
    spin = [value if gauge == i else 0.0 for i in range(4)]
    wheels = [SimpleNamespace(omega=omega, joint=SimpleNamespace(angle=0.0)) for omega in spin]
    wheels[0].joint.angle = value if gauge == "steering" else 0.0
    hull = SimpleNamespace(
        linearVelocity=(value if gauge == "speed" else 0.0, 0.0),
        angularVelocity=value if gauge == "turning" else 0.0,
    )
    window = SimpleNamespace(surf=_window(), car=SimpleNamespace(hull=hull, wheels=wheels))
    gym_racing.CarRacing._render_indicators(window, gym_racing.WINDOW_W, gym_racing.WINDOW_H)
    return _scaled_bar(window.surf)


@lru_cache(maxsize=2_000)
def _score(score: int) -> np.ndarray:
    """The bar with the score alone: uint8 (8, 64, 3)."""
    surface = _window()
    surface.fill((0, 0, 0), _BAR_WINDOW)
    text = _font().render(f"{score:04d}", True, (255,) * 3, (0,) * 3)
    box = text.get_rect()
    box.center = (60, gym_racing.WINDOW_H - gym_racing.WINDOW_H * 2.5 / 40.0)
    surface.blit(text, box)
    return _scaled_bar(surface)


@lru_cache(maxsize=1)
def _font() -> pygame.font.Font:
    pygame.font.init()
    return pygame.font.Font(pygame.font.get_default_font(), 42)


@lru_cache(maxsize=1)
def _window() -> pygame.Surface:
    return pygame.Surface((gym_racing.WINDOW_W, gym_racing.WINDOW_H))


def _scaled_bar(window: pygame.Surface) -> np.ndarray:
    """The bar's part of gym's window at our size, by gym's own way: smoothscale, then area averaging."""
    bar = window.subsurface(_BAR_WINDOW)
    scaled = pygame.surfarray.array3d(pygame.transform.smoothscale(bar, (96, 12))).transpose(1, 0, 2)
    return cv2.resize(scaled, (SIZE, SIZE - GROUND), interpolation=cv2.INTER_AREA)

"""gym's CarRacing, drawn straight at 64×64.

gym draws 1000×800 pixels, scales them to 96×96, and the tutorial scales that to 64×64: nearly all of the time goes
into pixels that are thrown away. Here physics, contacts, tiles, rewards and randomness are gym's own classes,
untouched; only the drawing is ours. The camera looks at a flat world, so a track is painted once, as a texture,
and a frame is that texture turned, scaled and cut out by one affine warp. The car, the gauges and the score are
small sprites that gym's own code draws, once each.
"""

import math
import os
from collections import OrderedDict
from functools import lru_cache
from types import SimpleNamespace

from pipeline.files import suppress_stderr

import cv2
import numpy as np

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no screen needed
with suppress_stderr():  # gym's notice, once per process otherwise
    import Box2D
    import pygame
    from gym import spaces
    from gym.envs.box2d import car_dynamics
    from gym.envs.box2d import car_racing as gym_racing

SIZE = 64
FRAMES = 1_000  # an episode's most; gym.make's time limit
PIXELS = 3.0  # the texture's, per world unit; a 64×64 picture has 1.04 × 1.30 of them
EDGE = 340.0  # the texture ends here, just beyond the field: all is black out there
LEVELS = 5  # the texture and its halvings, for the zoom of the first second
FAT = 0.5 / PIXELS  # OpenCV's smooth edges make a polygon so much too wide on each side, in world units
SHADE = 2  # smoothscale rounds down, twice: gym's flat areas come out this much too dark
ZOOM_FRAMES = gym_racing.FPS  # the camera flies in for one second
TRACKS_KEPT = 8  # in memory, 4 MB each
_BAR = slice(56, 64)  # rows of the indicator bar, and where it is in gym's window
_BAR_WINDOW = (0, 700, gym_racing.WINDOW_W, 100)
_BOX = (slice(42, 52), slice(29, 35))  # rows and columns that the car can cover, within these of gym's pixels:
_TOP, _BOTTOM, _LEFT, _RIGHT = 525, 650, 375, 625


class CarRacing64(gym_racing.CarRacing):
    """gym's CarRacing-v2 with 64×64 pictures; observation uint8 (64, 64, 3), an episode ends after 1,000 frames.

    `renderer="gym"` is the reference: gym's own 96×96 picture, area-averaged. `renderer="fast"` is the same game
    drawn straight, and the whole step 23 times as fast; the pictures differ by less than 1 of 255 on average.
    """

    def __init__(self, renderer: str = "fast") -> None:
        if renderer not in ("fast", "gym"):
            raise ValueError(f"renderer must be 'fast' or 'gym', not {renderer!r}")
        super().__init__()
        self.fast = renderer == "fast"
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.frames = 0
        self._seed: int | None = None
        self._touched: list[int] = []
        self._texture: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start on the track of `seed` (gym's own track for that seed); returns (observation, {})."""
        self.frames = 0
        self._seed = seed
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray | None) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One frame of 1/50 s: (observation, reward, left the field, finished the lap or out of time, {})."""
        if action is not None:
            self.frames += 1
            action = np.asarray(action, np.float64)  # gym multiplies it on: in float64 on NumPy 1, in its own type on 2
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated or self.frames >= FRAMES, info

    def place(self, x: float, y: float, angle: float, speed: float) -> np.ndarray:
        """Put the car elsewhere, facing `angle` (radians, 0 is up) at `speed` (units/s), the zoom over: what it sees.

        01 starts some of its rollouts so.
        """
        self.car.destroy()
        self.car = gym_racing.Car(self.world, angle, x, y)
        for wheel, (left, ahead) in zip(self.car.wheels, car_dynamics.WHEELPOS):
            # gym sets the wheels down as if the car faced up; their joints would then turn it by 3 degrees.
            wheel.position = self.car.hull.GetWorldPoint((left * car_dynamics.SIZE, ahead * car_dynamics.SIZE))
        velocity = (-speed * math.sin(angle), speed * math.cos(angle))
        for body in (self.car.hull, *self.car.wheels):
            body.linearVelocity = velocity
        for wheel in self.car.wheels:
            wheel.omega = speed / wheel.wheel_rad
        self.t = 1.0
        return self.step(None)[0]

    @property
    def lap_finished(self) -> bool:
        """Whether every tile has been visited."""
        return self.tile_visited_count == len(self.track) or self.new_lap

    def _create_track(self) -> bool:
        if not self.fast:
            return super()._create_track()
        if self._texture is None:
            self._texture = np.empty_like(_field())
        track = _tracks.get(self._seed)
        if track is None:
            if not super()._create_track():
                return False
            track = _Track(self, self._texture)
            _tracks.put(self._seed, track)
        else:
            self.np_random.bit_generator.state = track.random_state
            self.track, self.road, self.road_poly = track.points, [], track.road_poly
            for i, vertices in enumerate(track.tiles):
                self.fd_tile.shape.vertices = vertices
                tile = self.world.CreateStaticBody(fixtures=self.fd_tile)
                tile.userData, tile.road_visited, tile.road_friction, tile.idx = tile, False, 1.0, i
                tile.fixtures[0].sensor = True
                self.road.append(tile)
            track.draw(self._texture)
        self._touched = []
        for i, tile in enumerate(self.road):
            tile.color = _Paint(self._touched, i)
        self._drawn = track
        self._halvings = track.halvings.copy()
        return True

    def _render(self, mode: str) -> np.ndarray | bool | None:
        if mode != "state_pixels":
            return super()._render(mode)
        if not self.fast:
            return cv2.resize(super()._render(mode), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        for i in self._touched:
            self._drawn.paint(self._texture, i)
        self._touched.clear()
        zoomed = min(round(self.t * gym_racing.FPS), ZOOM_FRAMES)
        level, matrix = _camera(zoomed, self.car.hull)
        texture = self._halvings[level - 1] if level else self._texture
        if zoomed == ZOOM_FRAMES:
            self._halvings.clear()  # megabytes, and never looked at again
        picture = cv2.resize(
            cv2.warpAffine(texture, matrix, (2 * SIZE, 2 * SIZE), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP),
            (SIZE, SIZE),
            interpolation=cv2.INTER_AREA,
        )
        _draw_car(picture, self.car, zoomed)
        _draw_bar(picture, self.car, self.reward)
        return picture


class _Paint:
    """A tile's colour. gym paints a tile grey by assigning to its colour on each touch; this notes the first one."""

    def __init__(self, touched: list[int], tile: int) -> None:
        self.touched, self.tile = touched, tile

    def __setitem__(self, key: slice, value: np.ndarray) -> None:
        if self.tile >= 0:
            self.touched.append(self.tile)
            self.tile = -1


class _Track:
    """What a track's seed decides, made once and shared by all cars on it: geometry, and what there is to draw.

    `texture` is the car's own, as its tiles change their colours; this one is the first to be drawn.
    """

    def __init__(self, game: CarRacing64, texture: np.ndarray) -> None:
        self.random_state = game.np_random.bit_generator.state
        self.points = game.track
        self.tiles = [tile.fixtures[0].shape.vertices for tile in game.road]
        self.road_poly = game.road_poly
        self.shapes = [
            (_points(_narrowed(corners)), [int(c) - SHADE if c > SHADE else 0 for c in colour])
            for corners, colour in game.road_poly
        ]
        self.draw(texture)
        self.halvings = []  # of the texture, for the zoom of the first second
        for _ in range(LEVELS - 1):
            texture = cv2.resize(texture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            self.halvings.append(texture)
        self.patches: dict[int, tuple[tuple[slice, slice], np.ndarray] | None] = {}

    def draw(self, texture: np.ndarray) -> None:
        """Draw the field and the road that nobody has touched yet over `texture`."""
        np.copyto(texture, _field())
        for points, colour in self.shapes:
            cv2.fillConvexPoly(texture, points, colour, cv2.LINE_AA, shift=4)

    def paint(self, texture: np.ndarray, tile: int) -> None:
        """Take the fresh tint (2 or 5 of 255) off a tile of a car's own texture, as it was touched."""
        tint = int(0.01 * (tile % 3) * 255)
        if not tint:
            return
        if tile not in self.patches:
            corners = (np.array(self.tiles[tile]) + EDGE) * PIXELS
            low, high = corners.min(0).astype(int) - 2, corners.max(0).astype(int) + 3
            patch = np.zeros((*(high - low)[::-1], 3), np.uint8)
            cv2.fillConvexPoly(patch, _points(self.tiles[tile], low), [tint] * 3, cv2.LINE_AA, shift=4)
            self.patches[tile] = (slice(low[1], high[1]), slice(low[0], high[0])), patch
        place, patch = self.patches[tile]
        texture[place] = cv2.subtract(texture[place], patch)  # not below 0: the patch may touch a red kerb


class _Tracks:
    """The last few tracks by seed: the candidates of a generation share theirs."""

    def __init__(self) -> None:
        self.kept: OrderedDict[int, _Track] = OrderedDict()

    def get(self, seed: int | None) -> _Track | None:
        if seed not in self.kept:
            return None
        self.kept.move_to_end(seed)
        return self.kept[seed]

    def put(self, seed: int | None, track: _Track) -> None:
        if seed is not None:
            self.kept[seed] = track
            if len(self.kept) > TRACKS_KEPT:
                self.kept.popitem(last=False)[1].halvings.clear()  # its cars have theirs while they need them


_tracks = _Tracks()


def _points(corners: list, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """A polygon in world units as one in a texture, for OpenCV: whole sixteenths of a pixel."""
    return np.round(((np.asarray(corners) + EDGE) * PIXELS - 0.5 - np.asarray(origin)) * 16).astype(np.int32)


def _narrowed(corners: list) -> np.ndarray:
    """A piece of road or kerb (left, right, right ahead, left ahead), by FAT on each side; ahead comes the next."""
    left, right = np.array((corners[0], corners[3])), np.array((corners[1], corners[2]))
    width = np.linalg.norm(right - left, axis=1, keepdims=True)
    inwards = (right - left) * (FAT / np.maximum(width, 2 * FAT))  # gym has a kerb of no width where a bend is none
    left, right = left + inwards, right - inwards
    return np.array((left[0], right[0], right[1], left[1]))


@lru_cache(maxsize=1)
def _field() -> np.ndarray:
    """The texture of a field without a road: black, ground, and gym's pattern of grass."""
    side = int(2 * EDGE * PIXELS)
    texture = np.zeros((side, side, 3), np.uint8)
    field = gym_racing.PLAYFIELD
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    cv2.fillConvexPoly(texture, _points((2 * square - 1) * field), [100, 202, 100], cv2.LINE_AA, shift=4)
    for x in range(-20, 20, 2):
        for y in range(-20, 20, 2):
            points = _points((square + np.array([x, y])) * gym_racing.GRASS_DIM + FAT * (1 - 2 * square))
            cv2.fillConvexPoly(texture, points, [100, 228, 100], cv2.LINE_AA, shift=4)
    return texture


def _zoom(zoomed: int) -> float:
    """Screen pixels per world unit after that many frames (CarRacing._render)."""
    t = zoomed / gym_racing.FPS
    return 0.1 * gym_racing.SCALE * max(1 - t, 0) + gym_racing.ZOOM * gym_racing.SCALE * min(t, 1)


@lru_cache(maxsize=ZOOM_FRAMES + 1)
def _scales(zoomed: int) -> tuple[int, float, float, float, float]:
    """Pyramid level; world units per sample across and along; the car's place in samples from the left and the top."""
    across = gym_racing.WINDOW_W / (2 * SIZE) / _zoom(zoomed)
    along = gym_racing.WINDOW_H / (2 * SIZE) / _zoom(zoomed)
    level = max(0, min(LEVELS - 1, round(math.log2(along * PIXELS))))
    return level, across, along, SIZE, 1.5 * SIZE


def _camera(zoomed: int, hull: Box2D.b2Body) -> tuple[int, np.ndarray]:
    """Pyramid level, and the 2×3 matrix from a sample of the picture to a pixel of that level."""
    level, across, along, left, top = _scales(zoomed)
    pixels = PIXELS / 2**level
    x, y = hull.position
    cos, sin = math.cos(hull.angle) * pixels, math.sin(hull.angle) * pixels
    a, b, c, d = cos * across, sin * along, sin * across, -cos * along
    u, v = 0.5 - left, 0.5 - top
    return level, np.array(
        [
            [a, b, (x + EDGE) * pixels - 0.5 + a * u + b * v],
            [c, d, (y + EDGE) * pixels - 0.5 + c * u + d * v],
        ]
    )


def _draw_car(picture: np.ndarray, car: gym_racing.Car, zoomed: int) -> None:
    """Lay the car over the picture. It is always at the same place, upright: only wheels turn and roll."""
    through, light = _hull(zoomed)
    nearest = (zoomed + 4) // 5 * 5  # a wheel is no larger than a pixel: no need for one for each frame of the zoom
    for i, wheel in enumerate(car.wheels):
        turned = round((wheel.angle - car.hull.angle) * 10) if i < 2 else 0
        covered, shine = _wheel(nearest, i, turned, int(wheel.phase * 8 / (2 * math.pi)) % 8)
        through = through - covered
        light = light + shine
    box = picture[_BOX]
    np.copyto(box, box * through + light, casting="unsafe")


@lru_cache(maxsize=ZOOM_FRAMES + 1)
def _hull(zoomed: int) -> tuple[np.ndarray, np.ndarray]:
    """How much of the ground shows past the car's body, (10, 6, 1), and the light the body adds, (10, 6, 3)."""
    body = _averaged(_drawn_by_gym(zoomed)[..., 0] == 204)
    return 1 - body, body * np.float32((204 - SHADE, 0, 0)) + np.float32(0.5)  # so that uint8 rounds


@lru_cache(maxsize=10_000)
def _wheel(zoomed: int, wheel: int, turned: int, rolled: int) -> tuple[np.ndarray, np.ndarray]:
    """The ground that a wheel hides beside the body, (10, 6, 1), and its white patch's light; (10, 6, 1) too."""
    drawn = _drawn_by_gym(zoomed, wheel, turned / 10, (rolled + 0.5) * math.pi / 4)
    patch = drawn[..., 1] == 77
    return _averaged(patch | (drawn[..., 0] + drawn[..., 1] == 0)), _averaged(patch) * (77 - SHADE)


def _drawn_by_gym(zoomed: int, wheel: int | None = None, turned: float = 0, rolled: float = 0) -> np.ndarray:
    """The car's body, with one wheel or none, as gym's own code draws it on green: uint8 (125, 250, 3)."""
    car = gym_racing.Car(Box2D.b2World((0, 0)), 0, 0, 0)
    car.drawlist = [car.hull]
    if wheel is not None:
        car.drawlist = [car.wheels[wheel], car.hull]
        car.wheels[wheel].angle, car.wheels[wheel].phase = turned, rolled
    surface = pygame.Surface((_RIGHT - _LEFT, _BOTTOM - _TOP))
    surface.fill((0, 255, 0))
    centre = (gym_racing.WINDOW_W / 2 - _LEFT, gym_racing.WINDOW_H / 4 - (gym_racing.WINDOW_H - _BOTTOM))
    car.draw(surface, _zoom(zoomed), centre, 0, draw_particles=False)
    return pygame.surfarray.array3d(surface).transpose(1, 0, 2)[::-1]


def _averaged(mask: np.ndarray) -> np.ndarray:
    """The share of each of our pixels that a mask over gym's pixels covers: (125, 250) to float32 (10, 6, 1)."""
    rows, columns = _averages()
    return (rows @ mask @ columns)[..., None]


@lru_cache(maxsize=1)
def _averages() -> tuple[np.ndarray, np.ndarray]:
    """What turns gym's pixels into ours in the box around the car, to 96 and then to 64: (10, 125), (250, 6)."""
    matrices = []
    for pixels in (gym_racing.WINDOW_H, gym_racing.WINDOW_W):
        matrix = np.eye(pixels, dtype=np.float32)
        for side in (gym_racing.STATE_H, SIZE):
            matrix = cv2.resize(matrix, (pixels, side), interpolation=cv2.INTER_AREA)
        matrices.append(matrix)
    return matrices[0][_BOX[0], _TOP:_BOTTOM], matrices[1][_BOX[1], _LEFT:_RIGHT].T


def _draw_bar(picture: np.ndarray, car: gym_racing.Car, score: float) -> None:
    """The black bar with speed, four wheels' spin, steering, turning, and the score; each a sprite for its length."""
    wheels = car.wheels
    bar = picture[_BAR]
    np.copyto(bar, _score(int(score)))
    vx, vy = car.hull.linearVelocity
    # Screen pixels per unit of each value, as in CarRacing._render_indicators; less than 1e-4 is not drawn.
    gauges = [("speed", math.floor(-0.4 * math.sqrt(vx * vx + vy * vy)))]
    gauges += [(i, math.floor(-0.2 * wheels[i].omega)) for i in range(4)]
    gauges += [("steering", math.floor(-250.0 * wheels[0].joint.angle))]
    gauges += [("turning", math.floor(-20.0 * car.hull.angularVelocity))]
    for gauge, pixels in gauges:
        cv2.add(bar, _gauge(gauge, pixels), bar)  # not past 255: the wheels' gauges touch each other


_UNITS = {"speed": -0.4, "steering": -250.0, "turning": -20.0}


@lru_cache(maxsize=5_000)
def _gauge(gauge: str | int, pixels: int) -> np.ndarray:
    """The bar with one gauge alone, as gym draws it: uint8 (8, 64, 3)."""
    value = (pixels + 1e-3) / _UNITS.get(gauge, -0.2) if pixels else 0.0
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
    return cv2.resize(scaled, (SIZE, 8), interpolation=cv2.INTER_AREA)

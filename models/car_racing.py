"""gym's CarRacing, drawn straight at 64×64.

gym draws 1000×800 pixels, scales them to 96×96, and the tutorial scales that to 64×64: nearly all of the time goes
into pixels that are thrown away. Here the track, physics, rewards and randomness are gym's to the last bit; the
drawing is ours. A picture is a cut-out of the track's texture (car_track.py) with the car and the gauges over it
(car_sprites.py).
"""

import math
import os
from typing import Any

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no screen needed

from models import car_sprites, car_track
from models.car_physics import Car, TileContacts
from models.car_track import SIZE, ZOOM_FRAMES
from pipeline.files import suppress_stderr

import cv2
import numpy as np

with suppress_stderr():  # gym's notice, once per process otherwise
    from Box2D import b2Filter
    from Box2D.b2 import fixtureDef
    from gym import spaces
    from gym.envs.box2d import car_dynamics
    from gym.envs.box2d import car_racing as gym_racing

MAX_STEPS = 1_000  # of an episode; gym.make's time limit
_TOUCHES_NOTHING = b2Filter(categoryBits=1, maskBits=0, groupIndex=0)
_tracks = car_track.TrackCache()


class CarRacing64(gym_racing.CarRacing):
    """gym's CarRacing-v2 with 64×64 pictures; observation uint8 (64, 64, 3), an episode ends after 1,000 frames.

    `renderer="gym"` is the reference: gym's own game and 96×96 picture, area-averaged. `renderer="fast"` is the same
    game drawn straight: the pictures differ by less than 0.5 of 255 on average. It knows gym's usual colours only.
    """

    car: Any  # gym's, or ours

    def __init__(self, renderer: str = "fast") -> None:
        if renderer not in ("fast", "gym"):
            raise ValueError(f"renderer must be 'fast' or 'gym', not {renderer!r}")
        super().__init__()
        self.fast = renderer == "fast"
        self.observation_space = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.frames = 0
        self._seed: int | None = None
        self._touched: list[int] = []  # tiles that are still to be drawn as touched

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start on the track of `seed` (gym's own track for that seed); returns (observation, {}).

        Raises ValueError with `domain_randomize` on the fast renderer.
        """
        if self.fast and self.domain_randomize:
            raise ValueError("domain_randomize needs CarRacing64('gym'): 'fast' draws gym's usual colours only")
        self.frames = 0
        self._seed = seed
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray | None) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One frame of 1/50 s: (observation, reward, left the field, finished the lap or out of time, {}).

        `action` (3,) is steering -1 to 1, gas and brake 0 to 1; None changes nothing and costs no reward.
        """
        if action is not None:
            self.frames += 1
            # Plain floats of 64 bits, or NumPy 2 would compute in float32 where NumPy 1 does in float64.
            action = np.asarray(action, np.float64).tolist()
        if self.fast:
            self._use_fast_car()
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated or self.frames >= MAX_STEPS, info

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

    def touch(self, tile: int) -> None:
        """Give a tile the colour of a touched one, in our pictures and in gym's."""
        self._touched.append(tile)
        polygon = self._polygon_of_tile[tile]
        self.road_poly[polygon] = (self.road_poly[polygon][0], self.road_color)

    def _use_fast_car(self) -> None:
        """Make gym's own new car, of `reset` or `place`, one of ours: it has no other data."""
        if type(self.car) is not Car:
            self.car.__class__ = Car
            for fixture in self.car.hull.fixtures:
                fixture.filterData = _TOUCHES_NOTHING
            for wheel in self.car.wheels:
                wheel.fixtures[0].userData = wheel
        self.car.leaves_skid_marks = self.render_mode in ("human", "rgb_array")  # other pictures don't show them

    def _create_track(self) -> bool:
        if not self.fast:
            return super()._create_track()
        track = _tracks.get(self._seed, self.np_random)
        self.track, self.road_poly = track.points, track.polygons.copy()
        self._polygon_of_tile = track.polygon_of_tile
        self._ground, self._touched = car_track.Ground(track), []
        contacts = TileContacts(self, len(track.tiles))
        # gym has a body for each tile. One with all of them is the same to a car, and half of the work.
        ground = self.world.CreateStaticBody()
        definition = fixtureDef(shape=track.tiles[0], isSensor=True)
        for shape, tile in zip(track.tiles, contacts.tiles):
            definition.shape, definition.userData = shape, tile
            ground.CreateFixture(definition)
            shape.thisown = True  # Box2D copied it; its Python half would never free it now
        self.road = [ground]
        self.contactListener_keepref = self.world.contactListener = contacts
        return True

    def _render(self, mode: str) -> np.ndarray | bool | None:
        if mode != "state_pixels":
            return super()._render(mode)
        if not self.fast:
            return cv2.resize(super()._render(mode), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        for tile in self._touched:
            self._ground.touch(tile)
        self._touched.clear()
        frame = min(round(self.t * gym_racing.FPS), ZOOM_FRAMES)
        picture = np.empty((SIZE, SIZE, 3), np.uint8)
        hull = self.car.hull
        position = hull.position
        self._ground.draw(picture, frame, position.x, position.y, hull.angle)
        car_sprites.draw_car(picture, self.car, frame)
        car_sprites.draw_bar(picture, self.car, self.reward)
        return picture

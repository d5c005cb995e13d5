"""gym's car, with the same arithmetic on plain Python floats: bit-identical, and three times as fast.

gym's `Car.step` does its arithmetic on NumPy scalars and asks Box2D twice for each wheel's heading.
"""

import math
from typing import NamedTuple

from pipeline.files import suppress_stderr

with suppress_stderr():  # gym's notice, once per process otherwise
    import Box2D
    from gym.envs.box2d import car_dynamics, car_racing

DAMPING = 205000 * car_dynamics.SIZE * car_dynamics.SIZE  # gym's coefficient against oscillation
BRAKE_FORCE = 15  # rad/s in each frame
ROAD_LIMIT = car_dynamics.FRICTION_LIMIT * 1.0  # friction of a tile is always 1
GRASS_LIMIT = car_dynamics.FRICTION_LIMIT * 0.6


class Car(car_dynamics.Car):
    """gym's car. Positions, velocities and everything that follows from them are gym's to the last bit.

    Controls must be Python floats. With `leaves_skid_marks`, gym's own slower code runs, which records them.
    """

    leaves_skid_marks = False

    def gas(self, gas: float) -> None:
        """Accelerate with the rear wheels, 0 to 1: it rises by 0.1 in a frame at most, and falls at once."""
        gas = min(max(gas, 0.0), 1.0)
        for wheel in self.wheels[2:]:
            wheel.gas += min(gas - wheel.gas, 0.1)

    def step(self, dt: float) -> None:
        """Set the steering motors, and apply this frame's forces to the four wheels."""
        if self.leaves_skid_marks:
            super().step(dt)
            return
        power = dt * car_dynamics.ENGINE_POWER
        inertia = car_dynamics.WHEEL_MOMENT_OF_INERTIA
        for wheel in self.wheels:
            joint, omega, radius = wheel.joint, wheel.omega, wheel.wheel_rad
            turn = wheel.steer - joint.angle
            speed = min(50.0 * abs(turn), 3.0)
            joint.motorSpeed = -speed if turn < 0 else speed

            heading = wheel.GetWorldVector((1, 0))  # to the right
            cos, sin = heading.x, heading.y  # ahead is (-sin, cos)
            velocity = wheel.linearVelocity
            vx, vy = velocity.x, velocity.y

            omega += power * wheel.gas / inertia / (abs(omega) + 5.0)
            self.fuel_spent += power * wheel.gas
            if wheel.brake >= 0.9:
                omega = 0
            elif wheel.brake > 0:
                slowed = min(BRAKE_FORCE * wheel.brake, abs(omega))
                omega += -slowed if omega > 0 else slowed
            wheel.phase += omega * dt

            ahead = (-(-sin * vx + cos * vy) + omega * radius) * DAMPING
            side = -(cos * vx + sin * vy) * DAMPING
            force = math.sqrt(ahead * ahead + side * side)
            limit = ROAD_LIMIT if wheel.tiles else GRASS_LIMIT
            if force > limit:
                ahead = ahead / force * limit
                side = side / force * limit
            wheel.omega = omega - dt * ahead * radius / inertia
            wheel.ApplyForceToCenter((side * cos + ahead * -sin, side * sin + ahead * cos), True)


class Tile(NamedTuple):
    """What a wheel knows of a tile that it is on."""

    number: int
    road_friction: float = 1.0


class TileContacts(Box2D.b2ContactListener):
    """gym's `FrictionDetector` for tiles that are fixtures of one body: who is on which tile, and the rewards.

    A fixture's `userData` is its tile or its wheel. gym lets the hull colour a tile too, half a frame before the front
    wheels do: that is left out, as half of all contacts would be the hull's (`CarRacing64` tells Box2D so).
    """

    def __init__(self, game: car_racing.CarRacing, tiles: int) -> None:
        super().__init__()
        self.game, self.visited = game, bytearray(tiles)
        while len(_tiles) < tiles:
            _tiles.append(Tile(len(_tiles)))
        self.tiles = _tiles[:tiles]

    def BeginContact(self, contact: Box2D.b2Contact) -> None:
        """Called by Box2D when a wheel comes upon a tile: its first visit is rewarded."""
        wheel, tile = _wheel_and_tile(contact)
        wheel.tiles.add(tile)
        if self.visited[tile.number]:
            return
        self.visited[tile.number] = True
        game = self.game
        game.reward += 1000.0 / len(self.visited)
        game.tile_visited_count += 1
        if tile.number == 0 and game.tile_visited_count / len(self.visited) > game.lap_complete_percent:
            game.new_lap = True
        game.touch(tile.number)

    def EndContact(self, contact: Box2D.b2Contact) -> None:
        """Called by Box2D when a wheel leaves a tile."""
        wheel, tile = _wheel_and_tile(contact)
        wheel.tiles.remove(tile)


_tiles: list[Tile] = []  # shared by all games: what Box2D keeps as userData is never freed


def _wheel_and_tile(contact: Box2D.b2Contact) -> tuple[Box2D.b2Body, Tile]:
    one, other = contact.fixtureA.userData, contact.fixtureB.userData
    return (other, one) if type(one) is Tile else (one, other)

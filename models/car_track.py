"""A track of gym's CarRacing as a texture: what its seed decides, made once and shared by all cars that drive on it.

The camera looks at a flat world, so a picture of it is a texture turned, scaled and cut out by one affine warp. The
texture has about as many pixels to a unit as the picture, so that bilinear samples are as sharp as gym's averages.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, lru_cache
from types import SimpleNamespace

from pipeline.files import suppress_stderr

import cv2
import numpy as np

with suppress_stderr():  # gym's notice, once per process otherwise
    import Box2D
    from gym.envs.box2d import car_racing as gym_racing

SIZE = 64  # of the picture; its lowest eighth is the bar with the gauges
GROUND = 56  # rows above the bar
PIXELS_PER_UNIT = 1.5  # of the texture; the picture has 1.04 across and 1.30 along
TEXTURE_SIZE = 1024
TEXTURE_HALF_SIZE = TEXTURE_SIZE / PIXELS_PER_UNIT / 2  # units: just beyond the field, all is black out there
SUPERSAMPLING = 2  # polygons are drawn so much larger, then averaged
ANTIALIAS_MARGIN = 0.5 / (PIXELS_PER_UNIT * SUPERSAMPLING)  # units by which OpenCV's smooth edges widen each side
ROUNDING_OFFSET = 2  # pygame's smoothscale rounds down, twice: gym's flat areas are this much too dark
MARGIN = 64  # pixels of the texture around the road: a picture rarely reaches beyond
MIPMAP_LEVELS = 5  # the field halved so often, for the zoom of the first second
ZOOM_FRAMES = gym_racing.FPS  # the camera flies in for one second
TRACKS_KEPT = 8  # in memory, 2 MB each
FIELD_COLOUR, GRASS_COLOUR = (
    [channel - ROUNDING_OFFSET for channel in rgb] for rgb in ((102, 204, 102), (102, 230, 102))
)


class Track:
    """gym's track for a random generator: its points and polygons, its tiles as Box2D shapes, and its texture.

    Raises what gym raises. The generator is left as gym leaves it, and remembered so (`random_state`).
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.points, self.polygons, tiles = _generate(random)
        self.random_state = random.bit_generator.state
        self.tiles = [Box2D.b2PolygonShape(vertices=corners) for corners in tiles]
        # In between are kerbs, with colours in tuples.
        self.polygon_of_tile = [i for i, (_, colour) in enumerate(self.polygons) if isinstance(colour, np.ndarray)]
        corners = _to_pixels(_narrowed(np.array([corners for corners, _ in self.polygons])))
        origin, end = corners.min((0, 1)).astype(int) - MARGIN, corners.max((0, 1)).astype(int) + MARGIN + 1
        self.origin, self._end = origin.tolist(), end.tolist()  # of the texture, in pixels of the field
        self._corners = corners - origin
        tile_corners = _to_pixels(np.array(tiles)) - origin
        low, high = tile_corners.min(1).astype(int) - 1, tile_corners.max(1).astype(int) + 2
        self.tile_boxes = np.stack((low, high), 1).tolist()
        self.tile_points = _sixteenths(tile_corners - low[:, None])

    @cached_property
    def texture(self) -> np.ndarray:
        """The part of the field with the road, without a touched tile: uint8 (rows, columns, 3), about 1 MB."""
        (left, bottom), (right, top) = np.multiply((self.origin, self._end), SUPERSAMPLING)
        large = _field()[0][bottom:top, left:right].copy()
        for points, (_, colour) in zip(_sixteenths(self._corners * SUPERSAMPLING), self.polygons):
            colour = [max(int(channel) - ROUNDING_OFFSET, 0) for channel in colour]
            cv2.fillConvexPoly(large, points, colour, cv2.LINE_AA, shift=4)
        return _halved(large)

    @cached_property
    def mipmaps(self) -> list[np.ndarray]:
        """The field with the road, halved once, twice and so on: uint8 (512, 512, 3), (256, 256, 3) …"""
        (left, bottom), (right, top) = self.origin, self._end
        field = _field()[1].copy()
        field[bottom:top, left:right] = self.texture
        levels = [_halved(field)]
        for _ in range(MIPMAP_LEVELS - 1):
            levels.append(_halved(levels[-1]))
        return levels


class Ground:
    """What a car sees of its track. It has a copy of the texture, where the tiles that it touched lose their tint.

    It holds no more of the track than it needs, and the mipmaps only until the zoom is over.
    """

    def __init__(self, track: Track) -> None:
        self.texture, self.origin = track.texture.copy(), track.origin
        self._mipmaps = track.mipmaps
        self._tile_boxes, self._tile_points = track.tile_boxes, track.tile_points

    def touch(self, tile: int) -> None:
        """Take off the tint of an untouched tile (2 or 5 of 255)."""
        tint = int(0.01 * (tile % 3) * 255)
        if not tint:
            return
        (left, bottom), (right, top) = self._tile_boxes[tile]
        mask = np.zeros((top - bottom, right - left, 3), np.uint8)
        cv2.fillConvexPoly(mask, self._tile_points[tile], (tint,) * 3, cv2.LINE_AA, shift=4)
        place = self.texture[bottom:top, left:right]
        cv2.subtract(place, mask, place)  # not below 0: the tint may reach into a red kerb

    def draw(self, picture: np.ndarray, frame: int, x: float, y: float, angle: float) -> None:
        """Draw the world around a car at (x, y) that faces `angle` into a picture, uint8 (64, 64, 3), all but the bar.

        `frame` is how far the zoom has come, up to `ZOOM_FRAMES`; it must not go back once it is in.
        The car is in the middle, a quarter from the bottom.
        """
        level, pixels, across, along = _scales(frame)
        cos, sin = math.cos(angle), math.sin(angle)
        # The picture's first pixel is this one of the field, and so far it is to the next column and row.
        directions = a, b, c, d = cos * across, sin * along, sin * across, -cos * along
        left, top = 0.5 - SIZE / 2, 0.5 - SIZE * 3 / 4
        column = (x + TEXTURE_HALF_SIZE) * pixels - 0.5 + a * left + b * top
        row = (y + TEXTURE_HALF_SIZE) * pixels - 0.5 + c * left + d * top
        ground = picture[:GROUND]
        if level:
            _warp(self._mipmaps[level - 1], column, row, directions, ground)
            return
        self._mipmaps = []
        texture, (left, bottom) = self.texture, self.origin
        (x_low, x_high), (y_low, y_high) = _reach(column - left, a, b), _reach(row - bottom, c, d)
        if x_low < 0 or y_low < 0 or x_high > texture.shape[1] or y_high > texture.shape[0]:
            _warp(_field()[1], column, row, directions, ground)  # what the texture does not cover
        else:  # a copy of what it needs: memory read row by row is faster than in the order of the warp
            texture = texture[y_low:y_high, x_low:x_high].copy()
            left, bottom = left + x_low, bottom + y_low
        _warp(texture, column - left, row - bottom, directions, ground, cv2.BORDER_TRANSPARENT)


def _reach(start: float, across: float, along: float) -> tuple[int, int]:
    """In one direction of a texture: the first pixel that a picture needs, and the one after the last."""
    across, along = across * (SIZE - 1), along * (GROUND - 1)
    return math.floor(start + min(across, 0) + min(along, 0)), math.floor(start + max(across, 0) + max(along, 0)) + 2


class TrackCache:
    """The last few tracks by seed: the candidates of a generation share theirs."""

    def __init__(self) -> None:
        self.tracks: OrderedDict[int, Track] = OrderedDict()

    def get(self, seed: int | None, random: np.random.Generator) -> Track:
        """The track that gym makes with this generator, fresh from `seed`; None is for one that is not fresh."""
        if seed is None:
            return Track(random)
        if seed in self.tracks:
            self.tracks.move_to_end(seed)
            random.bit_generator.state = self.tracks[seed].random_state
        else:
            self.tracks[seed] = Track(random)
            if len(self.tracks) > TRACKS_KEPT:
                self.tracks.popitem(last=False)
        return self.tracks[seed]


def _generate(random: np.random.Generator) -> tuple[list, list, list]:
    """gym's own code, with a stand-in for the game that notes the tiles instead of making bodies of them."""
    tiles = []
    tile_shape = SimpleNamespace(vertices=[])

    def note_tile(fixtures: object) -> SimpleNamespace:
        tiles.append(tile_shape.vertices)
        return SimpleNamespace(fixtures=[SimpleNamespace()])

    game = SimpleNamespace(
        np_random=random,
        verbose=False,
        road_color=np.array([102, 102, 102]),
        fd_tile=SimpleNamespace(shape=tile_shape),
        world=SimpleNamespace(CreateStaticBody=note_tile),
        road_poly=[],
    )
    while not gym_racing.CarRacing._create_track(game):
        pass
    return game.track, game.road_poly, tiles


def _to_pixels(points: np.ndarray) -> np.ndarray:
    """Points in the world (…, 2) as points in the texture."""
    return (points + TEXTURE_HALF_SIZE) * PIXELS_PER_UNIT


def _sixteenths(pixels: np.ndarray) -> np.ndarray:
    """Points in a texture, for OpenCV: whole sixteenths of a pixel, from the middle of the first one."""
    return np.round((pixels - 0.5) * 16).astype(np.int32)


def _halved(texture: np.ndarray) -> np.ndarray:
    return cv2.resize(texture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def _narrowed(pieces: np.ndarray) -> np.ndarray:
    """Pieces of road or kerb (n, 4, 2) without what smooth edges add to the left and right of them.

    The corners of each are left, right, right ahead, left ahead. Ahead of it comes the next: nothing to take off.
    """
    left, right = pieces[:, [0, 3]], pieces[:, [1, 2]]
    width = np.linalg.norm(right - left, axis=2, keepdims=True)
    # gym has a kerb of no width where a bend is none.
    inwards = (right - left) * (ANTIALIAS_MARGIN / np.maximum(width, 2 * ANTIALIAS_MARGIN))
    left, right = left + inwards, right - inwards
    return np.stack((left[:, 0], right[:, 0], right[:, 1], left[:, 1]), 1)


@lru_cache(maxsize=1)
def _field() -> tuple[np.ndarray, np.ndarray]:
    """The field without a road (black, ground, and gym's pattern of grass): the large texture, and halved."""
    large = np.zeros((TEXTURE_SIZE * SUPERSAMPLING, TEXTURE_SIZE * SUPERSAMPLING, 3), np.uint8)

    def fill(corners: np.ndarray, colour: Sequence[int]) -> None:
        points = _sixteenths(_to_pixels(corners) * SUPERSAMPLING)
        cv2.fillConvexPoly(large, points, colour, cv2.LINE_AA, shift=4)

    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    fill((2 * square - 1) * gym_racing.PLAYFIELD, FIELD_COLOUR)
    for x in range(-20, 20, 2):
        for y in range(-20, 20, 2):
            corners = (square + np.array([x, y])) * gym_racing.GRASS_DIM
            fill(corners + ANTIALIAS_MARGIN * (1 - 2 * square), GRASS_COLOUR)
    return large, _halved(large)


def zoom(frame: int) -> float:
    """Pixels of gym's window per world unit, `frame` frames (50 at most) into the zoom (CarRacing._render)."""
    t = frame / gym_racing.FPS
    return 0.1 * gym_racing.SCALE * max(1 - t, 0) + gym_racing.ZOOM * gym_racing.SCALE * min(t, 1)


@lru_cache(maxsize=ZOOM_FRAMES + 1)
def _scales(frame: int) -> tuple[int, float, float, float]:
    """How often the field is halved, its pixels per unit, and how many of them the picture's are across and along."""
    level = min(MIPMAP_LEVELS, round(math.log2(zoom(ZOOM_FRAMES) / zoom(frame))))
    pixels = PIXELS_PER_UNIT / 2**level
    return level, pixels, *(pixels * side / SIZE / zoom(frame) for side in (gym_racing.WINDOW_W, gym_racing.WINDOW_H))


def _warp(
    source: np.ndarray,
    column: float,
    row: float,
    directions: tuple[float, float, float, float],
    picture: np.ndarray,
    border: int = cv2.BORDER_CONSTANT,
) -> None:
    """Fill a picture's ground from a texture, from (column, row) on."""
    a, b, c, d = directions
    matrix = np.array(((a, b, column), (c, d, row)))
    cv2.warpAffine(source, matrix, (SIZE, GROUND), picture, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, border)

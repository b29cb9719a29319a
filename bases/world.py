"""A procedural world of moving scenes: what the tiny bases learn from.

A scene is a small description (background, camera, sprites), drawn from a random generator. From the same description
come the frames, at any times, and the caption. Nothing here is random after `sample_scene`: rendering is a pure
function of scene, times and texture library.

Photographs that ship with the scikit-image wheel (public domain or CC0 by its documentation) are textures when that
package is installed; the shipped weights were trained with them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 96, 64
OVERSAMPLING = 2  # scenes are drawn at twice the size and shrunk by area, as a camera's pixels average light
TEXTURE_SIDE = 320  # pixels of a texture's side, in the drawn (oversampled) scale
PHOTOGRAPHS = (  # public domain or CC0
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "rocket.jpg",
    "retina.jpg",
)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 45, 40),
    "green": (60, 170, 70),
    "blue": (50, 90, 210),
    "yellow": (230, 205, 60),
    "purple": (140, 70, 180),
    "orange": (235, 135, 45),
    "white": (235, 235, 230),
    "black": (25, 25, 30),
}
SHAPES = ("disc", "square", "triangle", "star", "blob", "ellipse")
DIRECTIONS = ("right", "down and right", "down", "down and left", "left", "up and left", "up", "up and right")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Sprite:
    """One moving thing. Lengths are in output pixels, angles in radians, rates per unit of time."""

    shape: str
    colour: str
    texture: int
    texture_share: float  # 0: flat colour, 1: texture only
    radius: float
    start: tuple[float, float]
    velocity: tuple[float, float]
    acceleration: tuple[float, float]
    angle: float
    spin: float
    growth: float  # radius is multiplied by exp(growth * t)
    deform: float  # amplitude of the moving part of the contour, as a share of the radius
    phase: float


@dataclass(frozen=True)
class Scene:
    """What a clip shows. `pan` is the background's motion over one unit of time, in output pixels."""

    background: int
    tint: tuple[float, float, float]
    offset: tuple[float, float]
    scale: float
    pan: tuple[float, float]
    pan_acceleration: tuple[float, float]
    zoom: float
    roll: float
    gain: float  # brightness is multiplied by 1 + gain * t
    sprites: tuple[Sprite, ...]
    seed: int

    @property
    def caption(self) -> str:
        """One English sentence: the sprites with their colours, shapes and directions, then the camera."""
        parts = [f"{_looks(sprite)} {_motion(sprite.velocity)}" for sprite in self.sprites]
        text = " and ".join(parts) if parts else "a textured scene"
        camera = []
        if np.hypot(*self.pan) >= 2:
            camera.append(f"the view moves {_direction(self.pan)}")
        if abs(self.zoom) >= 0.05:
            camera.append("the camera zooms in" if self.zoom > 0 else "the camera zooms out")
        if abs(self.roll) >= 0.05:
            camera.append("the camera rolls")
        return ", ".join([text, *camera])


def _direction(velocity: tuple[float, float]) -> str:
    """The nearest of eight directions, y pointing down."""
    return DIRECTIONS[int(np.round(np.arctan2(velocity[1], velocity[0]) / (np.pi / 4))) % 8]


def _looks(sprite: Sprite) -> str:
    """Colour and shape; a colour is named only where the sprite's own colour outweighs its texture."""
    look = sprite.colour if sprite.texture_share < 0.5 else "textured"
    return f"{'an' if look[0] in 'aeiou' else 'a'} {look} {sprite.shape}"


def _motion(velocity: tuple[float, float]) -> str:
    return f"moves {_direction(velocity)}" if np.hypot(*velocity) >= 2 else "stays"


def _noise(rng: np.random.Generator, exponent: float) -> NDArray[np.float32]:
    """A colour image whose amplitude falls as 1/frequency**exponent, `[side, side, 3]`, about 0..255."""
    side = TEXTURE_SIDE
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    amplitude = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / side) ** exponent
    spectrum = np.fft.rfft2(rng.standard_normal((3, side, side))) * amplitude
    planes = np.fft.irfft2(spectrum, s=(side, side))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    mix = np.eye(3) * rng.uniform(0.1, 0.7) + np.ones((3, 1)) * rng.normal(0, 1, (1, 3)) * 0.6
    return (np.einsum("ij,jyx->yxi", mix, planes) * rng.uniform(25, 60) + rng.uniform(60, 190, 3)).astype(np.float32)


def _mosaic(rng: np.random.Generator) -> NDArray[np.float32]:
    """Flat cells with sharp edges over soft noise, `[side, side, 3]`."""
    side, cells = TEXTURE_SIDE, int(rng.integers(12, 160))
    seeds = np.ones((side, side), np.uint8)
    seeds[rng.integers(0, side, cells), rng.integers(0, side, cells)] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5)
    palette = rng.uniform(20, 235, (int(labels.max()) + 1, 3)).astype(np.float32)
    return 0.75 * palette[labels] + 0.25 * _noise(rng, 1.2)


def _pattern(rng: np.random.Generator) -> NDArray[np.float32]:
    """Stripes or checks between two colours on a gradient, `[side, side, 3]`."""
    side = TEXTURE_SIDE
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(10, 60)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(2 * np.pi * u / period) * (np.sin(2 * np.pi * v / period) if rng.random() < 0.5 else 1.0)
    share = 0.5 + 0.5 * np.tanh(wave * rng.uniform(1, 6))[..., None]
    low, high, slope = rng.uniform(20, 235, 3), rng.uniform(20, 235, 3), rng.normal(0, 40, 3)
    return (low + (high - low) * share + slope * ((x + y) / side - 1)[..., None]).astype(np.float32)


def photograph_folder() -> Path | None:
    """Where the scikit-image wheel keeps its pictures, without importing it; None when it is not installed."""
    spec = importlib.util.find_spec("skimage")
    return Path(spec.origin).parent / "data" if spec and spec.origin else None


def build_textures(seed: int, count: int = 72, photographs: Path | None = None) -> list[Image]:
    """A library of textures, each uint8 `[320, 320, 3]`: a third photographs when their folder is given."""
    rng = np.random.default_rng(seed)
    pictures = []
    if photographs is not None:
        for name in PHOTOGRAPHS:
            picture = cv2.imread(str(photographs / name), cv2.IMREAD_COLOR_RGB)
            if picture is None:
                raise FileNotFoundError(f"texture photograph {name} is missing; is scikit-image installed whole?")
            pictures.append(picture)
    textures: list[Image] = []
    for index in range(count):
        kind = index % 6
        if pictures and kind in (0, 1):
            picture = pictures[(index // 6 * 2 + kind) % len(pictures)]
            side = int(rng.uniform(0.45, 1.0) * min(picture.shape[:2]))
            top, left = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
            crop = picture[top : top + side, left : left + side]
            how = cv2.INTER_AREA if side > TEXTURE_SIDE else cv2.INTER_CUBIC
            texture = cv2.resize(crop, (TEXTURE_SIDE, TEXTURE_SIDE), interpolation=how).astype(np.float32)
            texture = np.rot90(texture, int(rng.integers(4)))
        elif kind in (0, 2, 5):
            texture = _noise(rng, rng.uniform(0.9, 2.0))
        elif kind in (1, 3):
            texture = _mosaic(rng)
        else:
            texture = _pattern(rng)
        grey = texture @ np.float32([0.299, 0.587, 0.114])
        texture = grey[..., None] + (texture - grey[..., None]) * rng.uniform(0.1, 0.8)  # as pale as most photographs
        textures.append(np.ascontiguousarray(np.clip(texture, 0, 255).astype(np.uint8)))
    return textures


def sample_scene(
    rng: np.random.Generator, textures: int, displacement: tuple[float, float] = (0.0, 28.0), all_move: bool = False
) -> Scene:
    """Draw a scene in which the fastest thing moves by `displacement` pixels (low, high) between time 0 and 1.

    With `all_move` the camera and each of one to three sprites move by that much, each on its own.
    """
    top = rng.uniform(*displacement)
    kind = rng.choice(["camera", "sprites", "both"], p=[0.25, 0.35, 0.4])
    number = 0 if kind == "camera" else int(rng.integers(1, 4))
    speeds = top * np.concatenate([[1.0], rng.uniform(0, 1, number)])
    if kind == "sprites":  # the first sprite is the fastest and the camera rests
        speeds = np.concatenate([[0.0], [top], top * rng.uniform(0, 1, number - 1)])
    if all_move:
        kind, number = "both", int(rng.integers(1, 4))
        speeds = rng.uniform(*displacement, number + 1)

    def vector(length: float) -> tuple[float, float]:
        angle = rng.uniform(0, 2 * np.pi)
        return float(length * np.cos(angle)), float(length * np.sin(angle))

    sprites = []
    for speed in speeds[1:]:
        velocity = vector(float(speed))
        middle = rng.uniform(8, WIDTH - 8), rng.uniform(6, HEIGHT - 6)
        sprites.append(
            Sprite(
                shape=str(rng.choice(SHAPES)),
                colour=str(rng.choice(list(COLOURS))),
                texture=int(rng.integers(textures)),
                texture_share=float(rng.choice([0.0, 0.35, 0.8, 1.0])),
                radius=float(rng.uniform(5, 20)),
                start=(float(middle[0] - velocity[0] / 2), float(middle[1] - velocity[1] / 2)),
                velocity=velocity,
                acceleration=vector(float(speed * rng.uniform(0, 0.3))),
                angle=float(rng.uniform(0, 2 * np.pi)),
                spin=float(rng.normal(0, 0.5) if rng.random() < 0.5 else 0.0),
                growth=float(rng.normal(0, 0.15) if rng.random() < 0.4 else 0.0),
                deform=float(rng.uniform(0.05, 0.25) if rng.random() < 0.3 else 0.0),
                phase=float(rng.uniform(0, 2 * np.pi)),
            )
        )
    turns = kind != "sprites"
    return Scene(
        background=int(rng.integers(textures)),
        tint=tuple(float(v) for v in rng.uniform(0.85, 1.1, 3)),
        offset=(float(rng.uniform(-25, 25)), float(rng.uniform(-25, 25))),
        scale=float(rng.uniform(0.8, 2.0)),
        pan=vector(float(speeds[0])),
        pan_acceleration=vector(float(speeds[0] * rng.uniform(0, 0.2))),
        zoom=float(rng.normal(0, 0.12) if turns and rng.random() < 0.4 else 0.0),
        roll=float(rng.normal(0, 0.1) if turns and rng.random() < 0.3 else 0.0),
        gain=float(rng.normal(0, 0.08) if rng.random() < 0.2 else 0.0),
        sprites=tuple(sprites),
        seed=int(rng.integers(2**31)),
    )


def _contour(sprite: Sprite, t: float) -> NDArray[np.float64]:
    """The outline at time t around the origin, in units of the radius, `[72, 2]`."""
    theta = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    if sprite.shape == "square":
        r = 0.8 / np.maximum(np.abs(np.cos(theta)), np.abs(np.sin(theta)))
    elif sprite.shape == "triangle":
        r = 0.55 / np.cos((theta % (2 * np.pi / 3)) - np.pi / 3)
    elif sprite.shape == "star":
        r = 0.72 + 0.28 * np.cos(5 * theta)
    elif sprite.shape == "blob":
        r = 0.8 + 0.14 * np.cos(2 * theta + sprite.phase) + 0.1 * np.cos(3 * theta - 2 * sprite.phase)
    elif sprite.shape == "ellipse":
        r = 0.6 / np.sqrt((0.6 * np.cos(theta)) ** 2 + np.sin(theta) ** 2)
    else:
        r = np.ones_like(theta)
    r = r * (1 + sprite.deform * np.cos(3 * theta + sprite.phase + 4 * t))
    return np.stack([r * np.cos(theta), r * np.sin(theta)], axis=1)


def _affine(angle: float, scale: float, centre: tuple[float, float]) -> NDArray[np.float64]:
    """The 3x3 map that turns and scales about the origin, then moves it to `centre`."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c, -s, centre[0]], [s, c, centre[1]], [0, 0, 1.0]])


def render(scene: Scene, times: NDArray[np.float64], textures: list[Image]) -> Image:
    """Draw the scene at each time, uint8 RGB `[F, 64, 96, 3]`."""
    frames = np.empty((len(times), HEIGHT, WIDTH, 3), np.uint8)
    size = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)
    up = np.diag([OVERSAMPLING, OVERSAMPLING, 1.0])
    to_middle = _affine(0, 1, (-TEXTURE_SIDE / 2, -TEXTURE_SIDE / 2))
    for index, t in enumerate(float(v) for v in times):
        shift = tuple(p * t + a * t * (t - 1) for p, a in zip(scene.pan, scene.pan_acceleration, strict=True))
        camera = _affine(scene.roll * (t - 0.5), float(np.exp(scene.zoom * (t - 0.5))), (0, 0))
        centre = _affine(0, 1, (WIDTH / 2, HEIGHT / 2))
        place = _affine(0, scene.scale / OVERSAMPLING, tuple(o + s for o, s in zip(scene.offset, shift, strict=True)))
        matrix = up @ centre @ camera @ place @ to_middle
        flags = cv2.INTER_LINEAR if scene.scale >= 0.9 else cv2.INTER_AREA
        image = cv2.warpAffine(textures[scene.background], matrix[:2], size, flags=flags, borderMode=cv2.BORDER_REFLECT)
        image = image.astype(np.float32) * np.float32(scene.tint)
        for sprite in scene.sprites:
            x, y = (
                p + v * t + a * t * (t - 1)
                for p, v, a in zip(sprite.start, sprite.velocity, sprite.acceleration, strict=True)
            )
            radius = sprite.radius * float(np.exp(sprite.growth * (t - 0.5)))
            local = _affine(sprite.angle + sprite.spin * t, radius, (x - WIDTH / 2, y - HEIGHT / 2))
            matrix = up @ centre @ camera @ local
            outline = _contour(sprite, t) @ matrix[:2, :2].T + matrix[:2, 2]
            mask = np.zeros((size[1], size[0]), np.uint8)
            cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
            colour = np.float32(COLOURS[sprite.colour])
            if sprite.texture_share > 0:
                skin = (matrix @ _affine(0, 1 / (12 * OVERSAMPLING), (0, 0)) @ to_middle)[:2]
                paint = cv2.warpAffine(textures[sprite.texture], skin, size, borderMode=cv2.BORDER_REFLECT)
                colour = colour * (1 - sprite.texture_share) + paint * sprite.texture_share
            weight = (mask.astype(np.float32) / 255)[..., None]
            image += (colour - image) * weight
        image *= 1 + scene.gain * t
        small = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        frames[index] = np.clip(np.round(small), 0, 255).astype(np.uint8)
    return frames


def sample_clip(
    rng: np.random.Generator,
    textures: list[Image],
    frames: int,
    displacement: tuple[float, float] = (0.0, 28.0),
    all_move: bool = False,
) -> tuple[Image, Scene]:
    """Draw a scene (`sample_scene`) and render `frames` frames over time 0..1: uint8 `[F, 64, 96, 3]` and the scene."""
    scene = sample_scene(rng, len(textures), displacement, all_move)
    return render(scene, np.linspace(0, 1, frames), textures), scene

"""Captioned scenes for tiny-easyanimate: one sprite of a named colour and shape crosses a pale background."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from world import COLOURS, DIRECTIONS, HEIGHT, SHAPES, WIDTH, Scene, sample_scene


def pale(textures: list[np.ndarray]) -> list[np.ndarray]:
    """The textures nearly grey and at half contrast, so that a sprite's colour is the only strong one."""
    faded = []
    for texture in textures:
        grey = texture.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
        mixed = 0.85 * grey[..., None] + 0.15 * texture
        faded.append(np.clip(64 + 0.5 * mixed, 0, 255).astype(np.uint8))
    return faded


def is_held_out(colour: str, shape: str, direction: str) -> bool:
    """Whether this combination, one in five, is kept for the evaluation."""
    return (list(COLOURS).index(colour) + SHAPES.index(shape) + DIRECTIONS.index(direction)) % 5 == 0


def draw_names(rng: np.random.Generator, held_out: bool) -> tuple[str, str, str]:
    """A colour, a shape and a direction, trained on or held out."""
    while True:
        names = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), str(rng.choice(DIRECTIONS))
        if is_held_out(*names) == held_out:
            return names


def crossing_scene(rng: np.random.Generator, textures: int, colour: str, shape: str, direction: str) -> Scene:
    """A scene in which one sprite crosses the middle of the view by 16 to 44 pixels, before a resting camera."""
    while True:
        scene = sample_scene(rng, textures, (1.0, 1.0))
        if scene.sprites:
            break
    length = rng.uniform(16, 44)
    angle = DIRECTIONS.index(direction) * math.pi / 4 + rng.uniform(-0.25, 0.25)
    velocity = float(length * math.cos(angle)), float(length * math.sin(angle))
    middle = WIDTH / 2 + rng.uniform(-14, 14), HEIGHT / 2 + rng.uniform(-8, 8)
    sprite = replace(
        scene.sprites[0],
        shape=shape,
        colour=colour,
        texture_share=0.0,
        radius=float(rng.uniform(9, 16)),
        start=(float(middle[0] - velocity[0] / 2), float(middle[1] - velocity[1] / 2)),
        velocity=velocity,
        acceleration=(0.0, 0.0),
    )
    return replace(scene, pan=(0.0, 0.0), pan_acceleration=(0.0, 0.0), zoom=0.0, roll=0.0, gain=0.0, sprites=(sprite,))

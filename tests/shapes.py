"""Made-up pictures of outlined shapes, a folder for each class, upright or turned and moved at random."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

STROKES = {  # lines through points in [-1, 1], x before y; either shape also in a mirror, which no turn undoes
    "chair": (((-0.5, -1), (-0.5, 1)), ((-0.5, 0), (0.5, 0), (0.5, 1))),
    "chair-mirrored": (((0.5, -1), (0.5, 1)), ((0.5, 0), (-0.5, 0), (-0.5, 1))),
    "flag": (((-0.5, 1), (-0.5, -1), (0.6, -0.5), (-0.5, 0)),),
    "flag-mirrored": (((0.5, 1), (0.5, -1), (-0.6, -0.5), (0.5, 0)),),
}
SIZE, SCALE = 40, 3  # pixels of a picture's side; drawn three times as large


def shape(name: str, random: np.random.Generator, turned: bool) -> Image.Image:
    """A shape in grey on a dark ground with a little noise."""
    angle = random.uniform(-np.pi / 2, np.pi / 2) if turned else random.uniform(-0.05, 0.05)
    size = random.uniform(0.4, 0.7) * SIZE / 2 if turned else 0.6 * SIZE / 2
    centre = SIZE / 2 + random.uniform(-1, 1, 2) * (SIZE / 2 - size if turned else 1)
    turn = size * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    image = Image.new("L", (SIZE * SCALE, SIZE * SCALE), 30)
    draw = ImageDraw.Draw(image)
    for line in STROKES[name]:
        points = SCALE * (np.array(line, float) @ turn + centre)
        draw.line([tuple(point) for point in points], fill=170, width=round(SCALE * 2), joint="curve")
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), float)
    return Image.fromarray((small + random.normal(0, 10, small.shape)).clip(0, 255).astype(np.uint8))


def draw_folder(folder: Path, train: int, test: int, turned: bool, seed: int = 0) -> Path:
    """Write ``folder/{train,test}/<class>/*.png``, so many pictures of each class."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for name in STROKES:
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                shape(name, random, turned).save(place / f"{index:04}.png")
    return folder

"""Pictures and captions of emoji animals, drawn from the Noto Color Emoji font.

Every item is a function of ``(seed, index)`` alone, so a data set never has to be shipped: it is
rendered again from the font (Debian package ``fonts-noto-color-emoji``, SIL Open Font License 1.1,
copyright Google Inc.).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DEFAULT_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the only strike of the bitmap font
SIZE = 32  # edge of a picture in pixels

EMOJI: dict[str, str] = {
    "cat": "\U0001f431",
    "dog": "\U0001f436",
    "horse": "\U0001f434",
    "monkey": "\U0001f435",
    "rabbit": "\U0001f430",
    "zebra": "\U0001f993",
    "spider": "\U0001f577",
    "bird": "\U0001f426",
    "sheep": "\U0001f411",
    "deer": "\U0001f98c",
    "cow": "\U0001f42e",
    "goat": "\U0001f410",
    "lion": "\U0001f981",
    "tiger": "\U0001f42f",
    "bear": "\U0001f43b",
    "raccoon": "\U0001f99d",
    "fox": "\U0001f98a",
    "wolf": "\U0001f43a",
    "lizard": "\U0001f98e",
    "beetle": "\U0001f41e",
    "ant": "\U0001f41c",
    "butterfly": "\U0001f98b",
    "fish": "\U0001f420",
    "shark": "\U0001f988",
    "whale": "\U0001f433",
    "dolphin": "\U0001f42c",
    "squirrel": "\U0001f43f",  # the font draws a chipmunk
    "mouse": "\U0001f42d",
    "rat": "\U0001f400",
    "snake": "\U0001f40d",
    "turtle": "\U0001f422",
    "frog": "\U0001f438",
    "chicken": "\U0001f414",
    "duck": "\U0001f986",
    "goose": "\U0001fabf",
    "bee": "\U0001f41d",
    "pig": "\U0001f437",
    "turkey": "\U0001f983",
    "fly": "\U0001fab0",
    "llama": "\U0001f999",
    "camel": "\U0001f42b",
    "bat": "\U0001f987",
    "gorilla": "\U0001f98d",
    "hedgehog": "\U0001f994",
    "kangaroo": "\U0001f998",
}
ANIMALS: tuple[str, ...] = tuple(EMOJI)

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (16, 16, 16),
    "gray": (140, 140, 140),
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 170, 60),
    "blue": (40, 100, 220),
    "purple": (140, 60, 190),
    "pink": (250, 150, 190),
    "brown": (120, 75, 45),
    "teal": (20, 160, 160),
}
TINTS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
PATTERNS: tuple[str, ...] = ("plain", "striped", "checkered", "gradient")

TINT_SHARE = 0.20
PLAIN_SHARE = 0.65
NAMED_BACKGROUND_SHARE = 0.60
NO_ARTICLE_SHARE = 0.04
SMALL_SHARE = 0.15
COLOUR_JITTER = 8


@dataclass(frozen=True)
class Scene:
    """What one picture shows; `caption` and `Renderer.draw` both read it."""

    animal: str
    tint: str | None = None
    pattern: str = "plain"
    colours: tuple[str, ...] = ("white",)
    names_background: bool = True
    article: bool = True
    scale: float = 0.95
    flip: bool = False
    offset: tuple[float, float] = (0.5, 0.5)  # share of the free room left of and above the sprite
    layout: int = 0  # direction of the pattern
    period: int = 8  # width of a stripe pair or of two checker cells


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def background_caption(pattern: str, colours: Sequence[str]) -> str:
    """Name a background, such as "a red and white striped background"."""
    if pattern == "plain":
        return with_article(f"{colours[0]} background")
    if pattern == "gradient":
        return with_article(f"{colours[0]} to {colours[1]} gradient background")
    return with_article(f"{colours[0]} and {colours[1]} {pattern} background")


def caption(scene: Scene) -> str:
    """Return the prompt of a scene."""
    subject = f"{scene.tint} {scene.animal}" if scene.tint else scene.animal
    text = with_article(subject) if scene.article else subject
    if scene.names_background:
        text += f" on {background_caption(scene.pattern, scene.colours)}"
    return text


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene from the training distribution."""
    animal = ANIMALS[rng.integers(len(ANIMALS))]
    tint = TINTS[rng.integers(len(TINTS))] if rng.random() < TINT_SHARE else None
    pattern = "plain" if rng.random() < PLAIN_SHARE else PATTERNS[rng.integers(1, len(PATTERNS))]
    names = [name for name in COLOURS if name != tint]
    colours = tuple(names[k] for k in rng.permutation(len(names))[: 1 if pattern == "plain" else 2])
    small = rng.random() < SMALL_SHARE
    return Scene(
        animal=animal,
        tint=tint,
        pattern=pattern,
        colours=colours,
        names_background=bool(rng.random() < NAMED_BACKGROUND_SHARE),
        article=bool(rng.random() >= NO_ARTICLE_SHARE),
        scale=float(rng.uniform(0.65, 0.85) if small else rng.uniform(0.85, 1.0)),
        flip=bool(rng.random() < 0.5),
        offset=(float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))),
        layout=int(rng.integers(4)),
        period=int(rng.choice([8, 16])),
    )


def load_sprite(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Render one emoji, cropped to its ink and centred on a transparent square."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), character, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font has no picture for U+{ord(character):X}")
    ink = canvas.crop(box)
    edge = max(ink.size)
    square = Image.new("RGBA", (edge, edge), (0, 0, 0, 0))
    square.paste(ink, ((edge - ink.width) // 2, (edge - ink.height) // 2))
    return square


def tint_pixels(rgb: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Recolour a sprite: its median brightness becomes `colour`, shadows stay dark."""
    light = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    middle = max(float(np.median(light[alpha > 0.5])), 60.0)
    level = (light / middle)[..., None]
    above = np.clip((level - 1.0) * 0.7, 0.0, 0.75)
    return np.minimum(level, 1.0) * colour * (1.0 - above) + 255.0 * above


class Renderer:
    """Draw scenes as uint8 pictures of shape (32, 32, 3)."""

    def __init__(self, font: Path = DEFAULT_FONT) -> None:
        face = ImageFont.truetype(str(font), FONT_SIZE)
        self._sprites = {name: load_sprite(face, char) for name, char in EMOJI.items()}

    def draw(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """Draw a scene; `rng` only jitters the shades of the named colours."""
        picture = self._background(scene, rng)
        edge = max(8, round(SIZE * scene.scale))
        sprite = self._sprites[scene.animal].resize((edge, edge), Image.Resampling.LANCZOS)
        pixels = np.asarray(sprite, dtype=np.float32)
        if scene.flip:
            pixels = pixels[:, ::-1]
        rgb, alpha = pixels[..., :3], pixels[..., 3] / 255.0
        if scene.tint is not None:
            rgb = tint_pixels(rgb, alpha, _shade(scene.tint, rng))
        left, top = (round((SIZE - edge) * share) for share in scene.offset)
        window = picture[top : top + edge, left : left + edge]
        window += alpha[..., None] * (rgb - window)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    def _background(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        shades = [_shade(name, rng) for name in scene.colours]
        if scene.pattern == "plain":
            return np.broadcast_to(shades[0], (SIZE, SIZE, 3)).copy()
        mix = _pattern(scene.pattern, scene.layout, scene.period)[..., None]
        return shades[0] * (1.0 - mix) + shades[1] * mix


def _shade(name: str, rng: np.random.Generator) -> np.ndarray:
    jitter = rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)
    return np.clip(np.array(COLOURS[name]) + jitter, 0, 255).astype(np.float32)


def _pattern(pattern: str, layout: int, period: int) -> np.ndarray:
    """Return the share of the second colour in every pixel."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    if pattern == "gradient":
        ramps = (x, SIZE - 1 - x, y, SIZE - 1 - y)
        return ramps[layout] / (SIZE - 1)
    if pattern == "checkered":
        return (x // (period // 2) + y // (period // 2)) % 2
    lines = (x, y, (x + y), (x - y))
    return lines[layout] // (period // 2) % 2


def render_item(renderer: Renderer, seed: int, index: int) -> tuple[np.ndarray, Scene]:
    """Return picture and scene number `index` of the data set `seed`."""
    rng = np.random.default_rng((seed, index))
    scene = sample_scene(rng)
    return renderer.draw(scene, rng), scene

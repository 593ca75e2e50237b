"""How picture files become images of one size and kind. Free of torch."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from hashlib import sha256
from typing import Literal

from pyro_delta.errors import UserError

Crop = Literal["none", "centre"]
Mode = Literal["grey", "grey_alpha", "rgb", "rgba"]
MODES: dict[str, str] = {"grey": "L", "grey_alpha": "LA", "rgb": "RGB", "rgba": "RGBA"}
"""Pillow's names."""
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}

LARGEST = 1 << 20
"""Pixels of an image: more are not modelled one by one, and a folder of photographs would not fit into memory."""


@dataclass(frozen=True)
class Conversion:
    """What is done to pictures beside what a viewer does, who turns them upright: nothing, unless it is asked for.

    Args:
        size: (rows, columns) that pictures are brought to.
        crop: centre, to cut pictures to the shape of `size`, to a square without one; none, to refuse other shapes.
        mode: grey, grey_alpha, rgb or rgba, to convert pictures to; None to take grey and colour as they are, and
            refuse all others.
        scale: values of black and white in pictures of more than 8 bits; None to refuse these.
        first_frame: whether the first picture of several in a file is taken; else such files are refused.
        levels: that the bytes of pictures are rounded to; None to find out how many there are.

    Raises:
        UserError: if the size is too large, the scale does not rise, or the levels are out of range.
    """

    size: tuple[int, int] | None = None
    crop: Crop = "none"
    mode: Mode | None = None
    scale: tuple[float, float] | None = None
    first_frame: bool = False
    levels: int | None = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning; lists, as JSON has them, become tuples."""
        for name, kind in (("size", int), ("scale", float)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(map(kind, value)))
        if self.size is not None and self.size[0] * self.size[1] > LARGEST:
            sizes = f"[{self.size[0]}, {self.size[1]}]"
            raise UserError(f"data.size={sizes} is more than the {LARGEST} pixels that an image may have; give less.")
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise UserError(
                f"data.scale=[{self.scale[0]:g}, {self.scale[1]:g}] does not rise; give the value of black, and the "
                "larger one of white."
            )
        if self.levels is not None and not 2 <= self.levels <= 256:
            raise UserError(f"data.levels={self.levels}: an image of bytes has 2 to 256 levels.")

    def digest(self) -> str:
        """What tells it from others, in 8 hexadecimal digits."""
        return sha256(repr(astuple(self)).encode()).hexdigest()[:8]


def step_of(levels: int) -> int | None:
    """Between bytes of so many levels, 0 to 255; None where that is no whole number."""
    step, rest = divmod(255, levels - 1)
    return None if rest else step

"""What a model must know of its images. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pyro_delta.data.condition import Condition
from pyro_delta.data.images.conversion import Conversion, step_of
from pyro_delta.data.spec import Spec, require
from pyro_delta.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class ImageSpec(Spec):
    """Size and range of images: integers 0 … levels−1 of shape (channels, height, width).

    Positions are rows. Pixels stand in raster order; the channels of a pixel form one group. `condition` says what
    images are conditioned on.

    Args:
        channels: 1 (grey), 2 (grey and alpha), 3 (colour), 4 (colour and alpha).
        height: rows.
        width: columns.
        levels: of a channel.
        conversion: that pictures go through to become such images.

    Raises:
        UserError: if a size is below 1, or `levels` is below 2 or above 256 (images are bytes).
    """

    channels: int
    height: int
    width: int
    levels: int
    condition: Condition | None = field(default=None, kw_only=True)
    conversion: Conversion = field(default=Conversion(), kw_only=True)

    suffix: ClassVar[str] = ".png"
    what: ClassVar[str] = "images"
    datum: ClassVar[str] = "image"
    place: ClassVar[str] = "row"

    def __post_init__(self) -> None:
        """Refuse sizes that no image has; a conversion that was saved is put together again."""
        if isinstance(self.conversion, dict):
            object.__setattr__(self, "conversion", Conversion(**self.conversion))
        if min(self.shape) < 1:
            raise UserError(f"image shape (C, H, W) = {self.shape}: every size must be at least 1.")
        if not 2 <= self.levels <= 256:
            raise UserError(f"levels = {self.levels}: an image of bytes has 2 to 256 levels.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def positions(self) -> int:
        """H."""
        return self.height

    def places(self) -> np.ndarray:
        """Row of every number."""
        import numpy as np

        return np.indices(self.shape)[1]

    def order(self) -> np.ndarray:
        """Place of every number's pixel in raster order."""
        import numpy as np

        _, row, column = np.indices(self.shape)
        return row * self.width + column

    def group(self, rank: int) -> str:
        """A pixel by row and column."""
        return f"pixel {divmod(rank, self.width)}"

    def show(self, x: Tensor, path: Path, columns: int) -> None:
        """Writes a grid of images into a PNG file."""
        from pyro_delta.data.images.pictures import grid, save_png

        save_png(grid(x, self.levels, columns), path)

    def open(self, path: Path, count: int | None = None) -> tuple[Tensor, list[str]]:
        """A picture or a folder of pictures, converted as the images were: uint8 (N, C, H, W), and their names.

        Raises:
            UserError: if there are none, or they are not of this size and kind.
        """
        from pyro_delta.data.images.folder import read_pictures

        pictures, names = read_pictures(path, count, self.conversion)
        step = 1 if self.conversion.levels == self.levels else step_of(self.levels)
        if pictures.shape[1:] != self.shape or step is None:
            raise UserError(
                f"the pictures of {path} are {tuple(pictures.shape[1:])} with 256 levels, the run's images "
                f"{self.shape} with {self.levels}; bring them to its size, or name a split: test."
            )
        if step > 1 and (wrong := (pictures % step).flatten(1).any(1).nonzero()).numel():
            raise UserError(
                f"{names[int(wrong[0])]} of {path} has other values than the {self.levels} levels of the run's images, "
                f"which are multiples of {step}; round it to them, or name a split: test."
            )
        return pictures // step, names


def require_image(spec: object, kind: str, name: str) -> ImageSpec:
    """The spec, which must be one of images; see `require`."""
    return require(spec, ImageSpec, "images", kind, name)

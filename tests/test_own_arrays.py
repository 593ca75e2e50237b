"""Arrays of a user's own, whose kind their shape tells, from `train` to `check`."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import pyro_delta
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.named import data_of
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.errors import UserError

DRAW = np.random.default_rng(0)
GREY = DRAW.integers(0, 256, (40, 6, 5), dtype=np.uint8)
GREY[0, 0, 0] = 255
COLOUR = DRAW.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
COLOUR[0, 0, 0] = 255


class Listed(Dataset):
    """As torchvision's data sets are, behind ToTensor: images in 0 … 1, and labels."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(COLOUR[index]).permute(2, 0, 1).float() / 255, index % 4


ARRAYS: dict[str, tuple[Any, Any, Any]] = {
    "grey": (GREY, ImageSpec(1, 6, 5, 256), GREY[:, None]),
    "a tensor": (torch.from_numpy(GREY), ImageSpec(1, 6, 5, 256), GREY[:, None]),
    "channels first": (COLOUR.transpose(0, 3, 1, 2), ImageSpec(3, 6, 5, 256), COLOUR.transpose(0, 3, 1, 2)),
    "channels last": (COLOUR, ImageSpec(3, 6, 5, 256), COLOUR.transpose(0, 3, 1, 2)),
    "channels first, and as many columns": (COLOUR[:, :, :3].transpose(0, 3, 1, 2), ImageSpec(3, 6, 3, 256), None),
    "few levels": (GREY // 16, ImageSpec(1, 6, 5, 16), GREY[:, None] // 16),
    "black": (GREY * 0, ImageSpec(1, 6, 5, 2), GREY[:, None] * 0),
    "black and white": ((GREY > 200) * np.uint8(255), ImageSpec(1, 6, 5, 2), (GREY > 200)[:, None]),
    "0 and 1": ((GREY > 200) * np.float32(1), ImageSpec(1, 6, 5, 2), (GREY > 200)[:, None]),
    "bytes as tokens": (GREY[:, 0], TokenSpec(5, 1 + int(GREY[:, 0].max())), GREY[:, 0]),
    "short tokens": (GREY[:, 0].astype(np.int16), TokenSpec(5, 1 + int(GREY[:, 0].max())), GREY[:, 0]),
    "big-endian": (GREY[:, 0].astype(">i8"), TokenSpec(5, 1 + int(GREY[:, 0].max())), GREY[:, 0]),
    "four channels": (
        COLOUR[..., [0, 1, 2, 0]],
        ImageSpec(4, 6, 5, 256),
        COLOUR[..., [0, 1, 2, 0]].transpose(0, 3, 1, 2),
    ),
    "two levels": (GREY > 200, ImageSpec(1, 6, 5, 2), (GREY > 200)[:, None]),
    "parts of 255": (GREY[:, None] / np.float32(255), ImageSpec(1, 6, 5, 256), GREY[:, None]),
    "a data set": (Listed(), ImageSpec(3, 6, 5, 256), COLOUR.transpose(0, 3, 1, 2)),
    "tokens": (GREY[:, 0].astype(np.int64), TokenSpec(5, 1 + int(GREY[:, 0].max())), GREY[:, 0]),
    "labels": ({"x": GREY, "labels": np.arange(40) % 3}, ImageSpec(1, 6, 5, 256), GREY[:, None]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_kind_of_an_array(name: str) -> None:
    given, spec, values = ARRAYS[name]
    data = data_of(given)
    assert data.spec == spec
    assert (len(data.train), len(data.validation), len(data.test)) == (33, 3, 4)
    found = torch.cat([part.x for part in (data.train, data.validation, data.test)]).numpy()
    if values is not None:
        assert sorted(x.tobytes() for x in found.astype(np.int64)) == sorted(
            x.tobytes() for x in values.astype(np.int64)
        )
    assert (data.train.labels is not None) == (name in ("a data set", "labels"))


NO_KIND: dict[str, tuple[Any, str]] = {
    "real numbers": (DRAW.normal(size=(40, 6, 5)), r"an array of float32 of shape \(40, 6, 5\) is neither images"),
    "parts of 100": (np.round(DRAW.random((40, 6, 5)), 2), r"is neither images, bytes \(N, H, W\)"),
    "five channels": (np.zeros((40, 5, 6, 7), np.uint8), r"an array of uint8 of shape \(40, 5, 6, 7\) is neither"),
    "wide integers": (np.full((40, 6, 5), 300), r"an array of int64 of shape \(40, 6, 5\) is neither"),
    "below 0": (np.full((40, 6), -1), r"nor tokens, whole numbers \(N, T\); say of what kind it is by"),
    "nothing": (np.zeros((0, 6, 5), np.uint8), r"of shape \(0, 6, 5\) is neither"),
    "one number each": (np.zeros(40, np.uint8), r"of shape \(40,\) is neither"),
    "a list": ([1, 2], r"the data 'given' are of type list; they must be an object with a spec and splits"),
    "too few": (GREY[:2], r"."),
    "a mask": (np.ma.masked_equal(GREY, 255), r"data are a masked array, whose mask would be lost"),
    "sparse": (torch.zeros(4, 6).to_sparse(), r"data are a tensor of layout torch.sparse_coo; give a dense one"),
    "labels of text": (
        {"x": GREY, "labels": np.array(["a"] * 40)},
        r"'labels' holds text or objects; give whole numbers",
    ),
    "infinite labels": ({"x": GREY, "labels": np.full(40, np.inf)}, r"labels hold inf; give one whole number for each"),
}


@pytest.mark.parametrize("name", NO_KIND)
def test_arrays_of_no_kind(name: str) -> None:
    given, words = NO_KIND[name]
    with pytest.raises(UserError, match=words):
        data_of(given)


def test_an_array_is_trained_on_and_checked() -> None:
    net = {"channels": [4], "row_blocks": [1], "pixel_blocks": 1}
    settings = {f"{kind}.{name}": value for kind in ("likelihood", "guide") for name, value in net.items()}
    given = {"x": GREY, "labels": np.arange(40) % 3}
    run = pyro_delta.train({**settings, "training.steps": 3, "training.batch": 8}, data=given)
    assert run.spec == ImageSpec(1, 6, 5, 256)
    found = pyro_delta.check(run, data=given, told_samples=2)
    assert found.numbers["data_as_trained"] is True
    assert found.numbers["floor_holds"] is True
    assert found.numbers["n_images"] == 4

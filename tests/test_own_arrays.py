"""Arrays of a user's own, whose kind their shape tells, from `train` to `check`."""

import html
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import call
from torch.utils.data import Dataset

import pyro_delta
from pyro_delta.api.kept import kept
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.images.conversion import Conversion
from pyro_delta.data.named import data_of
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.data.spec import ArraySpec
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
    "few levels": (GREY // 16 * 17, ImageSpec(1, 6, 5, 16), GREY[:, None] // 16),
    "four levels": (GREY // 64 * 85, ImageSpec(1, 6, 5, 4), GREY[:, None] // 64),
    "dark": (GREY // 3, ImageSpec(1, 6, 5, 256), GREY[:, None] // 3),
    "nearly black": (GREY // 127, ImageSpec(1, 6, 5, 256), GREY[:, None] // 127),
    "black": (GREY * 0, ImageSpec(1, 6, 5, 256), GREY[:, None] * 0),
    "bytes 0 and 1": (GREY // 128, ImageSpec(1, 6, 5, 2), GREY[:, None] // 128),
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


TOKENS = GREY[:, 0].astype(np.int64)
LEVELS: dict[str, tuple[Any, int | None, Any, str | None, Any]] = {
    "said": (GREY // 16, 17, None, None, GREY[:, None] // 16),
    "on steps": (GREY // 128 * 255, 4, None, None, GREY[:, None] // 128 * 3),
    "too few": (GREY, 17, None, r"bytes up to 255, and with 17 levels they go from 0 to 16; bring them", None),
    "off steps": (GREY, 16, None, r"0 to 15, nor are all multiples of 17, which would stand for them; bring", None),
    "no number": (GREY, True, None, r"data\.levels=True is not a whole number from 2 to 2147483648; give one", None),
    "of tokens": (TOKENS, 300, None, None, TOKENS),
    "too few of tokens": (TOKENS, 20, None, r"train holds integers 0 to 255; they must lie in 0 to 19\.", None),
    "as a run": (GREY // 255, None, ImageSpec(1, 6, 5, 256), None, GREY[:, None] // 255),
    "as a run, of few levels": (GREY // 128 * 255, None, ImageSpec(1, 6, 5, 2), None, GREY[:, None] // 128),
    "as a run on a folder": (
        GREY,
        None,
        ImageSpec(1, 6, 5, 256, conversion=Conversion(size=(6, 5))),
        None,
        GREY[:, None],
    ),
    "tokens as a run": (TOKENS // 9, None, TokenSpec(5, 256), None, TOKENS // 9),
    "numbers as a run": (DRAW.normal(size=(40, 6)), None, ArraySpec((6,)), None, None),
    "other than a run": (
        GREY / 7,
        None,
        ImageSpec(1, 6, 5, 256),
        r"an array of float32 of shape \(40, 6, 5\) is not what the run was made for, images of shape 1×6×5 with 256",
        None,
    ),
    "of data with a spec": (data_of(GREY), 17, None, r"data\.levels=17 is of arrays; these data have a spec", None),
}
"""Name → array, levels that are said, spec of a run that they are for, words of a refusal, and what is held."""


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_said_by_a_person_or_by_a_run(name: str) -> None:
    given, levels, like, words, values = LEVELS[name]
    if words is not None:
        with pytest.raises(UserError, match=words):
            data_of(given, levels=levels, like=like)
        return
    data = data_of(given, levels=levels, like=like)
    assert data.spec == like if like is not None else data.spec.levels == levels
    if values is not None:
        found = torch.cat([part.x for part in (data.train, data.validation, data.test)]).long().numpy()
        assert sorted(x.tobytes() for x in found) == sorted(x.tobytes() for x in values.astype(np.int64))


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


NET = {"channels": [4], "row_blocks": [1], "pixel_blocks": 1}
TINY = {f"{kind}.{name}": value for kind in ("likelihood", "guide") for name, value in NET.items()}
TINY |= {"training.steps": 2, "training.batch": 8}
DARK = GREY // 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on dark pictures."""
    place = tmp_path_factory.mktemp("arrays") / "arr"
    run = pyro_delta.train(TINY, data={"x": DARK, "labels": np.arange(40) % 3}, out=place, device="cpu")
    assert run.spec == ImageSpec(1, 6, 5, 256)
    return place


def test_an_array_is_trained_on_and_checked(folder: Path) -> None:
    found = pyro_delta.check(folder, data={"x": DARK, "labels": np.arange(40) % 3}, told_samples=2)
    assert found.numbers["data_as_trained"] is True
    assert found.numbers["floor_holds"] is True
    assert found.numbers["n_images"] == 4
    seen = pyro_delta.diagnose(folder, data=DARK[:8], told_samples=2, particles=1)
    assert seen.numbers["n_images"] == 8
    darker = pyro_delta.evaluate(folder, data=DARK // 2)  # of another largest value
    assert (darker["data_as_trained"], darker["n_images"]) == (False, 4)


def test_pictures_of_an_array_are_those_of_a_file(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(DARK[0]).save(tmp_path / "0.png")
    code, _, err = call("encode", folder, tmp_path / "0.png", "--out", tmp_path / "z.CSV", "--device", "cpu")
    assert code == 0, err
    assert (tmp_path / "z.CSV").read_text().startswith("datum,")
    x, _ = ImageSpec(1, 6, 5, 256).open(tmp_path / "0.png")
    assert (x.numpy() == DARK[0]).all()


@pytest.mark.parametrize("command", [("check",), ("report",), ("encode", "test"), ("train", "--resume"), ("compare",)])
def test_commands_say_that_the_data_came_from_python(command: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    name, *more = command
    place = ["--out", folder, "--steps", 9] if name == "train" else [folder, *more]
    place += ["--out", tmp_path / "z.nc"] if name == "encode" else []
    place += [tmp_path / "other"] if name == "compare" else []
    shutil.copytree(folder, tmp_path / "other")
    code, _, err = call(name, *(more if name == "train" else ()), *place)
    assert (code, len(err.splitlines())) == (2, 2 if name == "compare" else 1), err  # which says that it checks first
    assert f"the data of {folder} were given in Python and are not kept with it; give them again there" in err
    assert f"pyro_delta.check({str(folder)!r}, data=…)" in err


def test_a_page_of_an_array_is_written_and_its_check_kept(folder: Path, tmp_path: Path) -> None:
    given = {"x": DARK, "labels": np.arange(40) % 3}
    place = Path(shutil.copytree(folder, tmp_path / "arr"))
    with pytest.raises(UserError, match="were given in Python and are not kept"):
        pyro_delta.write_report(place)
    with pytest.raises(UserError, match=r"the 33 train data are not the 33 that .*arr was made with"):
        pyro_delta.write_report(place, data=GREY)
    with pytest.raises(UserError, match=r"there is no folder .*none for page\.html; make it or give another\.$"):
        pyro_delta.write_report(place, tmp_path / "none" / "page.html", data=given)
    assert kept(place) is None
    assert pyro_delta.write_report(place, data=given) == place / "report.html"
    text = html.unescape((place / "report.html").read_text())
    assert f"pyro_delta.check({str(place)!r}, data=x)" in text
    assert f'preset="photos", out={str(place)!r}' in text
    assert "pyro-delta train" not in text
    found = kept(place)
    assert found is not None
    assert found.numbers["n_images"] == 4
    other = Path(shutil.copytree(place, tmp_path / "other"))
    assert len(pyro_delta.compare([place, other]).rows) == 2


def test_a_run_on_an_array_goes_on_and_has_a_control(folder: Path, tmp_path: Path) -> None:
    given = {"x": DARK, "labels": np.arange(40) % 3}
    place = Path(shutil.copytree(folder, tmp_path / "arr"))
    control = pyro_delta.train_control(place, data=given, device="cpu")
    assert control.folder == tmp_path / "arr-control"
    assert control.data_record is not None
    assert control.trained_on(data_of(given)) is True
    with pytest.raises(UserError, match=r"the data are not those that .*arr was trained on; give these again\.$"):
        pyro_delta.train_control(place, data=GREY, out=tmp_path / "none", device="cpu")
    with pytest.raises(UserError, match="were given in Python and are not kept with it"):
        pyro_delta.train_control(place, out=tmp_path / "none", device="cpu")
    assert not (tmp_path / "none").exists()
    assert pyro_delta.resume(place, {"training.steps": 3}, data=given, device="cpu").trained_steps == 3


def test_levels_of_an_array_are_a_setting() -> None:
    run = pyro_delta.train(TINY | {"data.levels": 17}, data=GREY // 16, device="cpu")
    assert run.spec == ImageSpec(1, 6, 5, 17)
    assert pyro_delta.evaluate(run, data=GREY // 32)["data_as_trained"] is False

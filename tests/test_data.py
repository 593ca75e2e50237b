"""Datasets: what is loaded, how it is split, what is cached and which mistakes are named."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
import torchvision
from PIL import Image

from pyro_delta import programs
from pyro_delta.config import preset_names
from pyro_delta.data import Batches, Spec, Split, Splits, epoch_order, load
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.named import spec_before_data
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.data.sequences.text import ALPHABET
from pyro_delta.errors import UserError

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


def contents(split: Split) -> Counter:
    """The split as a multiset of (values, label)."""
    labels = [None] * len(split) if split.labels is None else split.labels.tolist()
    return Counter((image.numpy().tobytes(), label) for image, label in zip(split.x, labels, strict=True))


def same(first: Split, second: Split) -> bool:
    return torch.equal(first.x, second.x) and (
        first.labels is second.labels is None or torch.equal(first.labels, second.labels)
    )


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def make_folder(
    folder: Path,
    *,
    train: int = 6,
    test: int = 2,
    classes: tuple[str, ...] = ("cat", "dog"),
    shape: tuple[int, ...] = (4, 5, 3),
    suffix: str = "png",
) -> dict[str, Counter]:
    """Random images; returns the contents of each split as `contents` would, straight from the arrays written."""
    rng = np.random.default_rng(0)
    written: dict[str, Counter] = {}
    for split, count in (("train", train), ("test", test)):
        written[split] = Counter()
        for label, name in enumerate(classes or ("",)):
            for index in range(count):
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                save(folder / split / name / f"{index}.{suffix}", pixels)
                planes = pixels.reshape(*shape[:2], -1).transpose(2, 0, 1)
                written[split][planes.tobytes(), label if classes else None] += 1
    return written


# ---------------------------------------------------------------- specification


def test_spec() -> None:
    spec = ImageSpec(3, 4, 5, 256)
    assert spec.shape == (3, 4, 5)
    assert spec.scored == 60


@pytest.mark.parametrize("sizes", [(0, 4, 4, 2), (1, 4, -1, 2), (1, 4, 4, 1), (1, 4, 4, 257)])
def test_spec_refuses(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1|2 to 256 levels"):
        ImageSpec(*sizes)


def test_specs_and_table_do_not_load_torch() -> None:
    code = (
        "import sys; from pyro_delta.data import ArraySpec, Spec; from pyro_delta.data.images import ImageSpec; "
        "from pyro_delta.data.sequences import TokenSpec; from pyro_delta.programs import names; names('data'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SPECS = {
    "digits": ImageSpec(1, 8, 8, 17),
    "photos": ImageSpec(3, 32, 32, 256),
    "cifar10": ImageSpec(3, 32, 32, 256),
    "mnist": ImageSpec(1, 28, 28, 256),
    "fashion_mnist": ImageSpec(1, 28, 28, 256),
    "binarised_mnist": ImageSpec(1, 28, 28, 2),
    "imagenet32": ImageSpec(3, 32, 32, 256),
    "folder": None,
    "descriptions": TokenSpec(32, 70, ALPHABET),
    "text": None,
    "brown": None,
    "chorales": None,
    "vowels": None,
    "series": None,
    "speech": None,
    "audio": None,
    "given": None,
}


def test_table() -> None:
    assert list(programs.SHIPPED["data"]) == list(SPECS)
    for name, spec in SPECS.items():
        program = programs.find("data", name)
        assert (program.__doc__ or "").splitlines()[0].strip()
        assert program.preset in preset_names()
        assert spec_before_data(name) == spec
        if name in ("digits", "photos", "descriptions"):
            assert load(name).spec == spec


# ---------------------------------------------------------------- every dataset


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Splits]:
    """Load a dataset by name, after making the files of those that need any."""

    def make(name: str, **options: object) -> Splits:
        if name == "folder":
            make_folder(tmp_path / "pictures", train=20)
            return load(f"folder:{tmp_path / 'pictures'}", **options)
        if name == "cifar10":
            make_folder(tmp_path / "cifar10", train=4, classes=tuple(CIFAR10_NAMES), shape=(32, 32, 3))
            return load(name, root=tmp_path, **{"validation": 10, **options})
        return load(name, **options)

    return make


# name, spec, data of (train, validation, test), number of classes
LOADED = [
    ("digits", ImageSpec(1, 8, 8, 17), (1257, 180, 360), 10),
    ("photos", ImageSpec(3, 32, 32, 256), (3600, 400, 400), 2),
    ("cifar10", ImageSpec(3, 32, 32, 256), (30, 10, 20), 10),
    ("folder", ImageSpec(3, 4, 5, 256), (36, 4, 4), 2),
    ("descriptions", TokenSpec(32, 70, ALPHABET), None, 14),  # how much text there is depends on scikit-learn
    ("chorales", ScoreSpec(32, 47), (11680, 62, 76), 12),
]


@pytest.mark.parametrize(("name", "spec", "sizes", "classes"), LOADED)
def test_what_is_loaded(
    make_dataset: Callable[..., Splits], name: str, spec: Spec, sizes: tuple[int, ...] | None, classes: int
) -> None:
    data = make_dataset(name)
    sizes = sizes or tuple(len(getattr(data, part)) for part in PARTS)
    assert data.spec == spec
    assert data.classes is not None
    assert len(data.classes) == classes
    for part, size in zip(PARTS, sizes, strict=True):
        split: Split = getattr(data, part)
        assert len(split) == size
        assert split.x.shape == (size, *spec.shape)
        assert split.x.dtype == torch.uint8
        assert int(split.x.max()) < spec.levels  # as an int: a byte compares with 256 as with 0
        assert split.labels is not None
        assert split.labels.dtype == torch.int64
        assert split.labels.shape == (size,)
        # Balanced within a split and within its first half, so that a prefix is a fair sample.
        for prefix in (size // 2, size):
            share = torch.bincount(split.labels[:prefix], minlength=classes) / prefix
            whole = torch.bincount(split.labels, minlength=classes) / size
            assert (share - whole).abs().max() <= 3 / prefix


@pytest.mark.parametrize("name", [row[0] for row in LOADED])
def test_splits_are_disjoint_deterministic_and_seeded(make_dataset: Callable[..., Splits], name: str) -> None:
    first, again, other = make_dataset(name, seed=1), make_dataset(name, seed=1), make_dataset(name, seed=2)
    seen = [contents(getattr(first, part)) for part in PARTS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    for part in PARTS:
        assert same(getattr(first, part), getattr(again, part))
    assert same(first.test, other.test)
    assert not same(first.validation, other.validation)
    assert contents(first.train) + contents(first.validation) == contents(other.train) + contents(other.validation)


@pytest.mark.parametrize("name", [row[0] for row in LOADED])
def test_validation_count(make_dataset: Callable[..., Splits], name: str) -> None:
    default, smaller = make_dataset(name), make_dataset(name, validation=3)
    assert len(smaller.validation) == 3
    assert same(smaller.test, default.test)
    rest = 0 if name in ("photos", "descriptions", "chorales") else len(default.validation) - 3
    assert len(smaller.train) == len(default.train) + rest
    for count in (0, -1, 100_000):
        with pytest.raises(UserError, match=rf" {count} validation data out of|validation \w+, not {count}; ask"):
            make_dataset(name, validation=count)


def test_digits_are_scikit_learns() -> None:
    data = load("digits")
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    expected = Counter((row.astype(np.uint8).tobytes(), int(label)) for row, label in zip(images, labels, strict=True))
    assert sum((contents(getattr(data, part)) for part in PARTS), Counter()) == expected
    values = torch.cat([getattr(data, part).x.flatten() for part in PARTS]).unique()
    assert values.tolist() == list(range(17))


def test_photo_crops_of_different_splits_share_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """With photographs whose pixels spell out their own position, the crops tell where they come from."""

    def position(name: str) -> np.ndarray:
        index = np.arange(427 * 640, dtype=np.uint32).reshape(427, 640)
        index += 0x800000 if name == "flower.jpg" else 0
        return np.stack([index >> 16, (index >> 8) & 255, index & 255], axis=-1).astype(np.uint8)

    monkeypatch.setattr(sklearn.datasets, "load_sample_image", position)
    data = load("photos")
    pixels = {}
    for part in PARTS:
        split: Split = getattr(data, part)
        red, green, blue = split.x.to(torch.int64).unbind(1)
        index = (red << 16) + (green << 8) + blue
        assert torch.equal(index >> 23, split.labels[:, None, None].expand_as(index))
        assert torch.equal(index, index[:, :1, :1] + 640 * torch.arange(32)[:, None] + torch.arange(32))  # a true crop
        pixels[part] = set(index.flatten().tolist())
    assert not pixels["train"] & pixels["validation"]
    assert not pixels["train"] & pixels["test"]
    assert not pixels["validation"] & pixels["test"]
    assert len(set.union(*pixels.values())) > 0.95 * 2 * 427 * 640


def test_photos_are_scikit_learns() -> None:
    corner = sklearn.datasets.load_sample_image("china.jpg")[:32, :32].transpose(2, 0, 1)
    assert contents(load("photos").train)[corner.tobytes(), 0] == 1


# ---------------------------------------------------------------- folders of images


@pytest.mark.parametrize(
    ("classes", "shape", "suffix"),
    [
        (("cat", "dog"), (4, 5, 3), "png"),
        (("cat", "dog"), (4, 5), "png"),
        ((), (7, 3, 3), "PNG"),
        ((), (3, 3), "bmp"),
    ],
)
def test_folder_comes_back_bit_exact(
    tmp_path: Path, classes: tuple[str, ...], shape: tuple[int, ...], suffix: str
) -> None:
    written = make_folder(tmp_path, classes=classes, shape=shape, suffix=suffix)
    (tmp_path / "train" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden.png").write_text("not an image")
    (tmp_path / "train" / "__MACOSX").mkdir()
    for _ in ("decoded", "cached"):
        data = load(f"folder:{tmp_path}", validation=3)
        assert data.classes == (classes or None)
        assert contents(data.train) + contents(data.validation) == written["train"]
        assert contents(data.test) == written["test"]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_files_are_read_as_pillow_reads_them(tmp_path: Path, suffix: str) -> None:
    make_folder(tmp_path, classes=(), suffix=suffix)
    expected = {np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in (tmp_path / "test").iterdir()}
    assert {pixels for pixels, _ in contents(load(f"folder:{tmp_path}").test)} == expected


def test_many_files_and_a_folder_named_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = make_folder(tmp_path / "many", train=600, classes=(), shape=(2, 2, 3))
    monkeypatch.setenv("HOME", str(tmp_path))
    data = load("folder:~/many", validation=100)
    assert contents(data.train) + contents(data.validation) == written["train"]


def damage_keeping_size_and_time(file: Path) -> None:
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncate(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-100])


def flip_a_pixel(cache: Path) -> None:
    raw = bytearray(cache.read_bytes())
    raw[-100] ^= 1
    cache.write_bytes(raw)


def empty(cache: Path) -> None:
    cache.write_bytes(b"")


def pickled(cache: Path) -> None:
    cache.write_bytes(pickle.dumps({"key": 0}))


def test_cache_serves_the_second_load(tmp_path: Path) -> None:
    make_folder(tmp_path)
    first = load(f"folder:{tmp_path}")
    for file in tmp_path.rglob("*.png"):
        damage_keeping_size_and_time(file)
    second = load(f"folder:{tmp_path}")
    for part in PARTS:
        assert same(getattr(first, part), getattr(second, part))
    assert sorted(file.name for file in tmp_path.iterdir()) == [".pyro-delta-cache", "test", "train"]


@pytest.mark.parametrize("damage", [truncate, flip_a_pixel, empty, pickled, Path.unlink])
@pytest.mark.parametrize("name", ["images.npy", "sums.npy", "state.json"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    written = make_folder(tmp_path, train=20)
    load(f"folder:{tmp_path}")
    (cache,) = (tmp_path / ".pyro-delta-cache").glob(f"*/{name}")
    intact = cache.read_bytes()
    damage(cache)
    data = load(f"folder:{tmp_path}")
    assert contents(data.test) == written["test"]
    assert contents(data.train) + contents(data.validation) == written["train"]
    assert cache.read_bytes() == intact


def replace_image(folder: Path) -> None:
    save(folder / "test" / "cat" / "0.png", np.full((4, 5, 3), 9, dtype=np.uint8))


def add_image(folder: Path) -> None:
    save(folder / "test" / "cat" / "9.png", np.full((4, 5, 3), 9, dtype=np.uint8))


def touch_new_pixels(folder: Path) -> None:
    """Other pixels in a file of the same size: only the time tells."""
    file = folder / "test" / "cat" / "0.bmp"
    status = file.stat()
    save(file, np.full((4, 5, 3), 9, dtype=np.uint8))
    assert file.stat().st_size == status.st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))


def rename_class(folder: Path) -> None:
    """The same files, but their classes change places: only the names tell."""
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "eel")


@pytest.mark.parametrize(
    ("change", "suffix"),
    [(replace_image, "png"), (add_image, "png"), (touch_new_pixels, "bmp"), (rename_class, "bmp")],
)
def test_changed_folder_is_read_anew(tmp_path: Path, change: Callable[[Path], None], suffix: str) -> None:
    make_folder(tmp_path, suffix=suffix)
    for file in tmp_path.rglob(f"*.{suffix}"):
        os.utime(file, ns=(10**18, 10**18))
    before = load(f"folder:{tmp_path}")
    change(tmp_path)
    after = load(f"folder:{tmp_path}")
    classes = sorted(file.name for file in (tmp_path / "train").iterdir())
    assert after.classes == tuple(classes)
    expected = Counter(
        (np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes(), classes.index(file.parent.name))
        for file in (tmp_path / "test").rglob(f"*.{suffix}")
    )
    assert contents(after.test) == expected != contents(before.test)


def test_cache_falls_back_to_the_users_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    make_folder(folder)
    (folder / ".pyro-delta-cache").write_text("a file where the cache should be")
    first = load(f"folder:{folder}")
    assert len(list((tmp_path / "user-cache" / "pyro-delta").iterdir())) == 1
    for file in folder.rglob("*.png"):
        damage_keeping_size_and_time(file)
    assert same(load(f"folder:{folder}").train, first.train)


def test_no_place_for_a_cache_is_no_error(tmp_path: Path) -> None:
    written = make_folder(tmp_path / "pictures")
    (tmp_path / "pictures" / ".pyro-delta-cache").write_text("a file where the cache should be")
    (tmp_path / "user-cache").write_text("a file where the cache folder should be")
    assert contents(load(f"folder:{tmp_path / 'pictures'}").test) == written["test"]


# ---------------------------------------------------------------- mistakes in folders


def remove(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def write_mode(mode: str) -> Callable[[Path], None]:
    return lambda folder: Image.new(mode, (5, 4)).save(folder / "test" / "cat" / "1.png")


# what is done to a good folder, and what the message must say
MISTAKES: list[tuple[str, Callable[[Path], object], str]] = [
    ("no folder", remove, r"there is no data folder \S*pictures; "),
    ("no test", lambda f: remove(f / "test"), r"there is no folder \S*test; "),
    ("no train", lambda f: remove(f / "train"), r"there is no folder \S*train; "),
    ("empty class", lambda f: (f / "test" / "eel").mkdir(), r"\S*eel holds no images; "),
    ("empty split", lambda f: (remove(f / "test"), (f / "test").mkdir()), r"\S*test holds no images; "),
    (
        "damaged",
        lambda f: (f / "train" / "dog" / "3.png").write_bytes(b"no image"),
        r"\S*3.png is not a readable image",
    ),
    ("truncated", lambda f: truncate(f / "train" / "dog" / "3.png"), r"\S*dog/3.png is not a readable image .*replace"),
    (
        "size",
        lambda f: save(f / "test" / "cat" / "1.png", np.zeros((4, 6, 3), np.uint8)),
        r"\S*test/cat/1.png is 6×4 but \S*train/cat/0.png is 5×4 ",
    ),
    ("grey among colour", write_mode("L"), r"\S*test/cat/1.png is L but \S*train/cat/0.png is RGB; convert"),
    ("palette", write_mode("P"), r"\S*test/cat/1.png has mode P, .*; convert"),
    ("alpha", write_mode("RGBA"), r"\S*test/cat/1.png has mode RGBA, .*; convert"),
    ("16 bit", write_mode("I;16"), r"\S*test/cat/1.png has mode I;16, .*; convert"),
    (
        "classes differ",
        lambda f: (f / "test" / "dog").rename(f / "test" / "eel"),
        r"\S*train and \S*test have different classes \(only train/ has 'dog', only test/ has 'eel'\); ",
    ),
    (
        "classes in one split only",
        lambda f: (remove(f / "test"), save(f / "test" / "0.png", np.zeros((4, 5, 3), np.uint8))),
        r"\S*train and \S*test have different classes \(only train/ has class folders\); ",
    ),
    (
        "images beside classes",
        lambda f: save(f / "test" / "0.png", np.zeros((4, 5, 3), np.uint8)),
        r"\S*test holds both images \(0.png\) and folders \(cat\); ",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
@pytest.mark.parametrize("cached", [False, True])
def test_mistakes_in_folders(tmp_path: Path, spoil: Callable[[Path], object], message: str, cached: bool) -> None:
    folder = tmp_path / "pictures"
    make_folder(folder)
    if cached:
        load(f"folder:{folder}")
    spoil(folder)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        load(f"folder:{folder}")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digitz", "unknown data 'digitz'; did you mean 'digits'?"),
        ("imagenet", "unknown data 'imagenet'; did you mean 'imagenet32'?"),
        ("", "unknown data ''; `pyro-delta list` names all "),
        ("folder", "data.root is missing; give it a value."),
        ("folder:", "the data 'folder:' lack what follows the colon; write folder:PATH."),
        ("digits:", "the data 'digits' take nothing after a colon, as in 'digits:'; write digits "),
    ],
)
def test_unknown_dataset(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(hint)}"):
        load(name)


# ---------------------------------------------------------------- CIFAR-10 and MNIST


def test_cifar10_may_lie_in_the_root_itself(tmp_path: Path) -> None:
    written = make_folder(tmp_path, train=2, classes=tuple(CIFAR10_NAMES), shape=(32, 32, 3))
    assert contents(load("cifar10", root=tmp_path, validation=5).test) == written["test"]


@pytest.mark.parametrize(
    ("classes", "shape"), [(("cat", "dog"), (32, 32, 3)), (CIFAR10_NAMES, (32, 32)), (CIFAR10_NAMES, (28, 32, 3))]
)
def test_other_images_are_not_cifar10(tmp_path: Path, classes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    make_folder(tmp_path / "cifar10", train=2, classes=tuple(classes), shape=shape)
    with pytest.raises(UserError, match=r"does not hold CIFAR-10, .*airplane.*load other images as folder:"):
        load("cifar10", root=tmp_path, validation=1)


class OldPickler(pickle.Pickler):
    """Pickles element types as the NumPy of 2009 did, with the integer 0 for the flag `align`.

    The archive has (…, 0, 1), at which NumPy 2.4.0 to 2.4.4 warn; at (…, 0) every later one warns, too.
    """

    def reducer_override(self, obj: object) -> object:
        return (np.dtype, (obj.str.lstrip("|"), 0)) if isinstance(obj, np.dtype) else NotImplemented


def make_cifar10_archive(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter]:
    """The files of the distributed archive, small, with torchvision's table of checksums altered to match."""
    rng = np.random.default_rng(0)
    folder = home / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    written: dict[str, Counter] = {"train": Counter(), "test": Counter()}
    checksums = {}

    def dump(name: str, what: object) -> None:
        with open(folder / name, "wb") as file:
            OldPickler(file, protocol=2).dump(what)
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images, labels = rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4).tolist()
        dump(name, {"data": images, "labels": labels})
        written["test" if name == "test_batch" else "train"].update(
            (image.tobytes(), label) for image, label in zip(images, labels, strict=True)
        )
    dump("batches.meta", {"label_names": CIFAR10_NAMES})

    cifar10 = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar10, "train_list", [[name, checksums[name]] for name, _ in cifar10.train_list])
    monkeypatch.setattr(cifar10, "test_list", [[name, checksums[name]] for name, _ in cifar10.test_list])
    monkeypatch.setattr(cifar10, "meta", {**cifar10.meta, "md5": checksums["batches.meta"]})
    return written


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "file:///nowhere/cifar.tar.gz")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["file:///nowhere/"])
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["file:///nowhere/"])


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("below", ["cifar10", "."])
def test_cifar10_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    written = make_cifar10_archive(tmp_path / below, monkeypatch)
    data = load("cifar10", root=tmp_path, validation=6)
    assert data.spec == ImageSpec(3, 32, 32, 256)
    assert data.classes == tuple(CIFAR10_NAMES)
    assert len(data.validation) == 6
    assert contents(data.train) + contents(data.validation) == written["train"]
    assert contents(data.test) == written["test"]


@pytest.mark.usefixtures("_no_network")
@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter extracted tar archives:DeprecationWarning")
def test_cifar10_archive_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the error message tells people without a network to do."""
    home = tmp_path / "cifar10"
    written = make_cifar10_archive(home, monkeypatch)
    with tarfile.open(home / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(home / "cifar-10-batches-py", "cifar-10-batches-py")
    (home / "cifar-10-batches-py").rename(tmp_path / "elsewhere")
    md5 = hashlib.md5((home / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5)
    assert contents(load("cifar10", root=tmp_path, validation=6).test) == written["test"]


@pytest.mark.usefixtures("_no_network")
def test_damaged_cifar10_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cifar10_archive(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"")
    with pytest.raises(UserError, match=r"^CIFAR-10 could be neither read from"):
        load("cifar10", root=tmp_path)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar10",
            r"CIFAR-10 .*cifar10 nor downloaded \(.+\); put cifar-10-python.tar.gz, or .*\.png, into \S*cifar10\.",
        ),
        ("mnist", r"MNIST .*mnist nor downloaded \(.+\); put the four \*-ubyte.gz files .* into \S*mnist/MNIST/raw\."),
        ("fashion_mnist", r"Fashion-MNIST .* put the four \*-ubyte.gz .* into \S*fashion_mnist/FashionMNIST/raw\."),
        ("binarised_mnist", r"there is no binarized_mnist_train.amat in \S+; put .*_test.amat of http:\S+ there\."),
    ],
)
@pytest.mark.parametrize("root", [".", "not/there"])
def test_no_files_and_no_network(tmp_path: Path, name: str, message: str, root: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        load(name, root=tmp_path / root)
    assert list(tmp_path.iterdir()) == []


def make_mnist(
    home: Path, *, compressed: bool, monkeypatch: pytest.MonkeyPatch, kind: str = "MNIST"
) -> dict[str, Counter]:
    """The four IDX files of MNIST: big-endian header, then bytes."""
    rng = np.random.default_rng(0)
    raw = home / kind / "raw"
    raw.mkdir(parents=True)
    written, checksums = {}, []
    for split, stem, count in (("train", "train", 12), ("test", "t10k", 4)):
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count, np.uint8)
        written[split] = Counter((x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True))
        for name, values in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            magic = 0x800 + values.ndim
            content = np.array([magic, *values.shape], dtype=">i4").tobytes() + values.tobytes()
            if compressed:
                content, name = gzip.compress(content), f"{name}.gz"
                checksums.append((name, hashlib.md5(content).hexdigest()))
            (raw / name).write_bytes(content)
    if compressed:
        monkeypatch.setattr(getattr(torchvision.datasets, kind), "resources", checksums)
    return written


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize(
    ("name", "kind", "first", "last"),
    [("mnist", "MNIST", "0", "9"), ("fashion_mnist", "FashionMNIST", "t-shirt_top", "ankle_boot")],
)
@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize("compressed", [False, True])
def test_mnist(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
    first: str,
    last: str,
    below: bool,
    compressed: bool,
) -> None:
    home = tmp_path / name if below else tmp_path
    written = make_mnist(home, compressed=compressed, monkeypatch=monkeypatch, kind=kind)
    data = load(name, root=tmp_path, validation=4)
    assert data.spec == ImageSpec(1, 28, 28, 256)
    assert data.classes is not None
    assert (len(data.classes), data.classes[0], data.classes[-1]) == (10, first, last)
    assert contents(data.train) + contents(data.validation) == written["train"]
    assert contents(data.test) == written["test"]


def write_amat(path: Path, count: int, seed: int, end: str = " \n") -> Counter:
    """A file of the binarised MNIST: lines of 784 times 0 or 1, a space behind each."""
    rows = np.random.default_rng(seed).integers(0, 2, (count, 784), np.uint8)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(" ".join(map(str, row)) + end for row in rows))
    return Counter((row.tobytes(), None) for row in rows)


@pytest.mark.parametrize("below", ["binarised_mnist", "."])
@pytest.mark.parametrize("end", [" \n", "\n", "\r\n"])
def test_binarised_mnist(tmp_path: Path, below: str, end: str) -> None:
    sizes = {"train": 8, "valid": 4, "test": 5}
    written = {
        part: write_amat(tmp_path / below / f"binarized_mnist_{part}.amat", count, count, end)
        for part, count in sizes.items()
    }
    data, other = load("binarised_mnist", root=tmp_path), load("binarised_mnist", root=tmp_path, validation=3, seed=1)
    assert data.spec == ImageSpec(1, 28, 28, 2)
    for part, name in zip(PARTS, sizes, strict=True):
        assert contents(getattr(data, part)) == written[name]
    assert same(data.test, other.test)
    assert len(other.validation) == 3
    with pytest.raises(UserError, match=r"there are 4 validation data, not 9; ask for 1 to 4"):
        load("binarised_mnist", root=tmp_path, validation=9)


# what becomes of the lines of a file
NO_AMAT: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "a number too few": lambda text: text[2:],
    "cut off": lambda text: text[:-300],
    "a 2": lambda text: text.replace("1", "2", 1),
    "two digits": lambda text: text.replace("0 ", "0", 1),
    "real numbers": lambda text: text.replace("1", "1.0"),
    "one long line": lambda text: text.replace("\n", ""),
    "a web page": lambda text: "<html>404</html>",
}


@pytest.mark.parametrize("name", NO_AMAT)
def test_no_binarised_mnist(tmp_path: Path, name: str) -> None:
    for part in ("train", "valid", "test"):
        write_amat(tmp_path / f"binarized_mnist_{part}.amat", 4, 0)
    path = tmp_path / "binarized_mnist_valid.amat"
    path.write_text(NO_AMAT[name](path.read_text()))
    with pytest.raises(UserError, match=r"^\S+valid.amat does not hold lines of 784 times 0 or 1; fetch it again\.$"):
        load("binarised_mnist", root=tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"^there is no binarized_mnist_valid.amat in "):
        load("binarised_mnist", root=tmp_path)


@pytest.mark.usefixtures("_no_network")
def test_damaged_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path, compressed=False, monkeypatch=monkeypatch)
    truncate(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte")
    with pytest.raises(UserError, match=r"^MNIST could be neither read from .*and nothing else"):
        load("mnist", root=tmp_path)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands for the hosts of both data sets."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *given: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{url}cifar-10-python.tar.gz")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder
        server.shutdown()


def serve_mnist(served: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    written = make_mnist(served / "home", compressed=True, monkeypatch=monkeypatch)
    for file in (served / "home" / "MNIST" / "raw").iterdir():
        file.rename(served / file.name)
    return written["test"]


def serve_cifar10(served: Path, monkeypatch: pytest.MonkeyPatch) -> Counter:
    written = make_cifar10_archive(served / "home", monkeypatch)
    with tarfile.open(served / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(served / "home" / "cifar-10-batches-py", "cifar-10-batches-py")
    md5 = hashlib.md5((served / "cifar-10-python.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5)
    return written["test"]


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter extracted tar archives:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "serve", "last"),
    [("mnist", serve_mnist, "t10k-labels-idx1-ubyte.gz"), ("cifar10", serve_cifar10, "cifar-10-python.tar.gz")],
)
def test_a_download_comes_whole_or_not_at_all(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, serve: Callable, last: str
) -> None:
    test = serve(served, monkeypatch)
    whole, root = (served / last).read_bytes(), tmp_path / "root"
    (served / last).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"neither read from {root / name} nor downloaded"):
        load(name, root=root, validation=4)
    assert [path.name for path in tmp_path.iterdir()] == ["served"]
    (served / last).write_bytes(whole)
    assert contents(load(name, root=root, validation=4).test) == test
    for file in served.glob("*.gz"):
        file.unlink()
    assert contents(load(name, root=root, validation=4).test) == test
    assert [path.name for path in root.iterdir()] == [name]


# ---------------------------------------------------------------- batches


def numbered(count: int) -> Split:
    """Images of one pixel which is their own index."""
    return Split(torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1), None)


def test_epoch_order() -> None:
    orders = {(seed, epoch): epoch_order(50, epoch, seed) for seed in range(4) for epoch in range(4)}
    for (seed, epoch), order in orders.items():
        assert order.dtype == torch.int64
        assert torch.equal(order.sort().values, torch.arange(50))
        assert torch.equal(order, epoch_order(50, epoch, seed))
    assert len({tuple(order.tolist()) for order in orders.values()}) == 16  # no (seed, epoch) repeats another


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (13, 4), (7, 7), (5, 1)])
def test_an_epoch_covers_the_data_once(count: int, batch_size: int) -> None:
    batches = Batches(numbered(count), batch_size, seed=3, device="cpu")
    steps = count // batch_size
    assert batches.batches_per_epoch == steps
    for epoch in range(3):
        stream = [batches.batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        assert all(x_bchw.shape == (batch_size, 1, 1, 1) and x_bchw.dtype == torch.uint8 for x_bchw in stream)
        seen = torch.cat(stream).flatten().tolist()
        assert len(set(seen)) == len(seen) == steps * batch_size
        assert seen == epoch_order(count, epoch, 3)[: len(seen)].tolist()


def test_batches_depend_on_step_and_seed_only() -> None:
    steps = range(23)
    whole = [batches.batch(step) for batches in [Batches(numbered(10), 3, 0, "cpu")] for step in steps]
    resumed = Batches(numbered(10), 3, 0, "cpu")
    assert all(torch.equal(resumed.batch(step), whole[step]) for step in steps[8:])
    assert all(torch.equal(resumed.batch(step), whole[step]) for step in reversed(steps))
    other = Batches(numbered(10), 3, 1, "cpu")
    assert any(not torch.equal(other.batch(step), whole[step]) for step in steps)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_the_device_equal_those_on_the_cpu() -> None:
    on_cpu, on_gpu = (Batches(numbered(10), 3, 0, device) for device in ("cpu", "cuda"))
    for step in range(7):
        assert on_gpu.batch(step).is_cuda
        assert torch.equal(on_gpu.batch(step).cpu(), on_cpu.batch(step))


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_batch_size_must_fit(batch_size: int) -> None:
    with pytest.raises(UserError, match=f"batch size {batch_size} does not fit 10 training data; choose 1 to 10"):
        Batches(numbered(10), batch_size, 0, "cpu")


def test_negative_step() -> None:
    with pytest.raises(ValueError, match="step -1 is negative"):
        Batches(numbered(10), 2, 0, "cpu").batch(-1)

"""Data of one's own: tensors, arrays, torch data sets, programs in files; and the specs that say what data are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from pyro_delta.data import ArraySpec, Batches, Spec, Split, Splits, from_dataset, from_tensors, load
from pyro_delta.data.audio import SoundSpec
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.named import checked_data
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.data.sequences.text import ALPHABET
from pyro_delta.data.spec import spec_as_dict, spec_of_dict
from pyro_delta.data.tensors import as_split
from pyro_delta.data.values import blank, dtype_of, random_values
from pyro_delta.errors import UserError
from pyro_delta.protocol import Spec as SpecProtocol

PARTS = ("train", "validation", "test")
N = 40


class Items(Dataset):
    """A torch data set of given items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Endless(Dataset):
    """A data set without a length."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(3)


class Stream(IterableDataset):
    """A data set that can only be read in order."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.zeros(4, 3))


def real() -> Tensor:
    """(N, 3), each its own number throughout, so that data can be told apart."""
    return torch.arange(N).float()[:, None] + torch.tensor([0.0, 0.25, 0.5])


def whole() -> Tensor:
    return torch.arange(3 * N).reshape(N, 3)


def readonly() -> np.ndarray:
    array = real().numpy().copy()
    array.flags.writeable = False
    return array


def rows(data: Splits | Split) -> list[tuple[float, ...]]:
    """What the data are, in order."""
    splits = [data] if isinstance(data, Split) else [getattr(data, part) for part in PARTS]
    return [tuple(row) for split in splits for row in split.x.flatten(1).tolist()]


REAL, WHOLE = ArraySpec((3,)), ArraySpec((3,), levels=3 * N)

# what is given, and the spec that is made of it; the data are those of `real()` or of `whole()`
GIVEN: dict[str, tuple[Callable[[], Any], Spec]] = {
    "tensor": (real, REAL),
    "double": (lambda: real().double(), REAL),
    "half": (lambda: real().half(), REAL),
    "array": (lambda: real().numpy(), REAL),
    "array of doubles": (lambda: real().double().numpy(), REAL),
    "array that must not be written to": (readonly, REAL),
    "array that runs backwards": (lambda: real().numpy()[::-1], REAL),
    "lists": (lambda: real().tolist(), REAL),
    "whole numbers": (whole, WHOLE),
    "array of uint8": (lambda: whole().numpy().astype(np.uint8), WHOLE),
    "array of uint16": (lambda: whole().numpy().astype(np.uint16), WHOLE),
    "array of uint32": (lambda: whole().numpy().astype(np.uint32), WHOLE),
    "array of uint64": (lambda: whole().numpy().astype(np.uint64), WHOLE),
    "dict": (lambda: {"x": real()}, REAL),
    "dict of arrays": (lambda: {"x": whole().numpy()}, WHOLE),
    "split": (lambda: Split(real()), REAL),
    "items x": (lambda: Items(list(real())), REAL),
    "items x, arrays": (lambda: Items(list(whole().numpy())), WHOLE),
    "items (x,)": (lambda: TensorDataset(real()), REAL),
    "items (x, label)": (lambda: TensorDataset(real(), torch.arange(N) % 4), REAL),
    "items [x, label]": (lambda: Items([[x, 1] for x in whole()]), WHOLE),
    "items by name": (lambda: Items([{"x": x, "labels": 1} for x in real()]), REAL),
}


@pytest.mark.parametrize("name", GIVEN)
def test_whatever_holds_data(name: str) -> None:
    make, spec = GIVEN[name]
    data = from_tensors(make())
    assert data.spec == spec
    assert data.classes is None
    assert sorted(rows(data)) == sorted(map(tuple, (real() if spec == REAL else whole()).tolist()))
    for part in PARTS:
        split = getattr(data, part)
        assert isinstance(split, Split)
        assert split.x.dtype == (torch.float32 if spec == REAL else torch.uint8)
        assert split.extras == {}
        assert isinstance(split.batch(slice(2)), Tensor)
        assert (split.labels is not None) == ("label" in name or "by name" in name)
    assert (len(data.train), len(data.validation), len(data.test)) == (33, 3, 4)


@pytest.mark.parametrize(
    ("x", "levels"),
    [
        (torch.zeros(N, 3, dtype=torch.int64), 2),
        (torch.zeros(N, 3, dtype=torch.bool), 2),
        (torch.arange(3 * N).reshape(N, 3) % 2 == 0, 2),
        (torch.full((N, 3), 255, dtype=torch.uint8), 256),
        (torch.full((N, 3), 256), 257),
        (torch.full((N, 3), 2**31 - 1), 2**31),
    ],
)
def test_levels_are_guessed_from_whole_numbers(x: Tensor, levels: int) -> None:
    data = from_tensors(x)
    assert data.spec == ArraySpec((3,), levels=levels)
    assert data.train.x.dtype == (torch.uint8 if levels <= 256 else torch.int64)
    assert sorted(rows(data)) == sorted(map(tuple, x.long().tolist()))


def test_what_is_said_is_kept() -> None:
    assert from_tensors(whole(), levels=1000).spec == ArraySpec((3,), levels=1000)
    assert from_tensors(whole().float(), levels=1000).train.x.dtype == torch.int64
    assert from_tensors(real(), resolution=0.25).spec == ArraySpec((3,), resolution=0.25)
    assert from_tensors(real(), ordered=False).spec == ArraySpec((3,), ordered=False)
    assert from_tensors(real()[:, 0]).spec == ArraySpec(())
    tokens = from_tensors(whole(), spec=TokenSpec(3, 200))
    assert tokens.spec == TokenSpec(3, 200)
    assert tokens.train.x.dtype == torch.uint8
    images = from_tensors(torch.zeros(N, 1, 4, 5, dtype=torch.int64), spec=ImageSpec(1, 4, 5, 17))
    assert images.train.x.dtype == torch.uint8


def test_what_goes_with_the_data_goes_with_each_datum() -> None:
    number = torch.arange(N)
    given = {"x": real(), "labels": (number % 4).numpy(), "lengths": number + 100, "mask": np.arange(N) % 2 == 0}
    data = from_tensors(given, classes=("a", "b", "c", "d"))
    assert data.classes == ("a", "b", "c", "d")
    for part in PARTS:
        split = getattr(data, part)
        here = split.x[:, 0].long()
        assert torch.equal(split.labels, here % 4)
        assert split.labels.dtype == torch.int64
        assert split.extras["mask"].dtype == torch.bool
        batch = split.batch(torch.tensor([2, 0]))
        assert list(batch) == ["x", "lengths", "mask"]
        assert torch.equal(batch["x"], split.x[[2, 0]])
        assert torch.equal(batch["lengths"], here[[2, 0]] + 100)
        assert torch.equal(batch["mask"], here[[2, 0]] % 2 == 0)
    # every class has its part of each split
    assert data.train.labels.bincount().tolist() in ([8, 8, 8, 9], [8, 8, 9, 8], [8, 9, 8, 8], [9, 8, 8, 8])
    # and in training, too
    batch = Batches(data.train, 5, seed=0, device="cpu").batch(3)
    assert torch.equal(batch["lengths"], batch["x"][:, 0].long() + 100)


def test_items_by_name_are_a_dict() -> None:
    items = [{"x": x, "lengths": 100 + i, "labels": i % 4} for i, x in enumerate(real())]
    data = from_dataset(Items(items), classes=tuple("abcd"))
    assert torch.equal(data.test.extras["lengths"], data.test.x[:, 0].long() + 100)
    assert torch.equal(data.test.labels, data.test.x[:, 0].long() % 4)


def test_names_that_programs_take_may_replace_x() -> None:
    split = as_split({"frames": real(), "lengths": torch.ones(N)}, named=True)
    assert (split.key, list(split.extras)) == ("frames", ["lengths"])
    assert list(split.batch()) == ["frames", "lengths"]
    for part in (split.take(slice(3)), split.to("cpu")):
        assert (part.key, list(part.extras)) == ("frames", ["lengths"])
    assert as_split({"x": real()}, named=True).key == "x"


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (33, 3, 4)),
        ({"validation": 10}, (26, 10, 4)),
        ({"validation": 35}, (1, 35, 4)),
        ({"test": 1000 + real()[:7]}, (36, 4, 7)),
        ({"test": 1000 + real()[:7], "validation": 1}, (39, 1, 7)),
        ({"validation": 2000 + real()[:5]}, (36, 5, 4)),
        ({"validation": 2000 + real()[:5], "test": 1000 + real()[:7]}, (40, 5, 7)),
    ],
)
def test_splits_are_disjoint_and_complete(options: dict[str, Any], sizes: tuple[int, ...], labelled: bool) -> None:
    given = {"x": real(), "labels": torch.arange(N) % 3} if labelled else real()
    data = from_tensors(given, **options)
    assert tuple(len(getattr(data, part)) for part in PARTS) == sizes
    expected = [*map(tuple, real().tolist())]
    for part in ("validation", "test"):
        if isinstance(options.get(part), Tensor):
            own = [*map(tuple, options[part].tolist())]
            assert rows(getattr(data, part)) == own  # as they were given
            expected += own
    assert sorted(rows(data)) == sorted(expected)
    assert len(set(rows(data))) == len(rows(data))


def test_seeds() -> None:
    first, again, other = (from_tensors(real(), seed=seed) for seed in (1, 1, 2))
    for part in PARTS:
        assert rows(getattr(first, part)) == rows(getattr(again, part))
    assert rows(first.test) == rows(other.test)  # runs with different seeds are compared on the same data
    assert set(rows(first.validation)) != set(rows(other.validation))
    assert rows(first.train) != rows(other.train)
    assert set(rows(first.train) + rows(first.validation)) == set(rows(other.train) + rows(other.validation))


def test_what_was_given_is_left_as_it_was() -> None:
    x, labels = real(), torch.arange(N) % 3
    from_tensors({"x": x, "labels": labels})
    assert torch.equal(x, real())
    assert torch.equal(labels, torch.arange(N) % 3)


# ---------------------------------------------------------------- mistakes

X = real()
# what is given, options, and what the message must say
MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": (None, {}, r"NoneType is not data; give a tensor or an array"),
    "text": ("digits", {}, r"str is not data; "),
    "array of texts": (np.array(["a"] * N), {}, r"ndarray is not data; "),
    "array of objects": (np.array([[None, 1]] * N), {}, r"ndarray is not data; "),
    "ragged lists": ([[1.0], [1.0, 2.0]], {}, r"list is not data; "),
    "a number": (torch.tensor(3.0), {}, r"tensor\(3.\) is not data; give a tensor \(N, \*shape\)"),
    "complex numbers": (X.to(torch.complex64), {}, r"data are complex numbers; give real ones"),
    "no data": (torch.zeros(0, 3), {}, r"train holds no data; give some"),
    "no whole numbers": (torch.zeros(0, 3, dtype=torch.int64), {}, r"train holds no data; give some"),
    "one datum": (X[:1], {}, r"too few data for training, .*: 1 is left to divide; add data"),
    "two data": (X[:2], {}, r"too few data for training, .*: 1 is left to divide; add data"),
    "an empty datum": (torch.zeros(N, 0), {}, r"data of shape \(0,\) hold nothing"),
    "nan": (
        X.clone().fill_(torch.nan),
        {},
        r"train holds 120 of 120 numbers that are NaN or infinite; take them out",
    ),
    "infinity": (X / 0, {}, r"train holds \d+ of \d+ numbers that are NaN or infinite"),
    "too large": (np.full((N, 3), 1e300), {}, r"train holds \d+ of \d+ numbers that are NaN or infinite"),
    "below 0": (whole() - 1, {}, r"train holds integers -1 to 118; they must lie in 0 to 118"),
    "above the levels": (whole(), {"levels": 100}, r"train holds integers 0 to 119; they must lie in 0 to 99"),
    "between the levels": (X, {"levels": 100}, r"train holds 0.25, which is not an integer 0 to 99"),
    "nan of levels": (X * torch.nan, {"levels": 100}, r"train holds nan, which is not an integer 0 to 99"),
    "infinity of levels": ((1 + X) / 0, {"levels": 100}, r"train holds inf, which is not an integer 0 to 99"),
    "one level": (whole(), {"levels": 1}, r"levels = 1 is out of range; integers have 2 to 2147483648 levels"),
    "too many levels": (whole(), {"levels": 2**31 + 1}, r"levels = 2147483649 is out of range"),
    "numbers too large": (whole() + 2**31, {}, r"levels = 2147483768 is out of range"),
    "resolution of integers": (whole(), {"resolution": 1.0}, r"resolution 1.0 is of real numbers"),
    "resolution 0": (X, {"resolution": 0.0}, r"resolution 0.0 is of real numbers, and finite and above 0"),
    "resolution nan": (X, {"resolution": torch.nan}, r"resolution nan is of real numbers"),
    "a spec of another shape": (X, {"spec": ArraySpec((4,))}, r"train has shape \(40, 3\); it must be \(N, 4\)"),
    "a spec and levels": (whole(), {"spec": WHOLE, "levels": 500}, r"a spec says levels and resolution itself"),
    "no validation data": (X, {"validation": 0}, r"cannot hold 0 validation data out of 36 training data"),
    "less than none": (X, {"validation": -1}, r"cannot hold -1 validation data out of 36 training data"),
    "nothing left": (X, {"validation": 36}, r"cannot hold 36 validation data out of 36 .* fewer than 36"),
    "validation of another shape": (
        X,
        {"validation": X[:, :2]},
        r"validation has shape \(40, 2\); it must be \(N, 3\)",
    ),
    "test of another shape": (X, {"test": X[:, :2]}, r"test has shape \(40, 2\); it must be \(N, 3\)"),
    "test without data": (X, {"test": X[:0]}, r"test holds no data"),
    "a test that counts": (X, {"test": 5}, r"\S+ is not data; give a tensor"),
    "test beyond the levels": (whole(), {"test": whole() + 1}, r"test holds integers 1 to 120; .* 0 to 119"),
    "seed below 0": (X, {"seed": -1}, r"seed -1 is negative; give a whole number, 0 or more"),
    "a dict without x": ({"y": X, "labels": whole()[:, 0]}, {}, r"a dict of data has the keys \['labels', 'y'\]; name"),
    "an empty dict": ({}, {}, r"a dict of data has the keys \[\]; name the data themselves 'x'"),
    "too few lengths": ({"x": X, "lengths": X[1:, 0]}, {}, r"'lengths' has 39 entries for 40 data; give one for each"),
    "one length": ({"x": X, "length": 3}, {}, r"'length' has 1 entries for 40 data; give one for each"),
    "nothing by name": ({"x": X, "mask": None}, {}, r"NoneType is not data"),
    "too few labels": ({"x": X, "labels": np.zeros(39)}, {}, r"'labels' has 39 entries for 40 data"),
    "labels in words": ({"x": X, "labels": np.array(["cat"] * N)}, {}, r"'labels' holds text or objects; give whole"),
    "labels one-hot": ({"x": X, "labels": np.zeros((N, 4))}, {}, r"labels have shape \(40, 4\); give one whole number"),
    "labels in between": ({"x": X, "labels": X[:, 1]}, {}, r"labels hold 0.25; give one whole number for each datum"),
    "labels without a name": (
        {"x": X, "labels": whole()[:, 0]},
        {"classes": ("a", "b")},
        r"labels of \w+ go up to \d+",
    ),
    "lengths in training alone": (
        {"x": X, "lengths": X[:, 0]},
        {"validation": X},
        r"beside x, validation has nothing and train 'lengths'; give both the same",
    ),
    "lengths in the test alone": (
        X,
        {"test": {"x": X, "lengths": X[:, 0]}},
        r"beside x, test has 'lengths' and train nothing",
    ),
    "a data set without length": (Endless(), {}, r"the data set Endless has no length; give one that has"),
    "a stream": (Stream(), {}, r"the data set Stream has no length"),
    "an empty data set": (Items([]), {}, r"the data set Items is empty"),
    "items of three parts": (
        TensorDataset(X, X, X),
        {},
        r"an item of the data set has 3 parts; give x, \(x, label\) or",
    ),
    "items of no part": (Items([()] * N), {}, r"an item of the data set has 0 parts"),
    "items of other shapes": (
        Items([torch.zeros(1 + i) for i in range(N)]),
        {},
        r"items of the data set Items differ in shape \(.*\); bring them to one, with a mask or lengths beside them",
    ),
    "items of other names": (
        Items([{"x": X[0]}, {"x": X[0], "y": X[0]}] * 20),
        {},
        r"items of the data set Items have different names, 'x' and 'x', 'y'; give all the same",
    ),
    "items with labels in words": (Items([(x, "cat") for x in X]), {}, r"str is not data"),
    "items that are nothing": (Items([None] * N), {}, r"NoneType is not data"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_data(name: str) -> None:
    given, options, message = MISTAKES[name]
    with pytest.raises(UserError, match=f"^{message}") as caught:
        from_tensors(given, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


# ---------------------------------------------------------------- specs

LETTERS = "abcdefghij\n\r\x0b\u2028"

# spec, shape, positions, scored numbers, unit, suffix, type
SPECS: dict[str, tuple[Spec, tuple[int, ...], int, int, str, str, torch.dtype]] = {
    "real": (ArraySpec((5,)), (5,), 5, 5, "bits/dim", ".txt", torch.float32),
    "real, fine": (ArraySpec((5,), resolution=0.1), (5,), 5, 5, "bits/dim", ".txt", torch.float32),
    "frames": (ArraySpec((3, 2, 4)), (3, 2, 4), 3, 24, "bits/dim", ".txt", torch.float32),
    "table": (ArraySpec((5,), ordered=False), (5,), 1, 5, "bits/dim", ".txt", torch.float32),
    "number": (ArraySpec(()), (), 1, 1, "bits/dim", ".txt", torch.float32),
    "bits": (ArraySpec((5,), levels=2), (5,), 5, 5, "bits/dim", ".txt", torch.uint8),
    "integers": (ArraySpec((2, 3), levels=257), (2, 3), 2, 6, "bits/dim", ".txt", torch.int64),
    "large integers": (ArraySpec((3,), levels=2**31), (3,), 3, 3, "bits/dim", ".txt", torch.int64),
    "letters": (TokenSpec(6, 14, LETTERS), (6,), 6, 6, "bits/token", ".txt", torch.uint8),
    "bytes": (TokenSpec(6, 256), (6,), 6, 6, "bits/token", ".txt", torch.uint8),
    "tokens": (TokenSpec(6, 50_000), (6,), 6, 6, "bits/token", ".txt", torch.int64),
    "many tokens": (TokenSpec(6, 2**31), (6,), 6, 6, "bits/token", ".txt", torch.int64),
    "scores": (ScoreSpec(6, 47), (6, 4), 6, 24, "bits/note", ".mid", torch.uint8),
    "scores of two voices": (ScoreSpec(6, 2, voices=2, lowest=127), (6, 2), 6, 12, "bits/note", ".mid", torch.uint8),
    "sounds": (SoundSpec(6), (6, 160), 6, 960, "bits/sample", ".wav", torch.uint8),
    "sounds of few levels": (SoundSpec(6, samples=2, levels=4), (6, 2), 6, 12, "bits/sample", ".wav", torch.uint8),
    "grey": (ImageSpec(1, 4, 5, 17), (1, 4, 5), 4, 20, "bits/dim", ".png", torch.uint8),
    "colour": (ImageSpec(3, 4, 5, 256), (3, 4, 5), 4, 60, "bits/dim", ".png", torch.uint8),
}


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys())
def case(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    return request.param


def test_specs_answer_what_is_asked(case: tuple[Any, ...]) -> None:
    spec, shape, positions, scored, unit, suffix, dtype = case
    assert isinstance(spec, SpecProtocol)
    assert (spec.shape, spec.positions, spec.scored, spec.unit, spec.suffix) == (shape, positions, scored, unit, suffix)
    assert dtype_of(spec) == dtype
    assert blank(spec, 2).shape == (2, *shape)
    assert blank(spec, 2).dtype == dtype
    x = random_values(spec, 100)
    assert x.shape == (100, *shape)
    if spec.levels is not None:
        assert 0 <= int(x.min()) <= int(x.max()) < spec.levels


def test_every_number_has_a_place_and_a_rank(case: tuple[Any, ...]) -> None:
    spec, shape, positions, *_ = case
    places, order = spec.places(), spec.order()
    assert places.shape == order.shape == shape
    assert places.dtype.kind == order.dtype.kind == "i"
    assert np.unique(places).tolist() == list(range(positions))
    assert np.unique(order).tolist() == list(range(int(order.max()) + 1))
    # a position is over before the next begins
    by_rank = places.reshape(-1)[np.argsort(order.reshape(-1), kind="stable")]
    assert (np.diff(by_rank) >= 0).all()
    # and numbers of one rank, which are scored together, have one position
    for rank in range(int(order.max()) + 1):
        assert len(np.unique(places[order == rank])) == 1
        assert isinstance(spec.group(rank), str)


def test_places_and_orders_by_hand() -> None:
    assert ArraySpec((3, 2)).places().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert ArraySpec((3, 2)).order().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert ArraySpec((3, 2), ordered=False).places().tolist() == [[0, 0]] * 3
    assert ArraySpec((3, 2), ordered=False).order().tolist() == [[0, 0]] * 3
    assert ArraySpec(()).places().tolist() == 0
    assert TokenSpec(4, 9).places().tolist() == TokenSpec(4, 9).order().tolist() == [0, 1, 2, 3]
    image = ImageSpec(2, 2, 3, 5)
    assert image.places().tolist() == [[[0, 0, 0], [1, 1, 1]]] * 2
    assert image.order().tolist() == [[[0, 1, 2], [3, 4, 5]]] * 2
    score = ScoreSpec(2, 5, voices=3)
    assert score.places().tolist() == [[0, 0, 0], [1, 1, 1]]
    assert score.order().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert score.group(5) == "voice 2 of quarter note 1"
    assert (image.group(4), TokenSpec(4, 9).group(2), ArraySpec((3,)).group(1)) == (
        "pixel (1, 1)",
        "token 2",
        "position 1",
    )


def test_specs_are_saved_and_read_back(case: tuple[Any, ...]) -> None:
    spec = case[0]
    values = json.loads(json.dumps(spec_as_dict(spec)))
    back = spec_of_dict(values)
    assert back == spec
    assert hash(back) == hash(spec)
    assert type(back) is type(spec)
    assert values["kind"] == f"{type(spec).__module__}:{type(spec).__name__}"
    assert spec_of_dict(values) == spec  # the values are left as they were


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "pyro_delta.data.spec:ArraySpec"},
        {"kind": "pyro_delta.data.spec:Nothing", "event": [3]},
        {"kind": "pyro_delta.nowhere:ArraySpec", "event": [3]},
        {"kind": "pyro_delta.data.spec:ArraySpec", "event": [3], "colour": 1},
        {"kind": "pyro_delta.data.spec:ArraySpec", "event": [0]},
    ],
)
def test_what_is_no_saved_spec(values: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError, ImportError)):
        spec_of_dict(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArraySpec((3, 0)), r"data of shape \(3, 0\) hold nothing; every size must be at least 1"),
        (lambda: ArraySpec((-1,)), r"data of shape \(-1,\) hold nothing"),
        (lambda: ArraySpec((3,), levels=1), r"levels = 1 is out of range; integers have 2 to 2147483648 levels"),
        (lambda: ArraySpec((3,), levels=2**31 + 1), r"levels = 2147483649 is out of range"),
        (lambda: ArraySpec((3,), levels=5, resolution=1.0), r"resolution 1.0 is of real numbers"),
        (lambda: ArraySpec((3,), resolution=-1.0), r"resolution -1.0 is of real numbers"),
        (lambda: ArraySpec((3,), resolution=torch.inf), r"resolution inf is of real numbers"),
        (lambda: TokenSpec(0, 5), r"data of shape \(0,\) hold nothing"),
        (lambda: TokenSpec(4, 1), r"levels = 1 is out of range"),
        (lambda: TokenSpec(4, 2**31 + 1), r"levels = 2147483649 is out of range"),
        (lambda: TokenSpec(4, 3, "ab"), r"an alphabet of 2 different characters does not fit 3 levels"),
        (lambda: TokenSpec(4, 3, "abb"), r"an alphabet of 2 different characters does not fit 3 levels"),
        (lambda: ScoreSpec(0, 5), r"data of shape \(0, 4\) hold nothing"),
        (lambda: ScoreSpec(4, 5, voices=0), r"data of shape \(4, 0\) hold nothing"),
        (lambda: ScoreSpec(4, 60, lowest=70), r"the pitches 70 to 128 are not in 0 to 127, those of MIDI"),
        (lambda: ScoreSpec(4, 3, "abc"), r"a score has pitches, and no alphabet 'abc'"),
        (lambda: TokenSpec(4, 2, "abb"), r"an alphabet of 2 different characters does not fit 2 levels"),
    ],
)
def test_specs_of_nothing(make: Callable[[], Spec], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        make()


# ---------------------------------------------------------------- shown and opened


def shown(spec: Spec) -> Tensor:
    """Six data, with the extremes among them."""
    x = random_values(spec, 6)
    if spec == SPECS["bytes"][0]:
        x = 97 + x % 26  # bytes that are text
    elif spec.levels is not None:
        x[0], x[1] = 0, spec.levels - 1
    else:
        x[0], x[1] = 1e-30, -1e30
    return x


@pytest.mark.parametrize("name", [name for name, row in SPECS.items() if row[5] == ".txt"])
def test_what_is_shown_can_be_opened(name: str, tmp_path: Path) -> None:
    spec, *_, suffix, dtype = SPECS[name]
    x, path = shown(spec), tmp_path / f"data{suffix}"
    spec.show(x, path, columns=3)
    back, names = spec.open(path)
    assert back.dtype == dtype
    assert torch.equal(back, x.to(dtype))
    assert names == [f"data.txt/{number}" for number in (range(1, 7) if is_text(spec) else range(6))]
    few, names = spec.open(path, 2)
    assert torch.equal(few, x[:2].to(dtype))
    assert len(names) == 2
    spec.show(x.float() if spec.levels == 2 else x, path, columns=1)  # as distributions over counts draw them
    assert torch.equal(spec.open(path)[0], x.to(dtype))


def is_text(spec: Spec) -> bool:
    return isinstance(spec, TokenSpec) and (spec.alphabet is not None or spec.levels == 256)


def test_numbers_are_opened_from_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for spec, array in (
        (ArraySpec((3,)), np.random.default_rng(0).normal(size=(4, 3))),
        (ArraySpec((2, 3)), np.ones((4, 2, 3), np.float16)),
        (ArraySpec((3,), levels=2**31), np.full((4, 3), 2**31 - 1, np.uint32)),
        (ArraySpec((3,), levels=2), np.ones((4, 3), bool)),
        (ArraySpec((3,)), np.ones((4, 3), ">f4")),
    ):
        np.save(path, array)
        x, names = spec.open(path)
        assert torch.equal(x, torch.from_numpy(array.astype(np.float64)).to(x.dtype))
        assert names == ["x.npy/0", "x.npy/1", "x.npy/2", "x.npy/3"]
        np.save(path, array[0])
        assert torch.equal(spec.open(path)[0], x[:1])


def test_images_are_opened_from_pictures(tmp_path: Path) -> None:
    spec = ImageSpec(3, 4, 5, 256)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    for name, picture in zip("ab", pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    x, names = spec.open(tmp_path)
    assert torch.equal(x, torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    assert names == ["a.png", "b.png"]
    assert torch.equal(spec.open(tmp_path, 1)[0], x[:1])
    for other in (ImageSpec(1, 4, 5, 256), ImageSpec(3, 5, 4, 256), ImageSpec(3, 4, 5, 17)):
        with pytest.raises(UserError, match=r"^the pictures of \S+ are \(3, 4, 5\) with 256 levels, the run's images"):
            other.open(tmp_path)


def test_a_grid_of_images(tmp_path: Path) -> None:
    spec = ImageSpec(1, 64, 64, 2)
    spec.show(torch.ones(3, 1, 64, 64, dtype=torch.int64), tmp_path / "x.png", columns=2)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (2 * 64 + 3 * 2, 2 * 64 + 3 * 2)


def test_text_as_a_person_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    TokenSpec(4, 4, "ab\n\r").show(torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]]), path, columns=1)
    assert path.read_text(encoding="utf-8") == "ab⏎␍\naabb\n"
    TokenSpec(4, 256).show(torch.tensor([[*"été".encode()[:4]], [104, 255, 105, 33]]), path, columns=1)
    assert path.read_text(encoding="utf-8") == "ét\ufffd\nh\ufffdi!\n"
    TokenSpec(2, 300).show(torch.tensor([[299, 0]]), path, columns=1)
    assert path.read_text(encoding="utf-8") == "299 0\n"


def test_lines_are_cut_and_short_ones_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("abba and more\nab\n\nb⏎ab", encoding="utf-8")
    x, names = TokenSpec(4, len(ALPHABET), ALPHABET).open(path)
    assert ["".join(ALPHABET[token] for token in tokens) for tokens in x.tolist()] == ["abba", "b\nab"]
    assert names == ["x.txt/1", "x.txt/4"]


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def array(values: Any) -> Callable[[Path], object]:
    return lambda path: np.save(path, np.array(values))


LETTER_SPEC = TokenSpec(4, 3, "ab\n")
# spec, file, what is in it, and what the message must say
DAMAGED: dict[str, tuple[Spec, str, Callable[[Path], object], str]] = {
    "no file": (REAL, "x.txt", lambda path: None, r"cannot read \S+x.txt \(.*\); give a file of numbers"),
    "no array": (REAL, "x.npy", lambda path: None, r"cannot read \S+x.npy \(.*\); give a file of numbers"),
    "a folder": (REAL, "x.txt", Path.mkdir, r"cannot read \S+x.txt \(.*\); give a file of numbers"),
    "empty": (REAL, "x.txt", write(b""), r"\S+x.txt does not hold data of shape \(3,\): it has no real numbers"),
    "empty array file": (REAL, "x.npy", write(b""), r"\S+x.npy does not hold data of shape \(3,\): .*; give a file"),
    "no array file": (REAL, "x.npy", write(b"abc"), r"\S+x.npy does not hold data of shape \(3,\): .*; give a file"),
    "words": (REAL, "x.txt", write(b"one two three\n"), r"\S+x.txt does not hold data of shape \(3,\): .*; give"),
    "bytes": (REAL, "x.txt", write(b"\xff\xfe\xff"), r"\S+x.txt does not hold data of shape \(3,\): .*; give"),
    "ragged": (REAL, "x.txt", write(b"1 2 3\n1 2\n"), r"\S+x.txt does not hold data of shape \(3,\): .*; give"),
    "two data a line": (
        REAL,
        "x.txt",
        write(b"1 2 3 4 5 6\n"),
        r"\S+x.txt does not hold data of shape \(3,\): .*; give",
    ),
    "two numbers a line": (
        REAL,
        "x.txt",
        write(b"1 2\n" * 3),
        r"\S+x.txt does not hold data of shape \(3,\): .*; give",
    ),
    "nan": (REAL, "x.txt", write(b"1 nan 3\n"), r"\S+x.txt holds 1 of 3 numbers that are NaN"),
    "in between": (WHOLE, "x.txt", write(b"1 2.5 3\n"), r"\S+x.txt holds 2.5, which is not an integer 0 to 119"),
    "too large": (WHOLE, "x.txt", write(b"1 2 120\n"), r"\S+x.txt holds integers 1 to 120; they must lie in 0 to 119"),
    "other shape": (REAL, "x.npy", array([[1, 2], [3, 4]]), r"\S+x.npy has shape \(2, 2\); it must be \(N, 3\)"),
    "array of texts": (
        REAL,
        "x.npy",
        array([["a", "b", "c"]]),
        r"\S+x.npy does not hold data of shape \(3,\): it has no",
    ),
    "complex array": (REAL, "x.npy", array([[1j, 2, 3]]), r"\S+x.npy does not hold data of shape \(3,\): it has no"),
    "empty array": (REAL, "x.npy", array(np.zeros((0, 3))), r"\S+x.npy does not hold data of shape \(3,\): it has no"),
    "no text": (LETTER_SPEC, "x.txt", lambda path: None, r"cannot read \S+x.txt \(.*\); give a text file"),
    "not UTF-8": (LETTER_SPEC, "x.txt", write(b"\xff\xfe"), r"\S+x.txt is not text in UTF-8; convert it"),
    "short lines": (LETTER_SPEC, "x.txt", write(b"aba\n"), r"\S+x.txt has no line of 4 characters or more"),
    "no token": (LETTER_SPEC, "x.txt", write(b"abac\n"), r"the character 'c' is not among the 3 of the alphabet"),
    "no number of a token": (TokenSpec(3, 300), "x.txt", write(b"1 2 300\n"), r"\S+x.txt holds integers 1 to 300"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_hold_other_data(name: str, tmp_path: Path) -> None:
    spec, file, make, message = DAMAGED[name]
    make(tmp_path / file)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        spec.open(tmp_path / file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


# ---------------------------------------------------------------- descriptions


def test_descriptions_are_windows_of_text() -> None:
    data = load("descriptions")
    assert data.classes is not None
    assert "iris" in data.classes
    text = "\n".join("".join(data.spec.texts(getattr(data, part).x)) for part in PARTS)
    assert set(text) <= set(ALPHABET)
    assert text.count("the") > 100
    seen = [{tuple(row) for row in getattr(data, part).x.tolist()} for part in PARTS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    sizes = [len(getattr(data, part)) for part in PARTS]
    assert sum(sizes) > 1000
    assert sizes[0] == pytest.approx(0.8 * sum(sizes), rel=0.02)
    assert sizes[1] == pytest.approx(0.1 * sum(sizes), rel=0.1)


def test_every_split_has_one_stretch_of_a_description() -> None:
    data = load("descriptions")
    label = data.classes.index("wine_data")
    text = (resources.files("sklearn.datasets.descr") / "wine_data.rst").read_text(encoding="utf-8").lower()
    text = "".join(character for character in text if character in ALPHABET)
    windows = [text[place : place + 32] for place in range(0, len(text) - 31, 32)]
    count = len(windows)
    for part, first, last in (("train", 0, 8), ("validation", 8, 9), ("test", 9, 10)):
        split = getattr(data, part)
        found = data.spec.texts(split.x[split.labels == label])
        assert sorted(found) == sorted(windows[count * first // 10 : count * last // 10])


@pytest.mark.parametrize("count", [0, -1, 10_000])
def test_descriptions_have_so_many_windows(count: int) -> None:
    with pytest.raises(UserError, match=rf"^descriptions has \d+ validation windows, not {count}; ask for 1 to \d+\."):
        load("descriptions", validation=count)


# ---------------------------------------------------------------- programs in files

MINE = """
import torch
from pyro_delta.data import ArraySpec, Split, Splits, from_tensors

X = torch.arange(120).reshape(40, 3)


def make(count: int = 40, seed: int = 0):
    return from_tensors(X[:count], levels=200, seed=seed)


class Mine(Splits):
    "numbers in a row"

    preset = "descriptions"
    spec = ArraySpec((3,), levels=200)

    def __init__(self, *, root: str = "data", seed: int = 0) -> None:
        made = make(seed=seed)
        super().__init__(self.spec, made.train, made.validation, made.test)
        self.root = root


class Plain:
    "no class of ours"

    spec, classes = ArraySpec((3,), levels=200), None
    train = validation = test = Split(X)


class NoSpec:
    train = validation = test = Split(X)


class TextForSpec(NoSpec):
    spec = "three numbers"


class NoTest:
    spec = ArraySpec((3,), levels=200)
    train = validation = Split(X)


class TestOfAnotherShape(NoTest):
    test = Split(X[:, :2])


class TensorsForSplits(NoTest):
    train = validation = test = X


class Empty(Plain):
    validation = Split(X[:0])


class BeyondItsLevels(Plain):
    test = Split(X + 100)


class TooFewLabels(Plain):
    test = Split(X, X[1:, 0])


class LabelsOneHot(Plain):
    validation = Split(X, X)


class TooFewLengths(Plain):
    test = Split(X, None, {"lengths": X[:7, 0]})


class NotFinite(Plain):
    spec = ArraySpec((3,))
    test = Split(X / 0.0)


class NotFiniteBeside(Plain):
    train = Split(X, None, {"weights": X / torch.tensor([1.0, 0.0, 1.0])})


class Fails:
    def __init__(self, *, path: str = "x") -> None:
        raise ValueError("there is no sea\\nhere")


def nothing():
    return None


number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}"


@pytest.mark.parametrize("name", ["make", "Mine", "Plain"])
def test_a_program_in_a_file(mine: str, name: str) -> None:
    data = load(f"{mine}:{name}")
    assert data.spec == ArraySpec((3,), levels=200)
    assert {row for part in PARTS for row in rows(getattr(data, part))} == {*map(tuple, whole().tolist())}


def test_options_of_a_program_in_a_file(mine: str) -> None:
    assert len(load(f"{mine}:make", count=20).train) == 17
    assert len(load(f"{mine}:make", count="20").train) == 17  # as typed on a command line
    assert load(f"{mine}:Mine", root=Path("there")).root == "there"
    assert load(f"{mine}:Mine", root=None).root == "data"
    first, other = (load(f"{mine}:make", seed=seed) for seed in (0, 1))
    assert rows(first.validation) != rows(other.validation)
    assert rows(first.test) == rows(other.test)


def test_an_importable_program(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(mine).parent))
    (Path(mine).parent / "own_numbers.py").write_text(MINE)
    assert rows(load("own_numbers:Mine")) == rows(load(f"{mine}:Mine"))


# name, options, and what the message must say; {} is the file
NO_DATA: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such file": ("{}x:Mine", {}, r"unknown data '\S+x:Mine'|there is no module"),
    "no file of Python": (
        "nowhere.py:Mine",
        {},
        r"cannot read the program nowhere.py \(No such file or directory\); give",
    ),
    "no such object": ("{}:Mien", {}, r"unknown data of \S+mine.py 'Mien'; did you mean 'Mine'\?"),
    "no callable": ("{}:number", {}, r"unknown data of \S+mine.py 'number'; "),
    "no object": ("{}:", {}, r"unknown data '\S+mine.py:'; "),
    "no such module": ("nowhere.at_all:Mine", {}, r"there is no module nowhere.at_all for the data"),
    "no spec": ("{}:NoSpec", {}, r"the data '\S+:NoSpec' are of type NoSpec; .*from_tensors"),
    "text for a spec": (
        "{}:TextForSpec",
        {},
        r"the data '\S+' have spec 'three numbers'; see pyro_delta.protocol.Spec",
    ),
    "no test": ("{}:NoTest", {}, r"the data '\S+' have a test split of shape \(\); it must be a pyro_delta.data.Split"),
    "test of another shape": (
        "{}:TestOfAnotherShape",
        {},
        r"the data '\S+' have a test split of shape \(40, 2\); it must",
    ),
    "tensors": ("{}:TensorsForSplits", {}, r"the data '\S+' have a train split of shape \(\); it must be a pyro_delta"),
    "empty": ("{}:Empty", {}, r"the data '\S+:Empty' have an empty validation split; each needs one datum at least"),
    "levels": (
        "{}:BeyondItsLevels",
        {},
        r"the test split of '\S+' holds integers 100 to 219; they must lie in 0 to 199",
    ),
    "nothing": ("{}:nothing", {}, r"the data '\S+:nothing' are of type NoneType; they must be .*from_tensors"),
    "another function": ("os:getcwd", {}, r"the data 'os:getcwd' are of type str"),
    "too few labels": (
        "{}:TooFewLabels",
        {},
        r"the test split of '\S+' has 39 entries of 'labels' for 40 data; give one for each",
    ),
    "labels one-hot": ("{}:LabelsOneHot", {}, r"labels have shape \(40, 3\); give one whole number for each datum"),
    "too few lengths": ("{}:TooFewLengths", {}, r"the test split of '\S+' has 7 entries of 'lengths' for 40 data"),
    "not finite": ("{}:NotFinite", {}, r"the test split of '\S+' holds \d+ of \d+ numbers that are NaN"),
    "not finite beside x": ("{}:NotFiniteBeside", {}, r"'weights' in the train split of '\S+' holds 40 of 120 numbers"),
    "fails": ("{}:Fails", {}, r"\S+mine.py:Fails fails at \S+mine.py, line \d+: ValueError: there is no sea; mend"),
    "unknown option": (
        "{}:make",
        {"cuont": 3},
        r"unknown setting of the data '\S+' 'data.cuont'; did you mean 'data.count'",
    ),
    "wrong option": ("{}:make", {"count": "many"}, r"data.count: Input should be a valid integer"),
    "negative seed": ("digits", {"seed": -1}, r"data.seed: Input should be greater than or equal to 0, got -1"),
    "no root": ("folder", {}, r"data.root is missing; give it a value"),
    "nothing after the colon": ("folder:", {}, r"the data 'folder:' lack what follows the colon; write folder:PATH"),
    "two roots": (
        "folder:/here",
        {"root": "/there"},
        r"the root /there and folder:/here contradict each other; give one",
    ),
    "no folder": ("folder:/nowhere/at/all", {}, r"there is no data folder /nowhere/at/all; give one that holds train/"),
    "given": ("given", {}, r"the data of this run were given in Python and are not kept with it; give them again"),
}


@dataclass(frozen=True)
class Four(Spec):
    """Four numbers."""

    shape = (4,)  # type: ignore[assignment]
    positions = 4  # type: ignore[assignment]


# what a class says in the place of `Four`, and what the message must say
NO_SPEC: dict[str, tuple[dict[str, Any], str]] = {
    "shape, a list": ({"shape": [4]}, r"has shape \[4\]; it must be a tuple of whole numbers, each 1 or more"),
    "shape, a real number": ({"shape": (4.0,)}, r"has shape \(4.0,\); it must be a tuple of whole numbers"),
    "shape, nothing": ({"shape": (0,)}, r"has shape \(0,\); it must be a tuple"),
    "shape fails": ({"shape": property(lambda spec: 1 / 0)}, r"fails at shape: ZeroDivisionError: division by zero"),
    "levels, text": ({"levels": "3"}, r"has levels '3'; it must be None, or a whole number from 2 to"),
    "levels, one": ({"levels": 1}, r"has levels 1; it must be None, or a whole number from 2 to"),
    "resolution": ({"resolution": -0.5}, r"has resolution -0.5; it must be None, or a finite number above 0"),
    "positions": ({"positions": 0}, r"has positions 0; it must be a whole number, 1 or more"),
    "scored": ({"scored": 2.5}, r"has scored 2.5; it must be a whole number, 1 or more"),
    "unit": ({"unit": None}, r"has unit None; it must be text"),
    "order, shape": ({"order": lambda spec: np.arange(3)}, r"has order an array of int64 of shape \(3,\), 0 to 2"),
    "order, type": ({"order": lambda spec: np.arange(4.0)}, r"has order an array of float64 of shape \(4,\), 0.0"),
    "order, a list": ({"order": lambda spec: [0, 1, 2, 3]}, r"has order \[0, 1, 2, 3\]; it must be an array"),
    "order, a gap": ({"order": lambda spec: np.array([0, 2, 3, 4])}, r"has order .*; it must be of the ranks"),
    "order, negative": ({"order": lambda spec: np.arange(4) - 1}, r"has order .*, -1 to 2; it must be of the ranks"),
    "order takes more": ({"order": lambda spec, more: None}, r"fails at order: TypeError: .*missing 1 required"),
    "places, too far": ({"places": lambda spec: np.arange(4) + 1}, r"has places .*, 1 to 4; it must be of positions"),
    "places fail": ({"places": lambda spec: {}["here"]}, r"fails at places: KeyError: 'here'; mend it"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_SPEC)
def test_specs_that_say_what_no_data_are(name: str) -> None:
    says, message = NO_SPEC[name]
    spec, split = type("Own", (Four,), says)(), Split(torch.zeros(N, 4))
    with pytest.raises(UserError, match=f"^the spec Own of the data 'mine' {message}") as caught:
        checked_data(Splits(spec, split, split, split), "mine")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=f"^the spec Own of the data {message}"):
        from_tensors(split.x, spec=spec)


def test_ranks_of_any_integers_will_do() -> None:
    spec, split = type("Own", (Four,), {"order": lambda spec: np.zeros(4, np.uint8)})(), Split(torch.zeros(N, 4))
    assert checked_data(Splits(spec, split, split, split), "mine").spec is spec


@pytest.mark.parametrize("name", NO_DATA)
def test_things_that_are_no_data(name: str, mine: str) -> None:
    place, options, message = NO_DATA[name]
    with pytest.raises(UserError, match=f"^({message})") as caught:
        load(place.format(mine), **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value)[-1] in ".?"


def test_a_folder_is_the_program_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number in range(4):
            Image.new("L", (5, 4), number).save(tmp_path / split / f"{number}.png")
    by_name, by_root = load(f"folder:{tmp_path}"), load("folder", root=tmp_path)
    assert by_name.spec == by_root.spec == ImageSpec(1, 4, 5, 256)
    assert rows(by_name) == rows(by_root)
    assert rows(load(f"folder:{tmp_path}", root=tmp_path)) == rows(by_name)

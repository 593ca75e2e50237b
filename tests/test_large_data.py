"""Data in a file: ImageNet 32×32 in all its forms, large folders, kills on the way, damage, and hostile pickles."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_delta
from pyro_delta.cli import main
from pyro_delta.config import load_preset
from pyro_delta.data import Batches, Split, load
from pyro_delta.data.images import cache, folder, imagenet, pickles
from pyro_delta.data.splits import balanced_order, split_digest
from pyro_delta.data.stored import Stored
from pyro_delta.errors import UserError
from pyro_delta.files import UNREADABLE
from pyro_delta.twin.numpyro_training import NumPyroTraining

stored_module = importlib.import_module("pyro_delta.data.stored")
PER_FILE, HELD_OUT = 12, 20


@pytest.fixture(autouse=True)
def _large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images count as many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setattr(stored_module, "HELD", 10 * 3072)
    monkeypatch.setattr(cache, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(folder, "PART", 5)


def batch_of(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    data = rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
    return {"data": data, "labels": rng.integers(1, 4, PER_FILE).tolist(), "mean": data.mean(0)}


def as_python2(found: dict[str, Any]) -> bytes:
    """Text opcodes of protocol 0, with the bytes as latin-1 text: as Python 2 has them."""

    class Raw:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __reduce__(self) -> Any:
            state = (1, self.values.shape, self.values.dtype, False, self.values.tobytes().decode("latin1"))
            return (*np.ndarray.__reduce__(self.values)[:2], state)

    return pickle.dumps(found | {"data": Raw(found["data"]), "mean": Raw(found["mean"])}, protocol=0)


def write_pickles(home: Path, dump: Callable[[dict[str, Any]], bytes] = pickle.dumps) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(imagenet.BATCHES):
        (home / name).write_bytes(dump(batch_of(number)))


def write_npz(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(imagenet.BATCHES):
        np.savez(home / f"{name}.npz", **batch_of(number))


FORMS: dict[str, Callable[[Path], None]] = {
    **{
        f"protocol {protocol}": lambda home, protocol=protocol: write_pickles(  # type: ignore[misc]
            home, lambda found: pickle.dumps(found, protocol=protocol)
        )
        for protocol in range(6)
    },
    "python 2": lambda home: write_pickles(home, as_python2),
    "numbers of numpy": lambda home: write_pickles(
        home, lambda found: pickle.dumps(found | {"labels": list(np.array(found["labels"]))})
    ),
    "npz": write_npz,
}


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def everything(split: Split) -> list[tuple[bytes, int]]:
    assert split.labels is not None
    return [(split.batch(slice(i, i + 1))[0].numpy().tobytes(), int(split.labels[i])) for i in range(len(split))]


def expected(numbers: range) -> list[tuple[bytes, int]]:
    return [
        (row.tobytes(), label - 1)
        for number in numbers
        for row, label in zip(batch_of(number)["data"], batch_of(number)["labels"], strict=True)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path / "imagenet32")
    for _ in ("converted", "kept"):
        data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
        assert isinstance(data.train.x, Stored)
        assert (len(data.train), len(data.validation), len(data.test)) == (100, HELD_OUT, PER_FILE)
        assert sorted(everything(data.train) + everything(data.validation)) == sorted(expected(range(10)))
        assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))
        assert data.classes is not None
        assert data.classes[0] == "1"


def as_in_memory(data: Any) -> Any:
    parts = [Split(part.batch(), part.labels) for part in (data.train, data.validation, data.test)]
    return pyro_delta.data.Splits(data.spec, *parts, data.classes)


def test_batches_and_orders_are_those_of_memory(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    known = as_in_memory(data)
    one, two = Batches(data.train, 16, 3, "cpu"), Batches(known.train, 16, 3, "cpu")
    for step in range(20):
        assert torch.equal(one.batch(step), two.batch(step))
    images = torch.from_numpy(np.concatenate([batch_of(number)["data"] for number in range(10)])).view(-1, 3, 32, 32)
    labels = torch.tensor([label for number in range(10) for label in batch_of(number)["labels"]]) - 1
    order = balanced_order(Split(images, labels), 0)
    assert torch.equal(known.train.x, images[order[HELD_OUT:]])
    assert torch.equal(known.validation.x, images[order[:HELD_OUT]])
    for part in (slice(3, 30, 2), torch.arange(40).flip(0)):
        assert torch.equal(data.train.take(part).batch(), known.train.take(part).x)
    assert isinstance(data.train.take(slice(10)).x, torch.Tensor)
    assert isinstance(data.train.take(slice(11)).x, Stored)
    assert torch.equal(data.train.x[7], known.train.x[7])


def test_digest_tells_every_datum(tmp_path: Path) -> None:
    """One pixel of one image of 120 is another: the split with that image has another digest, the test split not."""
    digests = []
    for number, name in ((0, "as it is"), (1, "again"), (2, "changed")):
        home = tmp_path / str(number)
        write_pickles(home)
        if name == "changed":
            found = batch_of(4)
            found["data"][5, 77] ^= 1
            (home / imagenet.BATCHES[4]).write_bytes(pickle.dumps(found))
        data = load("imagenet32", root=home, validation=1)
        digests.append([split_digest(part) for part in (data.train, data.test)])
    assert digests[0] == digests[1]
    assert digests[0][1] == digests[2][1]
    assert digests[0][0] != digests[2][0]


def test_large_folders_go_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 15), ("test", 7)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{index}.png")
    known = load(f"folder:{tmp_path}", validation=4)
    monkeypatch.setattr(folder, "IN_MEMORY", 43)
    data = load(f"folder:{tmp_path}", validation=4)
    assert isinstance(data.train.x, Stored)
    assert isinstance(known.train.x, torch.Tensor)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(data, part).batch(), getattr(known, part).batch())
        assert torch.equal(getattr(data, part).labels, getattr(known, part).labels)


def test_image_files_of_the_original_release(tmp_path: Path) -> None:
    for split, count in (("train_32x32", 14), ("valid_32x32", 12)):
        (tmp_path / split).mkdir()
        for index in range(count):
            Image.fromarray(np.full((32, 32, 3), index, np.uint8)).save(tmp_path / split / f"{index:07d}.png")
    data = load("imagenet32", root=tmp_path, validation=3)
    assert data.classes is data.train.labels is None
    seen = torch.cat((data.train.batch(), data.validation.batch()))[:, 0, 0, 0]
    assert seen.sort().values.tolist() == list(range(14))
    assert data.test.batch()[:, 0, 0, 0].sort().values.tolist() == list(range(12))


def test_train_evaluate_and_draw(tmp_path: Path) -> None:
    """Trained and judged from the file as from memory, by every command that looks at data."""
    write_pickles(tmp_path / "data")
    settings = {
        "training.steps": 3, "training.batch": 4, "training.validations": 1, "likelihood.channels": [4],
        "likelihood.row_blocks": [1], "likelihood.pixel_blocks": 1, "guide.channels": [4], "guide.row_blocks": [1],
        "guide.pixel_blocks": 1, "guide.features": 4, "prior.dims": 1,
    }  # fmt: skip
    data = load("imagenet32", root=tmp_path / "data", validation=HELD_OUT)
    bounds = []
    for name, given in (("file", data), ("memory", as_in_memory(data))):
        run = pyro_delta.train(settings, data=given, preset="photos", out=tmp_path / name)
        found = pyro_delta.evaluate(run, data=given)
        assert found["n_images"] == PER_FILE  # none is dropped
        bounds.append((found["neg_elbo_bpd"], pyro_delta.evaluate(run, data=given, split="train")["neg_elbo_bpd"]))
        assert pyro_delta.diagnose(run.vae.model, run.vae.guide, data=given.test, told_images=8, told_samples=2)
    assert bounds[0] == bounds[1]


# ---------------------------------------------------------------- kills and damage


def kept_files(home: Path, name: str) -> list[Path]:
    return list((home / cache.NAME).glob(f"*/{name}"))


def forked(work: Callable[[], object]) -> int:
    """The process of a copy of this one, which does some work and no more."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX, where other tests have loaded it
@pytest.mark.parametrize("when", [0, 9, 19, 43])
def test_a_killed_conversion_goes_on(tmp_path: Path, when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pickles(tmp_path)
    plain, left = {name: getattr(cache, name) for name in ("_save", "written_whole")}, [when]

    def killed_in(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain[name](*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in plain:
            patch.setattr(cache, name, killed_in(name))
        _, status = os.waitpid(forked(lambda: load("imagenet32", root=tmp_path, validation=HELD_OUT)), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    for place in (tmp_path / cache.NAME).glob("*/"):  # as one that was killed while it wrote leaves it
        (place / ".sums.npy.0123abcd.part").touch()
    read, whole = [], imagenet.read_batch
    monkeypatch.setattr(imagenet, "read_batch", lambda path: read.append(path.name) or whole(path))
    data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    assert sorted(everything(data.train) + everything(data.validation)) == sorted(expected(range(10)))
    assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))
    assert not list((tmp_path / cache.NAME).rglob("*.part"))
    assert read == list(imagenet.BATCHES[when // 4 :])  # four calls a file: one to save, three files written


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_second_process_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pickles(tmp_path)
    read, plain = [], imagenet.read_batch

    def slowly(path: Path) -> Any:
        (tmp_path / "begun").touch()
        time.sleep(0.05)
        read.append(path.name)
        return plain(path)

    monkeypatch.setattr(imagenet, "read_batch", slowly)
    first = forked(lambda: load("imagenet32", root=tmp_path, validation=HELD_OUT))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    assert os.waitpid(first, 0)[1] == 0
    assert not read
    assert "waiting for another process" in capsys.readouterr().err
    assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["sums.npy", "labels.npy", "state.json"])
def test_damage_beside_the_images_is_mended(tmp_path: Path, name: str) -> None:
    write_pickles(tmp_path)
    load("imagenet32", root=tmp_path, validation=HELD_OUT)
    (file,) = kept_files(tmp_path, name)
    flip(file, len(file.read_bytes()) // 2)
    data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))


def test_any_bit_of_the_head_beside_the_images_is_mended(tmp_path: Path) -> None:
    """NumPy raises a dozen kinds of errors for it, tokenize's own among them."""
    write_pickles(tmp_path)
    load("imagenet32", root=tmp_path, validation=HELD_OUT)
    (file,) = kept_files(tmp_path, "sums.npy")
    content = file.read_bytes()
    part = cache.Part("", list, str)
    for bit in range(8 * 128):
        raw = bytearray(content)
        raw[bit // 8] ^= 1 << bit % 8
        file.write_bytes(raw)
        with suppress(*UNREADABLE):
            assert len(cache._array(file, 1)) == 1
    assert cache._opened(file.parent, [part], False) is None
    data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))


def test_files_that_change_while_they_are_read_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what was read would be taken for what was there before, once that is put back."""
    write_pickles(tmp_path)
    path, plain = tmp_path / imagenet.BATCHES[3], imagenet.read_batch
    content, status = path.read_bytes(), path.stat()

    def changed(file: Path) -> Any:
        path.write_bytes(pickle.dumps(batch_of(20)))
        return plain(file)

    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "read_batch", changed)
        with pytest.raises(UserError, match=r"was changed while it was read; start again when nothing writes there\.$"):
            load("imagenet32", root=tmp_path, validation=HELD_OUT)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    assert sorted(everything(data.train) + everything(data.validation)) == sorted(expected(range(10)))


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", [".lock", "state.json", "images.npy"])
def test_received_caches_make_nothing_elsewhere_and_block_nobody(name: str, kind: str, tmp_path: Path) -> None:
    home = tmp_path / "data"
    write_pickles(home)
    load("imagenet32", root=home, validation=HELD_OUT)
    file = home / cache.NAME / name
    if name == ".lock":
        kept_files(home, "state.json")[0].unlink()  # so that it is made anew
    else:
        (file,) = kept_files(home, name)
    file.unlink()
    if kind == "link":
        file.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(file)
    data = load("imagenet32", root=home, validation=HELD_OUT)
    assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))
    assert not (tmp_path / "elsewhere").exists()


def test_a_flipped_bit_of_an_image_is_told_when_it_is_read(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    load("imagenet32", root=tmp_path, validation=HELD_OUT)
    (file,) = kept_files(tmp_path, "images.npy")
    flip(file, len(file.read_bytes()) - 5 * 3072)
    data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    everything(data.train)
    with pytest.raises(UserError, match=r"images.npy is damaged at datum 127; delete the folder"):
        everything(data.test)


def test_a_cut_or_changed_set_is_made_anew(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    load("imagenet32", root=tmp_path, validation=HELD_OUT)
    (file,) = kept_files(tmp_path, "images.npy")
    file.write_bytes(file.read_bytes()[:-3072])
    data = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))
    (tmp_path / "val_data").write_bytes(pickle.dumps(batch_of(20)))
    time.sleep(0.01)
    os.utime(tmp_path / "val_data")
    changed = load("imagenet32", root=tmp_path, validation=HELD_OUT)
    assert sorted(everything(changed.test)) == sorted(expected(range(20, 21)))
    assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))  # of a run that still goes on
    assert len(kept_files(tmp_path, "images.npy")) == 1


@pytest.mark.parametrize("what", ["the cache", "a set in it", "its images"])
def test_links_in_received_data_are_not_written_through(tmp_path: Path, what: str) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    write_pickles(data)
    for name in ("Documents", "0123456789abcdef-notes"):
        (home / name).mkdir(parents=True)
        (home / name / "thesis.txt").write_text("mine")
    load("imagenet32", root=data, validation=HELD_OUT)
    place = data / cache.NAME
    (kept,) = (path for path in place.iterdir() if path.is_dir())
    if what == "the cache":
        place.rename(tmp_path / "aside")
        place.symlink_to(home)
    elif what == "a set in it":
        kept.rename(home / kept.name)
        (home / kept.name / ".draft.part").write_text("mine")
        kept.symlink_to(home / kept.name)
    else:
        state = json.loads((kept / "state.json").read_text())
        (kept / "state.json").write_text(json.dumps({**state, "whole": False, "counts": state["counts"][:-1]}))
        (kept / "images.npy").rename(home / "images.npy")
        with (home / "images.npy").open("ab") as file:
            file.write(b"mine")
        (kept / "images.npy").symlink_to(home / "images.npy")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    data = load("imagenet32", root=data, validation=HELD_OUT)
    assert sorted(everything(data.test)) == sorted(expected(range(10, 11)))
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------- mistakes


class Runs:
    """A pickle that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def pointer() -> bytes:
    """An array whose type says afterwards that it holds no objects: NumPy's own way would follow its bytes."""
    opcodes = io.BytesIO()
    opcodes.write(b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR")
    opcodes.write(b"(I1\n(I1\ntcnumpy\ndtype\n(U\x01OI0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\nU\x08AAAAAAAAtbu.")
    return opcodes.getvalue()


def changed(**parts: Any) -> Callable[[Path], None]:
    return lambda file: (file.write_bytes(pickle.dumps(batch_of(2) | parts)), None)[1]


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"lacks train_data_batch_3 of ImageNet 32×32; put all 11 files there"),
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-2000]), r"train_data_batch_3 is not a file of .*truncated"),
    "empty": (lambda f: f.write_bytes(b""), r"is not a file of .*EOFError"),
    "text": (lambda f: f.write_bytes(b"<html>404</html>"), r"is not a file of ImageNet 32×32 \("),
    "a list": (lambda f: f.write_bytes(pickle.dumps([1])), r"holds a list, not a dict"),
    "no data": (lambda f: f.write_bytes(pickle.dumps({"labels": [1]})), r"has no 'data'"),
    "no labels": (lambda f: f.write_bytes(pickle.dumps({"data": batch_of(2)["data"]})), r"has no 'labels'"),
    "64×64": (changed(data=np.zeros((PER_FILE, 3 * 64 * 64), np.uint8)), r"are uint8 \(12, 12288\); .*\(N, 3072\)"),
    "floats": (changed(data=np.zeros((PER_FILE, 3072))), r"are float64 \(12, 3072\)"),
    "objects": (changed(data=np.array([{}, {}], object)), r"holds an array of type 'O8'"),
    "data as a list": (changed(data=[1, 2]), r"data of \S*train_data_batch_3 are list"),
    "labels from 0": (changed(labels=list(range(PER_FILE))), r"labels of \S* go from 0 to 11; .* 1 to 1000"),
    "too few labels": (changed(labels=[1, 2]), r"labels of \S* are int64 \(2,\) for 12 images"),
    "labels as text": (changed(labels=["cat"] * PER_FILE), r"labels of \S* are <U3"),
    "runs a command": (lambda f: f.write_bytes(pickle.dumps(Runs(f.parent / "ran"))), r"asks for 'posix.system'"),
    "within": (lambda f: f.write_bytes(pickle.dumps({"data": Runs(f.parent / "ran")})), r"asks for 'posix.system'"),
    "evaluates": (
        lambda f: f.write_bytes(b"c__builtin__\neval\n(S'open(\"ran\", \"w\")'\ntR."),
        r"asks for '__builtin__.eval'",
    ),
    "memory of numpy": (lambda f: f.write_bytes(pointer()), r"holds an array of type 'O'"),
    "numpy.load": (lambda f: f.write_bytes(b"cnumpy\nload\n(S'x'\ntR."), r"asks for 'numpy.load'"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_files_are_refused_in_a_sentence(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, message = SPOILT[name]
    write_pickles(tmp_path)
    spoil(tmp_path / "train_data_batch_3")
    assert (
        command("train", "--dataset", "imagenet32", "--data-root", str(tmp_path), "--out", str(tmp_path / "run")) == 2
    )
    said = capsys.readouterr().err.strip()
    assert re.search(message, " ".join(said.split())), said
    assert "Traceback" not in said
    assert not (tmp_path / "ran").exists()


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no ImageNet 32×32 in .*train_data_batch_1 … train_data_batch_10"):
        load("imagenet32", root=tmp_path)


def test_only_plain_values_have_names() -> None:
    """What stands for a name builds values, and none of it is NumPy's own or takes a callable."""
    for found in pickles.NAMES.values():
        assert found == "ndarray" or getattr(found, "__module__", "") == pickles.__name__


def test_numpyro_is_handed_the_same_images_stretch_by_stretch(tmp_path: Path) -> None:
    write_pickles(tmp_path / "data")
    data = load("imagenet32", root=tmp_path / "data", validation=HELD_OUT)
    config = load_preset("photos", [("training.steps", 5), ("training.log_every", 3), ("training.batch", 4)])
    training: Any = NumPyroTraining.__new__(NumPyroTraining)  # without programs, which take long to build
    training.config, training.data, training.train, training.buffers = config, data, None, None
    training.batches = Batches(data.train, 4, config.training.seed, "cpu")
    batches = Batches(as_in_memory(data).train, 4, config.training.seed, "cpu")
    for training.step, count in ((0, 3), (3, 2)):
        images, _, _, order, *_ = training._given(count)
        for row, step in enumerate(range(training.step, training.step + count)):
            assert np.array_equal(images[order[row]], batches.batch(step).numpy())
        assert len(images) == 3 * 4  # and no more of the set

"""Checkpoints: written whole or not at all, and read without running anything that a file may hold."""

import errno
import os
import pickle
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_delta.errors import UserError
from pyro_delta.files import written_whole
from pyro_delta.inference.checkpoint import (
    FORMAT,
    FORMER,
    load_former,
    load_weights,
    pack,
    restore_rng,
    rng_state,
    unpack,
)

CPU = torch.device("cpu")


class Bomb:
    """Unpickles into a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def test_a_link_is_written_through(tmp_path: Path) -> None:
    """What it leads to takes the content, in another folder, there already or not."""
    (tmp_path / "there").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(f"there/{name}")
    (tmp_path / "there/old").write_bytes(b"before")
    for name in ("old", "new"):
        with written_whole(tmp_path / name) as file:
            file.write(b"whole")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "there" / name).read_bytes() == b"whole"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["new", "old"]


def test_what_is_saved_comes_back(path: Path) -> None:
    state = {
        "vae": torch.nn.Linear(3, 2).state_dict(),
        "channels_last": torch.randn(2, 3, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last),
        "step": 7,
        "nested": {"numbers": [1, 2.5, None, "text"], "pair": (0.9, 0.999)},
        "optimizer": {"state": {0: {"step": torch.ones(())}, 12: {"step": torch.zeros(())}}, "param_groups": [{}]},
        "rng": rng_state(CPU),
    }
    loaded = unpack(pack(state), path)
    assert loaded.pop("format") == FORMAT
    assert loaded["nested"] == {**state["nested"], "pair": [0.9, 0.999]}  # JSON knows no tuples
    assert loaded["step"] == 7
    assert list(loaded["optimizer"]["state"]) == [0, 12]
    assert loaded["optimizer"]["state"][0]["step"] == 1
    torch.testing.assert_close(loaded["vae"], state["vae"], rtol=0, atol=0)
    assert torch.equal(loaded["channels_last"], state["channels_last"])
    assert loaded["channels_last"].stride() == state["channels_last"].stride()
    assert torch.equal(loaded["rng"]["cpu"], state["rng"]["cpu"])


def test_random_state_goes_on_where_it_was(path: Path) -> None:
    content = pack({"rng": rng_state(CPU)})
    expected = torch.randn(5)
    torch.randn(3)
    restore_rng(unpack(content, path)["rng"], CPU, path)
    assert torch.equal(torch.randn(5), expected)


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(TypeError):
        pack({"weights": torch.zeros(1000), "bad": lambda: None})


def write(path: Path, content: bytes) -> None:
    with written_whole(path) as file:
        file.write(content)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    write(path, b"before")
    with pytest.raises(TypeError):
        write(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"before"
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_is_named_and_leaves_the_old_file(path: Path) -> None:
    write(path, b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as full as it gets without a disk of one's own
    try:
        with pytest.raises(OSError) as caught:
            write(path, bytes(40_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.filename, caught.value.errno) == (str(path), errno.EFBIG)
    assert path.read_bytes() == b"before"
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_rename_leaves_no_part_behind(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(OSError) as caught:
        write(target, b"content")
    assert caught.value.filename == str(target)  # not the file that was written aside
    assert os.listdir(tmp_path) == ["taken"]


def test_others_may_read_it_as_any_file(path: Path) -> None:
    write(path, b"content")
    plain = path.with_name("plain")
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_truncated(path: Path, part: float) -> None:
    data = pack({"weights": torch.randn(5000), "step": 1})
    with pytest.raises(UserError, match=r"checkpoint\.pt is truncated or no checkpoint"):
        unpack(data[: int(part * len(data))], path)


def garbage(seed: int) -> bytes:
    """Bytes of a legacy pickle with a few of them changed: torch meets them with all kinds of exceptions."""
    generator = torch.Generator().manual_seed(seed)
    data = bytearray(pickle.dumps({"a": [1, 2, 3], "b": "text"}, protocol=2))
    for place in torch.randint(len(data), (4,), generator=generator).tolist():
        data[place] = int(torch.randint(256, (), generator=generator))
    return bytes(data)


FOREIGN = {
    "text": b"hello\n",
    "nul bytes": bytes(100),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "pickle of a list": pickle.dumps([1, 2, 3], protocol=4),
    "numbers": struct.pack("<6d", *range(6)),
    **{f"garbage {seed}": garbage(seed) for seed in range(60)},
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_files(path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"no checkpoint|not a checkpoint"):
        unpack(content, path)


def test_foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors here")
    with pytest.raises(UserError, match="no checkpoint"):
        unpack(path.read_bytes(), path)


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), {"state_dict": {}}, {"format": "pyro-delta checkpoint 99"}, {"format": torch.zeros(2)}, []],
    ids=["tensor", "other dict", "other version", "tensor format", "list"],
)
def test_torch_files_that_are_not_ours(path: Path, content: Any) -> None:
    torch.save(content, path)
    with pytest.raises(UserError, match="is not a checkpoint of pyro-delta"):
        load_former(path)


def test_the_former_format_is_refused_as_such(path: Path) -> None:
    state = {"format": "pyro-delta checkpoint 1", "programs": torch.nn.Linear(3, 2).state_dict(), "step": 3}
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        load_former(path, keys=("vae",))
    assert str(caught.value) == (
        f"{path} was written by an older pyro-delta, whose networks have changed since; train the run again."
    )


@pytest.mark.parametrize("how", ["pickle", "torch.save", "legacy torch.save"])
def test_pickled_code_is_never_run(path: Path, tmp_path: Path, how: str) -> None:
    proof = tmp_path / "proof"
    content = {"format": FORMER, "bomb": Bomb(proof)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch.save")
    with pytest.raises(UserError, match="no checkpoint"):
        unpack(path.read_bytes(), path)
    with pytest.raises(UserError, match="no checkpoint"):
        load_former(path)
    assert not proof.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert proof.exists(), "the bomb is a dud: this test shows nothing"


def test_missing(path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_former(path)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_former(tmp_path)


def without(name: str) -> dict[str, torch.Tensor]:
    state = torch.nn.Linear(3, 2).state_dict()
    del state[name]
    return state


WEIGHTS = {
    "wrong shape": (torch.nn.Linear(4, 2).state_dict(), "weight"),
    "missing": (without("bias"), "bias"),
    "left over": ({**torch.nn.Linear(3, 2).state_dict(), "extra": torch.zeros(1)}, "extra"),
}


@pytest.mark.parametrize(("state", "name"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(state: dict[str, Any], name: str) -> None:
    module = torch.nn.Linear(3, 2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(UserError, match=rf"run/last\.pt .*'{name}'"):
        load_weights(module, state, Path("run/last.pt"))
    torch.testing.assert_close(dict(module.state_dict()), before, rtol=0, atol=0)


def test_weights_that_fit_are_loaded() -> None:
    module, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    load_weights(module, other.state_dict(), Path("run/last.pt"))
    assert torch.equal(module.weight, other.weight)


def test_an_incomplete_checkpoint_names_what_it_lacks(path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint\.pt is incomplete: it has no 'optimizer'"):
        unpack(pack({"average": {"w": torch.ones(1)}, "step": 3}), path, keys=("average", "optimizer"))

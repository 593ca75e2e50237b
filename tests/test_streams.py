"""Standard streams: whoever reads them, in whatever encoding, and whether there is room or not, ends no command."""

import codecs
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pyro_delta.cli.streams import Steady, plain, spelled, steady
from pyro_delta.errors import is_plain

MAIN = [sys.executable, "-m", "pyro_delta"]


def run(
    *args: str, env: Mapping[str, str] | None = None, unbuffered: bool = False, **streams: Any
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **(env or {}), "PYTHONUNBUFFERED": "1" if unbuffered else ""}
    return subprocess.run([*MAIN, *args], env=environment, check=False, timeout=120, **streams)


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize(
    ("args", "code"), [(("list",), 0), (("--help",), 0), (("sample", "--help"), 0), (("nothing",), 2)]
)
def test_a_reader_that_has_gone_changes_no_exit_code(args: tuple[str, ...], code: int, unbuffered: bool) -> None:
    pipe = closed_pipe()
    try:
        assert run(*args, stdout=pipe, stderr=pipe, unbuffered=unbuffered).returncode == code
    finally:
        os.close(pipe)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_training_needs_no_streams(closed: str, tmp_path: Path) -> None:
    settings = "--set training.validations=1 --set likelihood.channels=[4] --set likelihood.row_blocks=[1]"
    command = f"{sys.executable} -m pyro_delta train --dataset digits --steps 1 {settings} --out {tmp_path / 'run'}"
    done = subprocess.run(["bash", "-c", f"{command} {closed}"], check=False, timeout=180, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").glob("checkpoint-*1.safetensors"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text().startswith("{")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_full_disk_is_told_of(unbuffered: bool) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run("list", stdout=full, stderr=subprocess.PIPE, unbuffered=unbuffered)
        assert done.returncode == 2
        assert (
            done.stderr == b"pyro-delta: the output could not be written: No space left on device; make room there.\n"
        )
        assert run("nothing", stdout=subprocess.PIPE, stderr=full).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "koi8-r", "utf-8", "utf-16"])
@pytest.mark.parametrize("args", [("--help",), ("list",), ("delta", "--help")])
def test_any_encoding_will_do(encoding: str, args: tuple[str, ...]) -> None:
    done = run(*args, env={"PYTHONIOENCODING": encoding}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    # click takes an ASCII terminal for one that knows better.
    text = done.stdout.decode("utf-8" if encoding == "ascii" else encoding)
    assert "delta" in text.replace("δ", "delta")


def test_a_table_is_spelled() -> None:
    done = run("delta", "--length", "8", "--dims", "2", "--alpha", "0.5", env={"PYTHONIOENCODING": "cp1252"},
               capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"committed rate delta" in done.stdout
    assert not {*done.stdout.decode("cp1252")} & {"δ", "α", "│", "┃"}


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("δ ≥ 1 ± 2 −3", "ascii", "delta >= 1 +/- 2 -3"),
        ("δ ≥ 1 ± 2 −3", "cp1252", "delta >= 1 ± 2 -3"),
        ("é ﬁ 中", "ascii", "? fi ?"),
        ("x̂", "ascii", "x?"),
    ],
)
def test_what_an_encoding_lacks_is_spelled(text: str, encoding: str, expected: str) -> None:
    codecs.register_error("spelled", spelled)
    assert text.encode(encoding, "spelled").decode(encoding) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\x9b31mb\x7f", "a\\x9b31mb\\x7f"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("für δ 中", "für δ 中"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_control_characters_are_shown_as_they_are_written(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert is_plain(shown)


@pytest.mark.parametrize(
    "args", [("evaluate", "a\x1b[31mb"), ("train", "--out", "\x1b]0;owned\x07"), ("list\x9b",), ("compare", "a", "\rb")]
)
def test_names_that_steer_a_terminal_are_refused(args: tuple[str, ...]) -> None:
    done = run(*args, capture_output=True)
    assert done.returncode == 2
    assert b"holds control characters; give the folder or file another name." in done.stderr
    assert not any(byte < 32 and byte != 10 for byte in done.stdout + done.stderr)


def test_streams_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", mine)
    monkeypatch.setattr(sys, "stderr", mine)
    steady()
    assert sys.stdout is sys.stderr is mine


def test_what_is_lost_is_known() -> None:
    pipe = closed_pipe()
    stream = Steady(pipe, "w")
    assert stream.write(b"abc") == 3
    assert isinstance(stream.lost, BrokenPipeError)
    assert stream.write(b"more") == 4
    stream.close()

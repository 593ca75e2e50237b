"""Free cores: counted against a made-up machine, and against a real busy process."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pyro_delta import cores
from pyro_delta.report.progress import Crowded
from pyro_delta.sweep import runs

Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")
ZERO = Times(*[0.0] * 10)
SECONDS = 10.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Cores with made-up seconds of work; each reading is `SECONDS` after the one before."""

    def make(
        *after: Times,
        own: float = 0.0,
        allowed: tuple[int, ...] = (0, 1),
        physical: int = 2,
        nice: int = 0,
        quota: float = math.inf,
    ) -> None:
        readings = iter(range(1000))
        at = SimpleNamespace(index=0)

        def times(percpu: bool) -> list[Times]:
            assert percpu
            at.index = next(readings)
            return [Times(*(at.index * part for part in core)) for core in after]

        def count(logical: bool = True) -> int:
            return len(after) if logical else physical

        monkeypatch.setattr(psutil, "cpu_times", times)
        monkeypatch.setattr(psutil, "cpu_count", count)
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_affinity=lambda: list(allowed)))
        monkeypatch.setattr(os, "nice", lambda increment: nice)
        clock = SimpleNamespace(
            monotonic=lambda: at.index * SECONDS, process_time=lambda: at.index * own, sleep=lambda seconds: None
        )
        monkeypatch.setattr(cores, "time", clock)
        monkeypatch.setattr(cores, "_quota", lambda: quota)
        monkeypatch.setattr(cores, "_chosen", None)
        for name in (cores.SETTING, *cores.OTHERS):
            monkeypatch.setenv(name, "9")  # so that what is set after this is undone
            monkeypatch.delenv(name)

    return make


IDLE = ZERO._replace(idle=10.0)
BUSY = ZERO._replace(user=7.0, system=3.0)


@pytest.mark.parametrize(
    ("what", "machine_of", "taken", "threads"),
    [
        ("idle", {"after": (IDLE, IDLE)}, 0.0, None),
        ("our own work", {"after": (IDLE, BUSY), "own": 10.0}, 0.0, None),
        ("one core of another", {"after": (IDLE, BUSY)}, 1.0, 1),
        ("both cores of others", {"after": (BUSY, BUSY)}, 2.0, 1),
        ("ours beside another's", {"after": (BUSY, BUSY), "own": 10.0}, 1.0, 1),
        ("a nicer one", {"after": (IDLE, ZERO._replace(nice=10.0))}, 0.0, None),
        ("as nice as we", {"after": (IDLE, ZERO._replace(nice=10.0)), "nice": 10}, 1.0, 1),
        ("waiting for a disk", {"after": (IDLE, ZERO._replace(iowait=10.0))}, 0.0, None),
        ("a guest, counted twice", {"after": (IDLE, ZERO._replace(user=10.0, guest=10.0))}, 1.0, 1),
        ("a core that is not ours", {"after": (IDLE, IDLE, BUSY)}, 0.0, None),
        ("four of ours, two taken", {"after": (IDLE, IDLE, BUSY, BUSY), "allowed": range(4), "physical": 4}, 2.0, 2),
        ("its other half is free", {"after": (IDLE, IDLE, IDLE, BUSY), "allowed": range(4), "physical": 2}, 1.0, None),
        ("a third of a core", {"after": (IDLE, ZERO._replace(user=3.0, idle=7.0))}, 0.3, None),
        ("a container's limit", {"after": (IDLE, IDLE), "quota": 1.5}, 0.0, 1),
        ("a limit of half a core", {"after": (IDLE, IDLE), "quota": 0.5}, 0.0, 1),
        ("a limit that is none", {"after": (IDLE, IDLE), "quota": 2.0}, 0.0, None),
        (
            "fewer are free than that",
            {"after": (BUSY, BUSY, IDLE, IDLE), "allowed": range(4), "physical": 4, "quota": 3},
            2.0,
            2,
        ),
    ],
)
def test_threads_are_as_many_as_free_cores(
    what: str,
    machine_of: dict[str, Any],
    taken: float,
    threads: int | None,
    machine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(*machine_of["after"], **{name: value for name, value in machine_of.items() if name != "after"})
    assert cores.Cores().taken() == pytest.approx(taken), what
    monkeypatch.delenv(cores.SETTING, raising=False)
    notice = cores.leave_busy_cores()
    assert os.environ.get(cores.SETTING) == (None if threads is None else str(threads)), what
    if threads is None:
        assert notice is None
    else:
        assert notice is not None
        limit = f"allows this process the time of {machine_of.get('quota', 0):g} of 2 cores"
        assert (limit if taken == 0 else f"{taken:.1f} of") in notice
        assert f"takes {threads} thread" in notice
    assert cores.set_threads() is None  # the number is ours


def test_limits_of_control_groups_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "MOUNTS", (tmp_path / "all", tmp_path / "cpu"))
    assert cores._quota() == math.inf  # another system's
    second, first = "0::/a/b", "3:memory:/else\n2:cpu,cpuacct:/docker/x\n0::/"
    for groups, files, quota in (
        (second, {}, math.inf),
        (second, {"all/a/b/cpu.max": "max 100000"}, math.inf),
        (second, {"all/a/b/cpu.max": "250000 100000"}, 2.5),
        (second, {"all/a/b/cpu.max": "max 100000", "all/a/cpu.max": "50000 100000"}, 0.5),  # of the group around it
        (second, {"all/cpu.max": "100000 100000"}, 1.0),  # a container's, whose own group is the root that it sees
        (first, {"cpu/docker/x/cpu.cfs_quota_us": "-1", "cpu/docker/x/cpu.cfs_period_us": "100000"}, math.inf),
        (first, {"cpu/docker/x/cpu.cfs_quota_us": "150000", "cpu/docker/x/cpu.cfs_period_us": "100000"}, 1.5),
        (first, {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2.0),
        (first, {"cpu/else/cpu.max": "100 100000", "all/else/cpu.max": "100 100000"}, math.inf),
    ):
        shutil.rmtree(tmp_path)
        for name, text in {"cgroup": groups, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        assert cores._quota() == quota, files


@pytest.mark.parametrize("number", ["", " ", "0", "many", "-1", "1,", "1,x"])
def test_what_openmp_takes_for_no_setting_is_none(
    number: str, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(IDLE, BUSY)
    monkeypatch.setenv(cores.SETTING, number)
    assert cores.set_threads() is None
    assert cores.leave_busy_cores() is not None
    assert os.environ[cores.SETTING] == "1"


@pytest.mark.parametrize(
    ("setting", "number"),
    [
        *((cores.SETTING, number) for number in ("2", " +1", "2,1")),
        ("MKL_NUM_THREADS", "2"),
        ("MKL_NUM_THREADS", "many"),  # by which it takes one
    ],
)
def test_a_setting_of_ones_own_stays(
    setting: str, number: str, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(BUSY, BUSY)
    monkeypatch.setenv(setting, number)
    assert cores.set_threads() == f"{setting}={number}"
    assert cores.leave_busy_cores() is None
    assert os.environ[setting] == number
    assert setting == cores.SETTING or cores.SETTING not in os.environ


@pytest.mark.parametrize(
    ("after", "jobs", "threads"),
    [
        ((IDLE,) * 8, 2, 4),
        ((IDLE,) * 8, 3, 2),
        ((IDLE,) * 2, 5, 1),
        ((BUSY,) * 2 + (IDLE,) * 6, 2, 3),  # what is free is shared
        ((BUSY,) * 8, 2, 1),
        ((BUSY, IDLE), 1, None),  # one alone looks for itself
    ],
)
def test_jobs_share_the_free_cores(
    after: tuple[Any, ...], jobs: int, threads: int | None, machine: Callable[..., None]
) -> None:
    machine(*after, allowed=range(len(after)), physical=len(after))
    assert runs.threads_for(jobs) == threads


def test_a_training_says_once_that_it_is_crowded(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cores.SETTING, raising=False)
    machine(IDLE, BUSY)
    crowded = Crowded()
    assert crowded.notice(1) is None
    notice = crowded.notice(2)
    assert notice is not None
    assert "1.0 of 2 cores busy, and 2 threads" in notice
    assert "takes as many as are free" in notice
    assert crowded.notice(2) is None
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    notice = Crowded().notice(2)
    assert notice is not None
    assert notice.endswith("MKL_NUM_THREADS=2 holds here, and fewer would go faster.")
    machine(IDLE, IDLE)
    assert Crowded().notice(2) is None
    assert Crowded().notice(1) is None


def test_a_training_says_once_that_cores_are_free_by_now(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(IDLE, BUSY)
    assert cores.leave_busy_cores() is not None
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [ZERO, ZERO])
    crowded = Crowded()
    notice = crowded.notice(1)
    assert notice is not None
    assert "trains on 1 thread, and other processes keep only 0.0 of 2 cores busy by now" in notice
    assert crowded.notice(1) is None
    assert cores.leave_busy_cores() is None
    assert cores.SETTING not in os.environ
    assert Crowded().notice(1) is None  # somebody else's choice


def test_a_busy_process_shows() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        watch = cores.Cores()
        time.sleep(0.5)
        taken = watch.taken()
        busy.kill()
    assert 0.2 < taken <= len(watch.allowed)

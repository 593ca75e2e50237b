"""Which cores are free: as many threads go fastest.

The threads of a computation wait for one another by spinning. With more of them than free cores they spin away each
other's time, and no setting of OpenMP's waiting serves a machine that is idle and one that is not
(benchmarks/contention.py).
"""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path, PurePosixPath

import psutil

SETTING = "OMP_NUM_THREADS"
OTHERS = ("MKL_NUM_THREADS",)
"""Settings that torch puts before it."""
NUMBERS = re.compile(r"\s*\+?(\d+)(,\d+)*\s*")
"""Of threads, one for each level of nesting."""
LOOK = 0.1
"""Seconds that `Cores.look` takes."""
GROUPS = Path("/proc/self/cgroup")
MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))
"""Where Linux tells of control groups, those of the second version and of the first."""
_chosen: str | None = None
"""The number of threads that `leave_busy_cores` has set."""


class Cores:
    """The cores that this process may use, and what other processes take of them.

    Attributes:
        allowed: their numbers.
        count: threads that torch uses of itself: one for each of them, but for those of one physical core.
        quota: how many of them a control group gives the time of, a container's, say; ∞ if it sets no limit.
    """

    def __init__(self) -> None:
        process = psutil.Process()
        every = range(psutil.cpu_count() or 1)
        self.allowed = list(process.cpu_affinity() if hasattr(process, "cpu_affinity") else every)
        self.count = min(len(self.allowed), psutil.cpu_count(logical=False) or len(every))
        self.quota = _quota()
        self._before = self._read()

    def taken(self) -> float:
        """Cores that other processes kept busy, on the average since the last call or the start.

        Those that give way to us, being nicer, do not count.
        """
        (began, busy, own), (now, busy_now, own_now) = self._before, self._read()
        self._before = now, busy_now, own_now
        others = (busy_now - busy - own_now + own) / max(now - began, 1e-9)
        return min(max(others, 0.0), float(len(self.allowed)))

    def look(self) -> float:
        """As `taken`, over a moment from now on."""
        self._before = self._read()
        time.sleep(LOOK)
        return self.taken()

    def threads(self, taken: float) -> int:
        """How many go fastest beside others that keep so many cores busy."""
        return max(1, min(self.count, round(len(self.allowed) - taken), math.floor(min(self.quota, self.count))))

    def _read(self) -> tuple[float, float, float]:
        """Now, and seconds of work so far, of the cores and of this process."""
        times = psutil.cpu_times(percpu=True)
        busy = 0.0
        for core in self.allowed:
            if core < len(times):
                spent = times[core]
                guests = getattr(spent, "guest", 0.0) + getattr(spent, "guest_nice", 0.0)  # in user and nice as well
                idle = spent.idle + getattr(spent, "iowait", 0.0) + guests
                busy += sum(spent) - idle - (0.0 if _nice() else getattr(spent, "nice", 0.0))
        return time.monotonic(), busy, time.process_time()


def leave_busy_cores() -> str | None:
    """Gives OpenMP as many threads as there are free cores, and says so; before torch is imported.

    Does nothing, and gives None, on an idle machine and where the user has `set_threads`.
    """
    global _chosen
    if _chosen is not None and os.environ.get(SETTING) == _chosen:  # of an earlier look
        del os.environ[SETTING]
    _chosen = None
    if set_threads() is not None or (cores := Cores()).count == 1:
        return None
    threads = cores.threads(taken := cores.look())
    if threads == cores.count:
        return None
    os.environ[SETTING] = _chosen = str(threads)
    if threads < round(len(cores.allowed) - taken):
        why = f"a control group allows this process the time of {cores.quota:g} of {len(cores.allowed)} cores"
    else:
        why = f"other processes keep {taken:.1f} of {len(cores.allowed)} cores busy"
    return f"{why}, so torch takes {threads} thread{'' if threads == 1 else 's'}; {SETTING} sets another number."


def set_threads() -> str | None:
    """The user's own setting of the number of threads, `OMP_NUM_THREADS=2`, say; None if there is none.

    Words that are no numbers, and 0, set nothing for OpenMP either; MKL takes one thread for such words.
    """
    for name in OTHERS:
        if os.environ.get(name, "0") not in ("", "0"):
            return f"{name}={os.environ[name]}"
    number = os.environ.get(SETTING, "")
    if number == _chosen or not (found := NUMBERS.fullmatch(number)) or int(found[1]) == 0:
        return None
    return f"{SETTING}={number}"


def left_cores() -> bool:
    """Whether `leave_busy_cores` has set the number of threads."""
    return _chosen is not None


def _quota() -> float:
    """Cores whose time the control groups of this process allow, the least of them; ∞ where there is no limit."""
    try:
        lines = GROUPS.read_text().splitlines()
    except OSError:
        return math.inf
    found = [math.inf]
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        inside = PurePosixPath(place.lstrip("/"))
        for folder in (mount / part for mount in MOUNTS for part in (inside, *inside.parents)):
            for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
                try:
                    quota, period = " ".join((folder / name).read_text() for name in names).split()
                    found.append(int(quota) / int(period) if int(quota) > 0 else math.inf)
                except (OSError, ValueError, ZeroDivisionError):  # no such group; or "max", no limit
                    continue
    return min(found)


def _nice() -> bool:
    """Whether this process gives way to others, so that its work counts as nice."""
    return os.name == "posix" and os.nice(0) > 0

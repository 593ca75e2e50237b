"""Which cores are free: as many threads go fastest.

The threads of a computation wait for one another by spinning. With more of them than free cores they spin away each
other's time, and no setting of OpenMP's waiting serves a machine that is idle and one that is not
(benchmarks/contention.py).
"""

from __future__ import annotations

import os
import time

import psutil

SETTING = "OMP_NUM_THREADS"
OTHERS = ("MKL_NUM_THREADS",)
"""Settings that torch puts before it."""
LOOK = 0.1
"""Seconds that `Cores.look` takes."""


class Cores:
    """The cores that this process may use, and what other processes take of them.

    Attributes:
        allowed: their numbers.
        count: threads that torch uses of itself: one for each of them, but for those of one physical core.
    """

    def __init__(self) -> None:
        process = psutil.Process()
        every = range(psutil.cpu_count() or 1)
        self.allowed = list(process.cpu_affinity() if hasattr(process, "cpu_affinity") else every)
        self.count = min(len(self.allowed), psutil.cpu_count(logical=False) or len(every))
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
        return min(self.count, max(1, round(len(self.allowed) - taken)))

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

    Does nothing, and gives None, on an idle machine and where `OMP_NUM_THREADS` or one of `OTHERS` is set.
    """
    if any(name in os.environ for name in (SETTING, *OTHERS)) or (cores := Cores()).count == 1:
        return None
    threads = cores.threads(taken := cores.look())
    if threads == cores.count:
        return None
    os.environ[SETTING] = str(threads)
    return (
        f"other processes keep {taken:.1f} of {len(cores.allowed)} cores busy, so torch takes {threads} "
        f"thread{'' if threads == 1 else 's'}; {SETTING} sets another number."
    )


def _nice() -> bool:
    """Whether this process gives way to others, so that its work counts as nice."""
    return os.name == "posix" and os.nice(0) > 0

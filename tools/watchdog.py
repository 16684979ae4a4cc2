"""Watches over the kernel of a chapter: stops it when it takes too long, takes too much memory, or is an orphan."""

import contextlib
import logging
import os
import threading
import time

import psutil

SECONDS = 0.25  # between two looks


class Watchdog(threading.Thread):
    """Kills the processes that this one started as soon as there is a reason to, and says which.

    Args:
        minutes: the longest that the chapter may run.
        memory_mb: the most memory that its processes may hold together.
    """

    def __init__(self, minutes: float, memory_mb: float):
        super().__init__(daemon=True)
        self.minutes, self.memory_mb = minutes, memory_mb
        self.reason = ""
        self._end, self._family = threading.Event(), []
        self._runner = int(os.environ.get("LOWDIM_RUNNER", 0))  # who started us, on this machine

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self.join()

    def run(self):
        started, looked = time.monotonic(), 0.0
        while not self._end.wait(SECONDS):
            now = time.monotonic()
            if now - looked > 2 or not self._family:
                self._family, looked = psutil.Process().children(recursive=True), now
            self.reason = self._reason(now - started)
            if self.reason:
                kill_children()
                return
            if self._runner and not _alive(self._runner):  # nobody listens; the next run sweeps the work folder
                kill_children()
                os._exit(1)

    def _reason(self, seconds: float) -> str:
        if seconds > 60 * self.minutes:
            return f"it ran longer than its limit of {self.minutes:g} minutes (--minutes sets another)"
        if (used := sum(map(_resident_mb, self._family))) > self.memory_mb:
            return f"it used {used:.0f} MB of memory, its limit is {self.memory_mb:g} MB (--memory sets another)"
        return ""


def kill_children() -> None:
    """End everything that this process started, at once."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def stop_tidily(*_):
    """A handler of signals: the kernel ends without a word, this process like after Ctrl-C.

    Nothing is logged from here on: the client of the kernel and its event loop would report the death of the kernel,
    and whether they get to it before this process ends is a matter of chance.
    """
    logging.disable()
    kill_children()
    raise KeyboardInterrupt


def _resident_mb(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 1024**2
    except psutil.Error:
        return 0.0


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

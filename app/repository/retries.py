"""Retries of loads that failed because memory or time was short."""

import logging
import time
from collections.abc import Callable, Mapping

from app.repository.watcher import Change

log = logging.getLogger(__name__)

_FIRST_S, _LONGEST_S = 30.0, 600.0


class Retries:
    """Schedule of retries: half a minute after a failure, then doubling, up to 10 minutes.

    Other failures wait for a change of the files; memory may become free without one.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pauses_s: dict[str, float] = {}  # pause before the next try of each model
        self._due_s: dict[str, float] = {}

    def due(self, short: Mapping[str, frozenset[str]]) -> list[Change]:
        """Models to load again now.

        Args:
            short: Versions that lacked memory or time, by model; models that are missing here are forgotten.
        """
        now = self._clock()
        self._pauses_s = {name: self._pauses_s.get(name, _FIRST_S) for name in short}
        self._due_s = {name: at for name, at in self._due_s.items() if name in short}
        for name in short.keys() - self._due_s.keys():
            self._due_s[name] = now + self._pauses_s[name]
            log.warning("retrying the load of model %s in %.0f s: memory or time was short", name, self._pauses_s[name])
        ready = sorted(name for name, at in self._due_s.items() if at <= now)
        for name in ready:
            # The next pause starts after this try, which takes time.
            del self._due_s[name]
            self._pauses_s[name] = min(2 * self._pauses_s[name], _LONGEST_S)
        return [Change(name, short[name]) for name in ready]

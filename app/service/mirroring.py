"""Mirroring of a remote model repository: blocking calls in threads, at the start, periodically and on request."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from app.config.model_url import ModelUrl
from app.config.settings import Settings
from app.repository.remote.cache import now
from app.repository.remote.errors import MirrorStoppedError, RemoteError
from app.repository.remote.mirror import Mirror, MirrorOptions

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0


class Mirroring:
    """Keeps a mirror up to date.

    Args:
        mirror: Mirror of the remote repository.
        interval_s: Time between two passes.

    Attributes:
        failures: Number of failed passes in this process.
        problem: Reason for the failure of the last pass; None if it succeeded.
    """

    def __init__(self, mirror: Mirror, interval_s: float) -> None:
        self.mirror = mirror
        self._interval_s = interval_s
        self.failures = 0
        self.problem: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Mirroring | None":
        """Mirroring from the settings; None if the models are in a local folder.

        Raises:
            MissingExtraError: The packages for the URL's scheme are not installed.
        """
        if not isinstance(settings.model_dir, ModelUrl):
            return None
        options = MirrorOptions(settings.model_cache, settings.model_cache_max_bytes, settings.model_cache_max_files)
        return cls(Mirror(settings.model_dir, options), settings.remote_interval_s)

    async def start(self, not_yet: Callable[[str], None], *, successor: bool = False) -> None:
        """Mirror before the first load; returns once there is something to load.

        If the remote repository can't be read, the cached copy is used.

        Args:
            not_yet: Called with the reason if there is no cached copy either; the pass is then retried.
            successor: Whether this process replaces another one, and starts with its copy.
        """
        mirror, pause_s = self.mirror, _FIRST_PAUSE_S
        log.info("mirroring models from %s to %s", mirror.url, mirror.folder)
        if successor and await _in_thread(lambda: mirror.has_copy):
            return
        while True:
            try:
                await self.refresh()
            except MirrorStoppedError:
                return
            except RemoteError as error:
                if await _in_thread(lambda: mirror.has_copy):
                    log.warning("serving the cached copy")
                    return
                not_yet(str(error))
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def refresh(self, within_s: float = 0.0) -> None:
        """Mirror changes; a problem is logged when it occurs first and when it is solved.

        Args:
            within_s: Skip the pass if another process began one at most this many seconds ago.

        Raises:
            RemoteError: A part failed, and is unchanged.
        """
        asked_at = now() - within_s
        try:
            await _in_thread(lambda: self.mirror.sync(asked_at))
        except MirrorStoppedError:
            raise
        except RemoteError as error:
            self.failures += 1
            if str(error) != self.problem:
                log.error("%s", error)
            self.problem = str(error)
            raise
        if self.problem is not None:
            log.info("mirroring of %s works again", self.mirror.url)
        self.problem = None

    async def follow(self) -> None:
        """Mirror periodically until cancelled, with growing intervals while it fails."""
        pause_s = self._interval_s
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.refresh(self._interval_s / 2)
            except MirrorStoppedError:
                return
            except RemoteError:
                pause_s = min(2 * pause_s, max(self._interval_s, _LONGEST_PAUSE_S))
            except Exception:  # a file system can raise anything: try again
                log.exception("mirroring the models failed")
            else:
                pause_s = self._interval_s


async def _in_thread(function: Callable[[], Result]) -> Result:
    """Call a function in a daemon thread, which does not delay the end of the process: networks may block for long."""
    outcome: Future[Result] = Future()

    def run() -> None:
        if not outcome.set_running_or_notify_cancel():
            return
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised in the awaiting task
            outcome.set_exception(error)

    threading.Thread(target=run, name="mirror", daemon=True).start()
    return await asyncio.wrap_future(outcome)

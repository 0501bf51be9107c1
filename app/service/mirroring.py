"""Following a remote model repository: the mirror's blocking calls in threads, at the start, by time and on request."""

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
        mirror: of the remote repository.
        interval_s: time between two looks at it.

    Attributes:
        failures: passes that failed, of this process.
        problem: why the last pass failed; None where it did not.
    """

    def __init__(self, mirror: Mirror, interval_s: float) -> None:
        self.mirror = mirror
        self._interval_s = interval_s
        self.failures = 0
        self.problem: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Mirroring | None":
        """Make it from the settings; None where the models lie in a local folder.

        Raises:
            MissingExtraError: the packages of the URL's scheme are not installed.
        """
        if not isinstance(settings.model_dir, ModelUrl):
            return None
        options = MirrorOptions(settings.model_cache, settings.model_cache_max_bytes, settings.model_cache_max_files)
        return cls(Mirror(settings.model_dir, options), settings.remote_interval_s)

    async def start(self, not_yet: Callable[[str], None], *, successor: bool = False) -> None:
        """Mirror before the first load; returns once there is something to load.

        If the remote repository can't be read, the cached copy is used.

        Args:
            not_yet: called with the reason where there is none either; it is then tried again.
            successor: whether this process replaces another, and is to begin with what that one left.
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
        """Mirror the changes; a problem is logged when it begins and when it ends.

        Args:
            within_s: a pass by another process that began so short a time ago is as good as a new one.

        Raises:
            RemoteError: a part of it failed, and is as it was before.
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
        """Mirror again and again, until cancelled; less and less often while it fails."""
        pause_s = self._interval_s
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.refresh(self._interval_s / 2)
            except MirrorStoppedError:
                return
            except RemoteError:
                pause_s = min(2 * pause_s, max(self._interval_s, _LONGEST_PAUSE_S))
            except Exception:  # whatever a file system may come up with: look again
                log.exception("mirroring the models failed")
            else:
                pause_s = self._interval_s


async def _in_thread(function: Callable[[], Result]) -> Result:
    """Call a function in a thread that the process does not wait for at its end: networks may keep it for long."""
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            outcome.set_exception(error)

    threading.Thread(target=run, name="mirror", daemon=True).start()
    return await asyncio.wrap_future(outcome)

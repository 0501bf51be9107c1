"""Background tasks of the application, from start to shutdown."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from app.cluster.control_log import History
from app.repository.retries import Retries
from app.repository.watcher import Watcher
from app.service.access import Access, watch_keys
from app.service.state import AppState

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0


@dataclass(frozen=True)
class LifecycleOptions:
    """Start options of an application.

    Attributes:
        load_first: Whether models are loaded before connections are accepted.
        on_loaded: Called once the models are loaded.
    """

    load_first: bool = False
    on_loaded: Callable[[], None] = lambda: None


class Lifecycle:
    """Background tasks: load models, watch the folder, apply commands of other workers, reread keys.

    Args:
        state: State of the application.
        options: Start options.
        on_keys_changed: Called on the event loop after the set of keys changed.
    """

    def __init__(self, state: AppState, options: LifecycleOptions, on_keys_changed: Callable[[], None]) -> None:
        self._state = state
        self._options = options
        self._on_keys_changed = on_keys_changed
        self._tasks: list[asyncio.Task[None]] = []
        self._rereading: set[asyncio.Task[None]] = set()
        self._watcher: Watcher | None = None

    async def start(self) -> None:
        """Start the tasks; models load in threads, so health checks respond meanwhile."""
        state = self._state
        history = None if state.link is None else await state.link.start(state.counters)
        loading = asyncio.create_task(self._load(history))
        self._tasks = [loading, asyncio.create_task(self._follow(loading))]
        self._tasks.append(asyncio.create_task(watch_keys(state.service.access, self._on_keys_changed)))
        if self._options.load_first:
            await asyncio.wait({loading})

    async def stop(self) -> None:
        """End all tasks, and close the models."""
        state = self._state
        state.repository.end()
        if state.mirroring is not None:
            state.mirroring.mirror.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if state.link is not None:
            await state.link.stop()
        for serving in state.repository.servings():
            serving.batcher.close()
        await state.service.close()

    def reread_keys(self) -> None:
        """Reread the key files now instead of within seconds."""
        access = self._state.service.access
        if access is not None:
            task = asyncio.get_running_loop().create_task(self._reread(access))
            self._rereading.add(task)
            task.add_done_callback(self._rereading.discard)

    async def _reread(self, access: Access) -> None:
        if await asyncio.to_thread(access.refresh):
            self._on_keys_changed()
        log.info("SIGHUP: reloaded the key files")

    async def _follow(self, loading: asyncio.Task[None]) -> None:
        """Watch the folder, if enabled, and apply commands of other workers, once the models are loaded."""
        await asyncio.wait({loading})
        control, mirroring = self._state.control, self._state.mirroring
        async with asyncio.TaskGroup() as group:
            group.create_task(control.follow_log())
            group.create_task(control.retry())
            if self._watcher is not None:
                group.create_task(control.watch(self._watcher, Retries()))
            if self._watcher is not None and mirroring is not None:
                group.create_task(mirroring.follow())

    async def _load(self, history: History | None) -> None:
        state, loader = self._state, self._state.loader
        if loader.device_problem is not None:
            log.error("not ready: %s", loader.device_problem)
        elif loader.device is not None and loader.device.requested == "auto" and loader.device.reason is not None:
            log.warning("device=auto: running on the CPU, because %s", loader.device.reason)
        if state.mirroring is not None:
            await state.mirroring.start(self._not_yet, successor=self._options.load_first)
        if state.settings.model_control == "watch":  # made before the models load, to miss no change
            self._watcher = Watcher(state.repository.folder.root)
        await self._read_folder(history)
        state.repository.started()
        self._check_default_model()
        self._options.on_loaded()
        problem = state.not_ready_because(alone=True)
        if state.draining:
            return
        if problem is None:
            log.info("ready: serving %s", ", ".join(state.repository.names))
        else:
            # responses must not reveal the folder
            where = "" if state.repository.entries else f" (model_dir is {str(state.settings.model_dir)!r})"
            log.error("not ready: %s%s", problem, where)

    def _not_yet(self, reason: str) -> None:
        """Report that there is nothing to load yet, because the remote repository is not readable."""
        self._state.folder_problem = reason

    def _check_default_model(self) -> None:
        """Log that the default model is missing: ``POST /predict`` is refused until it is loaded."""
        name, entries = self._state.settings.default_model, self._state.repository.entries
        if name is not None and name not in entries:
            there = ", ".join(entries) or "none"
            log.error(
                "default_model %r is not in the model folder, which POST /predict needs; available: %s", name, there
            )

    async def _read_folder(self, history: History | None) -> None:
        """Load the models of the folder; if it is not readable, try again later."""
        state, pause_s = self._state, _FIRST_PAUSE_S
        while not state.draining:
            try:
                await state.control.load_all(history)
            except OSError as error:
                reason = f"the model folder can't be read: {error.strerror}"
                if state.folder_problem != reason:
                    log.error("not ready: %s; retrying at least every %g seconds", reason, _LONGEST_PAUSE_S)
                state.folder_problem = reason
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                break
        state.folder_problem = None

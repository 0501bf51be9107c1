"""Model control at run time: load and unload on request, with the other workers, or when the folder changes."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

from app.cluster.control_log import Action, Applied, Command, History
from app.cluster.link import Link
from app.config.settings import Settings
from app.errors import STATUS, AppError, ControlForbiddenError, LoadError, ModelNotFoundError, ModelUnavailableError
from app.repository.placement import PlacementSettings
from app.repository.repository import Repository
from app.repository.retries import Retries
from app.repository.served_model import Serving
from app.repository.watcher import Change, Watcher
from app.service.mirroring import Mirroring
from app.system.memory import trim_memory

log = logging.getLogger(__name__)

_ERRORS = {kind.__name__: kind for kind in STATUS}
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0


class ModelControl:
    """Loads and unloads models, one change at a time.

    Args:
        settings: Settings of the server.
        repository: The repository to change.
        link: Link to the other workers; None without any.
        mirroring: Keeps the model folder in sync with a remote one; None for a local folder.

    Attributes:
        behind: Why this worker does not yet serve the result of a command in the log, by model name.
    """

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        link: Link | None = None,
        mirroring: Mirroring | None = None,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._link = link
        self._mirroring = mirroring
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._log_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="control")
        self._following: set[asyncio.Task[None]] = set()
        self._told_owed: frozenset[str] | None = None
        self._policies: dict[str, str] = {}
        self._placements: dict[str, PlacementSettings] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._overdue: dict[str, Command] = {}
        self.behind: dict[str, str] = {}

    def check_allowed(self) -> None:
        """Check that clients may control models.

        Raises:
            ControlForbiddenError: The settings do not allow it.
        """
        if self._settings.model_control != "explicit":
            raise ControlForbiddenError(
                f"model_control is {self._settings.model_control}; "
                "set PANTHER_MODEL_CONTROL=explicit to load, unload and benchmark models over HTTP"
            )

    async def load_all(self, history: History | None = None) -> None:
        """Load all models of the folder.

        Args:
            history: The models that other workers serve, if this worker starts later.
        """
        history = history or History()
        owed = history.owed
        if self._settings.model_control == "watch":
            history = History()
        unloaded = {command.name for command in history.commands if command.action == "unload"}
        self._policies = {command.name: command.versions for command in history.commands if command.versions}
        found = {command.name: _placement(command) for command in history.commands}
        self._placements = {name: placement for name, placement in found.items() if placement is not None}
        await asyncio.to_thread(
            self._repository.load_all, unloaded, self._policies, owed, history.names, self._placements
        )
        self.tell_loaded()

    def tell_loaded(self) -> None:
        """Report the served models to the other workers; with ``watch`` each worker watches the folder separately."""
        if self._link is not None:
            watching = self._settings.model_control == "watch"
            self._link.tell_loaded({} if watching else self._repository.serving_versions())
            self._tell_owed()

    def _tell_owed(self) -> None:
        owed = self._repository.readiness.owed
        if self._link is not None and owed != self._told_owed:
            self._told_owed = owed
            self._link.tell_owed(sorted(owed))

    def _lock_of(self, name: str) -> asyncio.Lock:
        """The lock of a model: its changes run one after the other; different models do not wait for one another."""
        return self._locks.setdefault(name, asyncio.Lock())

    def _log_lock_of(self, name: str) -> asyncio.Lock:
        """The lock of a command in the log, from its first change to its last; each change takes the model's too."""
        return self._log_locks.setdefault(name, asyncio.Lock())

    async def _in_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def request(
        self, action: Action, name: str, policy: str | None = None, placement: PlacementSettings | None = None
    ) -> None:
        """Load or unload a model for a client, in every worker.

        Args:
            action: The action.
            name: Name of the model.
            policy: Version policy that overrides the settings.
            placement: Placement of the model's instances that overrides the settings.

        Raises:
            ControlForbiddenError: The settings do not allow it.
            ModelNotFoundError, LoadError: See ``Repository``; LoadError also if a worker has not applied it.
            ModelUnavailableError: The server shuts down first, or the remote repository cannot be mirrored.
        """
        self.check_allowed()
        if action == "load" and self._mirroring is not None:
            await self._mirroring.refresh()
        if self._link is None:
            await self.apply(action, name, policy, placement)
            return
        plain = None if placement is None else placement.model_dump(mode="json")
        outcome = await self._link.submit(Command(0, action, name, policy, placement=plain))
        if outcome is None:
            raise ModelUnavailableError("the server is shutting down")
        if outcome.error is not None:
            raise _ERRORS.get(outcome.kind or "", LoadError)(outcome.error)
        if outcome.behind:
            late = "; ".join(f"{worker}: {reason}" for worker, reason in sorted(outcome.behind.items()))
            raise LoadError(f"{action} of model {name!r} is not yet applied by every worker: {late}")

    async def apply(
        self, action: Action, name: str, policy: str | None = None, placement: PlacementSettings | None = None
    ) -> None:
        """Load or unload a model in this process; a replaced version finishes its requests first."""
        async with self._lock_of(name):
            try:
                if action == "load":
                    await self._in_thread(self._repository.load, name, policy, None, placement)
                else:
                    await self._in_thread(self._repository.unload, name)
            finally:
                self.release_retired()

    async def follow_log(self) -> None:
        """Apply the commands of the log in order, until cancelled."""
        if self._link is not None:
            await self._link.follow(self.apply_command)

    async def apply_command(self, command: Command) -> Applied:
        """Apply a command of the log: decide its outcome, or reach the outcome of another worker."""
        async with self._log_lock_of(command.name):
            return await self._apply_command(command)

    async def _apply_command(self, command: Command) -> Applied:
        before = self._served(command.name)
        error: AppError | None = None
        try:
            await self.apply(command.action, command.name, command.policy, _placement(command))
        except AppError as problem:
            error = problem
        except Exception as problem:
            log.exception("%s of model %s failed", command.action, command.name)
            error = LoadError(f"{command.action} of model {command.name!r} failed: {type(problem).__name__}")
        if command.versions is not None:
            error = await self._come_to(command, error)
        changed = self._served(command.name) != before
        if command.versions is None and (error is None or changed):
            self._settle(command.name)
        return Applied(
            number=command.number,
            versions=self._versions(command.name),
            changed=changed,
            error=None if error is None else str(error),
            kind=None if error is None else type(error).__name__,
        )

    async def _come_to(self, command: Command, error: AppError | None) -> AppError | None:
        """Make this worker serve the decided versions. Return the reason if it does not, or None."""
        name, wanted = command.name, command.versions
        told = self.behind.get(name)
        self._settle(name)
        if self._versions(name) != wanted:
            try:
                if wanted:
                    await self.apply("load", name, wanted, _placement(command))
                elif self._versions(name):
                    await self.apply("unload", name)
            except AppError as problem:
                error = problem
            except Exception as problem:
                log.exception("%s of model %s failed", command.action, name)
                error = LoadError(f"{command.action} of model {name!r} failed: {type(problem).__name__}")
        if self._versions(name) == wanted:
            return None
        reason = str(error) if error is not None else f"versions {wanted or 'none'} are not in the folder"
        self._overdue[name] = command
        self.behind[name] = reason
        if reason != told:
            log.error("model %s: this worker does not serve versions %s yet: %s", name, wanted or "none", reason)
        return error or LoadError(reason)

    def _settle(self, name: str) -> None:
        self._overdue.pop(name, None)
        self.behind.pop(name, None)

    async def retry(self) -> None:
        """Retry failures of this worker, and loads that lacked resources at the start, until cancelled.

        With ``watch``, the folder watch retries the latter.
        """
        pause_s = _FIRST_RETRY_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                missing = await self.retry_once()
            except Exception:  # a file system can raise anything: try again
                log.exception("retrying to load models failed")
                missing = True
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S) if missing else _FIRST_RETRY_S

    async def retry_once(self) -> bool:
        """Try once. Return whether something is still missing."""
        for name in list(self._overdue):
            async with self._log_lock_of(name):
                command = self._overdue.get(name)
                if command is not None:
                    await self._come_to(command, None)
        starved = [] if self._settings.model_control == "watch" else self._repository.starved()
        for name in starved:
            async with self._log_lock_of(name):
                if name in self._repository.starved():
                    with contextlib.suppress(AppError):
                        await self.apply("load", name, self._policies.get(name), self._placements.get(name))
        if starved:
            self.tell_loaded()
        return bool(self._overdue or starved)

    def _served(self, name: str) -> list[Serving | None]:
        entry = self._repository.entries.get(name)
        return [] if entry is None else [item.serving for item in entry.ready()]

    def _versions(self, name: str) -> str:
        return self._repository.serving_versions().get(name, "")

    async def watch(self, watcher: Watcher, retries: Retries) -> None:
        """Watch the folder for changes, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.watch_interval_s)
            try:
                await self.poll(watcher, retries)
            except Exception:  # a file system can raise anything: scan again
                log.exception("scanning the model folder failed")

    async def poll(self, watcher: Watcher, retries: Retries) -> list[asyncio.Task[None]]:
        """Start loads for changes of the folder, and retries for lack of memory or time.

        Returns:
            One task per model, so a slow load does not delay the others.
        """
        changes = [*await asyncio.to_thread(watcher.poll), *retries.due(self._repository.to_retry())]
        tasks = [asyncio.create_task(self.follow(change)) for change in changes]
        self._following.update(tasks)
        for task in tasks:
            task.add_done_callback(self._following.discard)
        return tasks

    async def follow(self, change: Change) -> None:
        """Apply a change of the folder; failures are logged and shown, and the served version stays."""
        async with self._lock_of(change.name):
            try:
                if change.gone:
                    await self._in_thread(self._repository.forget, change.name)
                else:
                    await self._in_thread(self._repository.load, change.name, None, change.versions)
            except ModelNotFoundError as error:
                log.error("%s", error)
                await self._in_thread(self._repository.forget, change.name)
            except AppError as error:
                log.error("%s", error)
            except Exception:
                log.exception("loading model %s failed", change.name)
            finally:
                self.release_retired()

    def release_retired(self) -> None:
        """Drain replaced models, then free their memory."""
        self._tell_owed()
        retired = self._repository.take_retired()
        if retired:
            for serving in retired:
                serving.batcher.close()
            task = asyncio.create_task(_release(retired))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)

    @property
    def releasing(self) -> bool:
        """Whether a replaced model is not yet drained."""
        return bool(self._releases)


def _placement(command: Command) -> PlacementSettings | None:
    return None if command.placement is None else PlacementSettings.model_validate(command.placement)


async def _release(retired: list[Serving]) -> None:
    while any(not serving.batcher.idle for serving in retired):
        await asyncio.sleep(0.05)
    retired.clear()  # the last reference frees the session
    await asyncio.to_thread(trim_memory)

"""What the routes share: one object, made by ``create_app`` and reached through the application."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import Request

from app.errors import AppError, ControlForbiddenError, LoadError, ModelNotFoundError
from app.figures import Figures, add_up, process_figures
from app.inference import InferenceService
from app.memory import trim_memory
from app.peers import CONTROL_TIMEOUT_S, STATISTICS_TIMEOUT_S, Peers
from app.repository import LOADING, Repository
from app.retries import Retries
from app.serving import Loader, Serving
from app.settings import Settings
from app.statistics import Statistics
from app.watcher import Change, Watcher

log = logging.getLogger(__name__)

Action = Literal["load", "unload"]


@dataclass
class AppState:
    """Settings, models and the service that answers with them."""

    settings: Settings
    loader: Loader
    repository: Repository
    service: InferenceService
    draining: bool = False
    load_first: bool = False
    peers: Peers | None = None
    on_loaded: Callable[[], None] = lambda: None
    started_at_s: float = field(default_factory=time.time)
    started_clock: float = field(default_factory=time.monotonic)
    _control_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _releases: set[asyncio.Task[None]] = field(default_factory=set)

    def not_ready_because(self, *, alone: bool = False) -> str | None:
        """Why the server is not ready, or None when it is.

        Args:
            alone: look at this worker only, not at others that have yet to load their models.
        """
        if self.draining:
            return "the server is shutting down"
        problem = self.loader.device_problem or self.loader.lost
        if problem is not None:
            return problem
        if self.repository.starting:
            return LOADING
        if not alone and self.peers is not None and not self.peers.all_loaded(self.settings.workers):
            return LOADING
        problems = self.repository.problems()
        return "; ".join(problems) if problems else None

    def stuck_because(self) -> str | None:
        """Why the engine can't be called alive, or None when it can: CUDA is lost, or a run of a model does not end."""
        lost = self.loader.lost
        if lost is not None:
            return lost
        limit_s = self.settings.stuck_run_s
        for serving in self.repository.servings() if limit_s else ():
            running_s = serving.batcher.running_s
            if running_s > limit_s:
                name, version = serving.model.name, serving.model.version
                return (
                    f"model {name!r} version {version} has been running for {running_s:.0f} s (stuck_run_s {limit_s:g})"
                )
        return None

    def figures(self) -> dict[str, Any]:
        """What this worker counts, as plain data."""
        return {
            "statistics": [[*key, item.snapshot()] for key, item in self.repository.counted().items()],
            "unrouted": [[*key, count] for key, count in self.service.unrouted.items()],
            "loads": [[*key, count] for key, count in list(self.repository.loads.items())],
            "process": process_figures(),
            "depths": [
                [item.model.name, item.model.version, item.batcher.depth] for item in self.repository.servings()
            ],
        }

    async def all_figures(self) -> Figures:
        """The same, added up over all workers."""
        own = self.figures()
        if self.peers is None:
            return add_up([own])
        others, past = await self.peers.figures(own)
        return add_up([own, *others], past)

    async def statistics(self) -> dict[tuple[str, str], Statistics]:
        """Live figures of every loaded version, by name and version, added up over all workers."""
        own = self.repository.statistics()
        if self.peers is None:
            return own
        total = (await self.all_figures()).statistics
        return {key: total[key] for key in own}

    async def answer_peer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer another worker."""
        if message["ask"] == "figures":
            figures = self.figures()
            if self.peers is not None:
                self.peers.remember(figures)
            return figures
        if message["ask"] == "versions":
            return {"versions": None if self.repository.starting else self.repository.serving_versions()}
        try:
            await self.apply(message["ask"], message["name"], message.get("policy"))
        except AppError as error:
            return {"error": str(error)}
        return {"error": None}

    async def load_all(self) -> None:
        """Load what the folder holds, or what the other workers serve of it where this one comes later."""
        unloaded: set[str] = set()
        policies: dict[str, str] = {}
        if self.peers is not None and self.settings.model_control != "watch":
            notes = self.peers.notes()
            unloaded = {name for name, word in notes.items() if word["action"] == "unload"}
            for answer in await self.peers.ask_all({"ask": "versions"}, STATISTICS_TIMEOUT_S):
                policies |= {name: policy for name, policy in (answer["versions"] or {}).items() if policy}
            policies |= {name: word["policy"] for name, word in notes.items() if word.get("policy")}
        async with self._control_lock:
            await asyncio.to_thread(self.repository.load_all, unloaded, policies)

    def check_control(self) -> None:
        """See that clients may do more than predict.

        Raises:
            ControlForbiddenError: the settings don't allow it.
        """
        if self.settings.model_control != "explicit":
            raise ControlForbiddenError(
                f"model_control is {self.settings.model_control}; "
                "set PANTHER_MODEL_CONTROL=explicit to load, unload and measure models over HTTP"
            )

    async def control(self, action: Action, name: str, policy: str | None = None) -> None:
        """Load or unload a model on somebody's request.

        Args:
            action: what to do.
            name: of the model.
            policy: versions to load, instead of those that the settings select.

        Raises:
            ControlForbiddenError: that is not allowed by the settings.
            ModelNotFoundError, LoadError: see ``Repository``.
        """
        self.check_control()
        await self.apply(action, name, policy)
        if self.peers is not None:
            self.peers.note(name, {"action": action, "policy": policy})
            message = {"ask": action, "name": name, "policy": policy}
            answers = await self.peers.ask_all(message, CONTROL_TIMEOUT_S)
            failures = [answer["error"] for answer in answers if answer["error"] is not None]
            if failures:
                raise LoadError(f"another worker failed: {failures[0]}")

    async def apply(self, action: Action, name: str, policy: str | None = None) -> None:
        """Load or unload a model in this process; what it replaces finishes what it has in hand."""
        async with self._control_lock:
            try:
                if action == "load":
                    await asyncio.to_thread(self.repository.load, name, policy)
                else:
                    self.repository.unload(name)
            finally:
                self.let_go()

    async def watch(self, watcher: Watcher, retries: Retries) -> None:
        """Follow what changes in the folder, until cancelled."""
        while True:
            await asyncio.sleep(self.settings.watch_interval_s)
            try:
                await self.look(watcher, retries)
            except Exception:  # whatever a file system may come up with: look again
                log.exception("looking at the model folder failed")

    async def look(self, watcher: Watcher, retries: Retries) -> None:
        """Load what has changed in the folder, and once more what memory was short for."""
        for change in await asyncio.to_thread(watcher.poll):
            await self.follow(change)
        for change in retries.due(self.repository.short_of_memory()):
            await self.follow(change)

    async def follow(self, change: Change) -> None:
        """Do what a change of the folder asks for; what fails is logged and shown, and the old version stays."""
        async with self._control_lock:
            try:
                if change.gone:
                    self.repository.forget(change.name)
                else:
                    await asyncio.to_thread(self.repository.load, change.name, None, change.versions)
            except ModelNotFoundError as error:
                log.error("%s", error)
                self.repository.forget(change.name)
            except AppError as error:
                log.error("%s", error)
            finally:
                self.let_go()

    def let_go(self) -> None:
        """Have what was replaced finish what it has in hand, and give its memory back."""
        retired = self.repository.take_retired()
        if retired:
            for serving in retired:
                serving.batcher.close()
            task = asyncio.create_task(_release(retired))
            self._releases.add(task)
            task.add_done_callback(self._releases.discard)


async def _release(retired: list[Serving]) -> None:
    while any(not serving.batcher.idle for serving in retired):
        await asyncio.sleep(0.05)
    retired.clear()  # with the last reference the session goes
    await asyncio.to_thread(trim_memory)


def app_state(request: Request) -> AppState:
    """The state, as a dependency of routes."""
    state: AppState = request.app.state.panther
    return state

"""What the routes share: one object, made by ``create_app`` and reached through the application."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import Request

from app.errors import AppError, ControlForbiddenError, LoadError
from app.figures import Figures, add_up, process_figures
from app.inference import InferenceService
from app.peers import CONTROL_TIMEOUT_S, Peers
from app.repository import Repository
from app.serving import Loader
from app.settings import Settings
from app.statistics import Statistics

Action = Literal["load", "unload"]


@dataclass
class AppState:
    """Settings, models and the service that answers with them."""

    settings: Settings
    loader: Loader
    repository: Repository
    service: InferenceService
    loading: bool = True
    peers: Peers | None = None
    on_loaded: Callable[[], None] = lambda: None
    started_at_s: float = field(default_factory=time.time)
    started_clock: float = field(default_factory=time.monotonic)
    _control_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def not_ready_because(self) -> str | None:
        """Why the server is not ready, or None when it is."""
        if self.loader.device_problem is not None:
            return self.loader.device_problem
        if self.loading:
            return "models are being loaded"
        problems = self.repository.problems()
        return "; ".join(problems) if problems else None

    def figures(self) -> dict[str, Any]:
        """What this worker counts, as plain data."""
        return {
            "statistics": [[*key, item.snapshot()] for key, item in self.repository.statistics().items()],
            "unrouted": [[*key, count] for key, count in self.service.unrouted.items()],
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
        try:
            await self.apply(message["ask"], message["name"])
        except AppError as error:
            return {"error": str(error)}
        return {"error": None}

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

    async def control(self, action: Action, name: str) -> None:
        """Load or unload a model on somebody's request.

        Raises:
            ControlForbiddenError: that is not allowed by the settings.
            ModelNotFoundError, LoadError: see ``Repository``.
        """
        self.check_control()
        await self.apply(action, name)
        if self.peers is not None:
            self.peers.note(name, unloaded=action == "unload")
            answers = await self.peers.ask_all({"ask": action, "name": name}, CONTROL_TIMEOUT_S)
            failures = [answer["error"] for answer in answers if answer["error"] is not None]
            if failures:
                raise LoadError(f"another worker failed: {failures[0]}")

    async def apply(self, action: Action, name: str) -> None:
        """Load or unload a model in this process; what it replaces finishes what it has in hand."""
        async with self._control_lock:
            try:
                if action == "load":
                    await asyncio.to_thread(self.repository.load, name)
                else:
                    self.repository.unload(name)
            finally:
                for serving in self.repository.take_retired():
                    serving.batcher.close()


def app_state(request: Request) -> AppState:
    """The state, as a dependency of routes."""
    state: AppState = request.app.state.panther
    return state

"""What the routes share: one object, made by ``create_app`` and reached through the application."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fastapi import Request

from app.errors import ControlForbiddenError
from app.inference import InferenceService
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

    async def statistics(self) -> dict[tuple[str, str], Statistics]:
        """Live figures of every loaded version, by name and version."""
        return self.repository.statistics()

    async def control(self, action: Action, name: str) -> None:
        """Load or unload a model on somebody's request.

        Raises:
            ControlForbiddenError: that is not allowed by the settings.
            ModelNotFoundError, LoadError: see ``Repository``.
        """
        if self.settings.model_control != "explicit":
            raise ControlForbiddenError(
                f"model_control is {self.settings.model_control}; "
                "set PANTHER_MODEL_CONTROL=explicit to load and unload models over HTTP"
            )
        await self.apply(action, name)

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

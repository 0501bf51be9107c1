"""What the routes share: one object, made by ``create_app`` and reached through the application."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request

from app.inference import InferenceService
from app.repository import Repository
from app.serving import Loader
from app.settings import Settings


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

    def not_ready_because(self) -> str | None:
        """Why the server is not ready, or None when it is."""
        if self.loader.device_problem is not None:
            return self.loader.device_problem
        if self.loading:
            return "models are being loaded"
        problems = self.repository.problems()
        return "; ".join(problems) if problems else None


def app_state(request: Request) -> AppState:
    """The state, as a dependency of routes."""
    state: AppState = request.app.state.panther
    return state

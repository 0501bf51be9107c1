"""Shared state of the routes, made by ``create_app``."""

import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from app.cluster.link import Link
from app.config.settings import Settings
from app.repository.repository import LOADING, Repository
from app.repository.served_model import Loader
from app.service.control import ModelControl
from app.service.inference import InferenceService
from app.service.mirroring import Mirroring
from app.telemetry.aggregate import ServerCounters, aggregate, process_counters
from app.telemetry.logs import dropped_log_lines
from app.telemetry.statistics import Statistics


@dataclass
class AppState:
    """Settings, models and the inference service of one application.

    Attributes:
        control: Model control.
        link: Link to the other workers; None without any.
        mirroring: Keeps the model folder in sync with a remote one; None for a local folder.
        draining: Whether a graceful shutdown has begun.
        folder_problem: Reason why the model folder was not readable at the start, or None.
    """

    settings: Settings
    loader: Loader
    repository: Repository
    service: InferenceService
    control: ModelControl
    link: Link | None = None
    mirroring: Mirroring | None = None
    draining: bool = False
    folder_problem: str | None = None
    started_at_s: float = field(default_factory=time.time)
    started_clock: float = field(default_factory=time.monotonic)

    def drain(self) -> None:
        """Start a graceful shutdown: not ready from now on, and no more loads."""
        self.draining = True
        self.repository.end()
        if self.mirroring is not None:
            self.mirroring.mirror.stop()

    def not_ready_because(self, *, alone: bool = False) -> str | None:
        """Reasons why the server is not ready, or None if it is; see ``Readiness`` for the models that count.

        Args:
            alone: Check this worker only, not others that have yet to load their models.
        """
        if self.draining:
            return "the server is shutting down"
        problem = self.loader.device_problem or self.loader.lost
        if problem is not None:
            return problem
        if self.folder_problem is not None:
            return self.folder_problem
        if self.repository.starting or not (alone or self.link is None or self.link.all_loaded):
            return LOADING
        problems = self.repository.problems()
        problems += [f"{name}: {reason}" for name, reason in self.control.behind.items()]
        return "; ".join(problems) if problems else None

    def stuck_because(self) -> str | None:
        """The reason why the server is not live, or None if it is: CUDA is lost, or a run of a model is stuck."""
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

    def counters(self) -> dict[str, Any]:
        """Counters of this worker as plain data, for sending to another one."""
        return {
            "statistics": [[*key, item.snapshot()] for key, item in self.repository.counted().items()],
            "unrouted": [[*key, count] for key, count in self.service.unrouted.items()],
            "loads": [[*key, count] for key, count in list(self.repository.loads.items())],
            "process": process_counters(),
            "dropped_log_lines": dropped_log_lines(),
            "depths": [
                [item.model.name, item.model.version, item.batcher.depth] for item in self.repository.servings()
            ],
        }

    async def all_counters(self) -> ServerCounters:
        """Counters summed over all workers."""
        own = self.counters()
        if self.link is None:
            return aggregate([own])
        others, past = await self.link.gather(own)
        return aggregate([own, *others], past)

    async def statistics(self) -> dict[tuple[str, str], Statistics]:
        """Counters of every loaded version, by name and version, summed over all workers."""
        own = self.repository.statistics()
        if self.link is None:
            return own
        total = (await self.all_counters()).statistics
        return {key: total[key] for key in own}


def app_state(request: Request) -> AppState:
    """The state, as a dependency of routes."""
    state: AppState = request.app.state.panther
    return state

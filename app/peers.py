"""Workers of one server talk to one another, so that figures are whole and model control reaches all of them.

Each worker listens on a Unix socket in a folder that the parent made; whoever is asked for statistics asks the others.
Nothing is shared while requests are answered. What a worker has told of its figures lies in a file beside its socket,
and counts on when it has died or does not answer: a counter that was shown once never falls.
"""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
STATISTICS_TIMEOUT_S = 2.0
CONTROL_TIMEOUT_S = 600.0
_MAX_LINE = 64 * 1024 * 1024
_NOTE = "asked-"


class Peers:
    """The other workers, reached through a folder of sockets.

    Args:
        folder: made by the parent, and only its user's.
        answer: answers one message of another worker.
    """

    def __init__(self, folder: Path, answer: Answer) -> None:
        self._folder = folder
        self._answer = answer
        # More than the process id, which the kernel gives again.
        self._own = folder / f"{os.getpid()}-{os.urandom(4).hex()}.sock"
        self._server: asyncio.Server | None = None
        self._all_loaded = False

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._serve, self._own, limit=_MAX_LINE)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(OSError):
            self._own.unlink()

    async def ask_all(self, message: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """The answers of all other workers that are there; one that doesn't answer is left out, and logged."""
        return list((await self._ask_each(message, timeout_s)).values())

    async def figures(self, own: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The figures of all workers there have been.

        Args:
            own: of this worker.

        Returns:
            Those of the others that answered, and the last ones told by those that did not or are no more.
        """
        self.remember(own)
        answers = await self._ask_each({"ask": "figures"}, STATISTICS_TIMEOUT_S)
        present = {self._own.stem, *answers}
        past = []
        for path in self._folder.glob("*.json"):
            if path.stem not in present:
                try:
                    past.append(json.loads(path.read_text()))
                except (OSError, ValueError) as error:
                    log.warning("the figures of worker %s can't be read: %r", path.stem, error)
        return list(answers.values()), past

    def remember(self, figures: dict[str, Any]) -> None:
        """Keep what is told of this worker for the time after it."""
        path = self._own.with_suffix(".json")
        fresh = path.with_suffix(".tmp")
        try:
            fresh.write_text(json.dumps(figures))
            fresh.rename(path)
        except OSError as error:
            log.warning("the figures of this worker can't be kept: %s", error)

    async def _ask_each(self, message: dict[str, Any], timeout_s: float) -> dict[str, dict[str, Any]]:
        others = [path for path in self._folder.glob("*.sock") if path != self._own]
        answers = await asyncio.gather(*(self._ask(path, message, timeout_s) for path in others))
        return {path.stem: answer for path, answer in zip(others, answers, strict=True) if answer is not None}

    def tell_loaded(self) -> None:
        """This worker's models are loaded."""
        try:
            self._own.with_suffix(".loaded").touch()
        except OSError as error:
            log.warning("the other workers can't be told that the models are loaded: %s", error)
            self._all_loaded = True

    def all_loaded(self, count: int) -> bool:
        """Whether so many workers have loaded their models; stays true from then on."""
        self._all_loaded = self._all_loaded or len(list(self._folder.glob("*.loaded"))) >= count
        return self._all_loaded

    def notes(self) -> dict[str, dict[str, Any]]:
        """What was last asked for each model: a worker that starts later must do so too."""
        found = {}
        for path in self._folder.glob(f"{_NOTE}*"):
            try:
                found[path.name.removeprefix(_NOTE)] = json.loads(path.read_text())
            except (OSError, ValueError) as error:
                log.warning("what was asked for a model can't be read: %s", error)
        return found

    def note(self, name: str, word: dict[str, Any]) -> None:
        """Remember for later workers what was asked for a model."""
        path = self._folder / f"{_NOTE}{name}"
        fresh = self._folder / f".{path.name}.tmp"
        try:
            fresh.write_text(json.dumps(word))
            fresh.rename(path)
        except OSError as error:
            log.error("a worker that starts later won't know what was asked for model %s: %s", name, error)

    async def _ask(self, path: Path, message: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_LINE)
                try:
                    writer.write(json.dumps(message).encode() + b"\n")
                    answer: dict[str, Any] = json.loads(await reader.readline())
                    return answer
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)  # left behind by a worker that was killed
        except (OSError, ValueError, TimeoutError) as error:
            log.warning("worker %s did not answer: %r", path.stem, error)
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(json.loads(await reader.readline()))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError) as error:
            log.warning("a message of another worker failed: %r", error)
        finally:
            writer.close()

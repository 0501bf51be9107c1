"""Decodes large request bodies in another process, so that no body blocks the event loop.

Parsers hold Python's lock for the whole body, so a thread would block the event loop too. The process starts
with the first large body and ends after a minute without one; it decodes one body at a time.
"""

import asyncio
import contextlib
import logging
import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app import errors
from app.engine.codec import Body
from app.engine.codec.model_codec import ResponseForm
from app.engine.request import InferenceRequest
from app.errors import AppError, OverloadedError
from app.service.decode_worker import Job, Refusal, Reply, read_message, write_message

log = logging.getLogger(__name__)

LIMIT_S = 60.0
"""Time limit for decoding one body; beyond it the process ends, and the request gets 503."""


class Decoder:
    """The decoding process of one server process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._turn = asyncio.Lock()

    async def read(self, job: Job, body: Body) -> tuple[InferenceRequest, ResponseForm]:
        """Decode a body. The waiting task may be cancelled; before its turn, that frees the body.

        Raises:
            AppError: The body is invalid, or cannot be decoded now.
        """
        async with self._turn:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
            # Shielded, because an interrupted message would leave the pipes out of sync.
            future = asyncio.get_running_loop().run_in_executor(self._thread, self._ask, job, body)
            del body
            try:
                reply = await asyncio.shield(future)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):
                    await future
                raise
        if isinstance(reply, Refusal):
            raise _error(reply)
        return reply

    def close(self) -> None:
        """End the process; the body that it is decoding gets 503."""
        self._kill()
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def _ask(self, job: Job, body: Body) -> Reply:
        """Let the process decode a body; runs in the thread."""
        for attempt in range(2):
            try:
                return self._exchange(self._running(), job, body)
            except (BrokenPipeError, EOFError, ValueError) as error:
                ended = self._kill()
                if attempt == 0 and ended == 0:
                    continue  # it had just ended because it was idle
                log.error("the decoding process ended (%s): %s", ended, error)
                return Refusal("OverloadedError", "this body could not be decoded; memory may be insufficient")
            except TimeoutError:
                self._kill()
                return Refusal("OverloadedError", f"decoding this body took longer than {LIMIT_S:g} s, the limit")
        raise AssertionError

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is not None and process.poll() is None:
            return process
        program = f"import sys; sys.path[:] = {sys.path!r}; from app.service.decode_worker import main; main()"
        self._process = subprocess.Popen(  # noqa: S603 - a module of this package  # nosec B603
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return self._process

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], job: Job, body: Body) -> Reply:
        if process.stdin is None or process.stdout is None:
            raise EOFError("the process has no pipes")
        write_message(process.stdin, job, body)
        del body
        end = time.monotonic() + LIMIT_S
        while not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
            if time.monotonic() >= end:
                raise TimeoutError
        text, *tensors = read_message(process.stdout)
        reply: Reply = pickle.loads(text, buffers=tensors)  # noqa: S301 - from the child process  # nosec B301
        return reply

    def _kill(self) -> int | None:
        """End the process. Return its exit status, None without one."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()
        status = process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return status


def _error(refusal: Refusal) -> AppError:
    kind: Callable[[str], AppError] = getattr(errors, refusal.kind, OverloadedError)
    return kind(refusal.message)

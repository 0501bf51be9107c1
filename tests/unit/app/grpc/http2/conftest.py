"""The transport in one event loop with its client, which speaks HTTP/2 by hand."""

import asyncio
import socket
from contextlib import asynccontextmanager

import numpy as np
import pytest
from helpers.http2_client import LIMIT_S, Http2Client

from app.application import create_app
from app.config.settings import Settings
from app.grpc.http2.transport import Http2Transport
from app.grpc.messages import ModelInferRequest
from app.grpc.services import Services
from app.service.admission import SLICE_NS

ROWS = np.array([[0.5, -1.0, 2.0, 0.25, 0.0, 1.5]], np.float32)


def infer_message(rows: np.ndarray = ROWS, model: str = "tiny") -> bytes:
    made = ModelInferRequest(model_name=model, raw_input_contents=[rows.tobytes()])
    made.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    return made.SerializeToString()


class Served:
    """A transport that listens.

    Attributes:
        state: of its application.
        services: that it serves.
        address: where it listens.
        transport: see above.
    """

    def __init__(self, state, address):
        self.state, self.address = state, address
        self.services = Services(state)
        self.transport = Http2Transport(self.services)

    @property
    def context(self):
        return self.transport._context

    @asynccontextmanager
    async def client(self, **options):
        client = await Http2Client.connect(self.address, **options)
        try:
            yield client
        finally:
            client.close()

    async def until(self, condition):
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0.005)

    def left(self):
        """What must be nothing once all clients have left: connections, calls, calls of the service, reserved bytes."""
        admission = self.state.service.admission
        calls = self.services.inference.calls
        return self.context.connections, self.context.calls, len(calls), admission.reserved_bytes

    def hold_back(self):
        """Keep messages from being decoded, as where the event loop has too much to do."""
        admission = self.state.service.admission
        admission._slice_ns = 0
        admission.may_start()
        admission._scheduled = True

    def let_go(self):
        """Decode what was held back."""
        admission = self.state.service.admission
        admission._slice_ns = SLICE_NS
        admission._next_turn()


@pytest.fixture
def message():
    return infer_message()


@pytest.fixture
def serve(tiny_dir):
    """Run a test against a transport; checks that nothing of it is left."""

    def run(test, **settings):
        async def served():
            state = create_app(Settings(model_dir=tiny_dir, device="cpu", trial_load_s=0, **settings)).state.panther
            await state.control.load_all()
            state.repository.started()
            with socket.create_server(("127.0.0.1", 0)) as sock:
                address = f"127.0.0.1:{sock.getsockname()[1]}"
            made = Served(state, address)
            await made.transport.start(address)
            try:
                found = await test(made)
                await made.until(lambda: made.left() == (0, 0, 0, 0) and not made.transport.connections)
                return found
            finally:
                state.drain()
                await made.transport.stop(1.0)
                for each in state.repository.servings():
                    each.batcher.close()

        return asyncio.run(served())

    return run

"""A CUDA runtime simulated on the host, which keeps device memory in host memory."""

import ctypes
import time
import weakref

import onnxruntime as ort

from app.runtime.cuda.cudart import Copy, CudaError
from app.runtime.placement import RECORD
from app.runtime.tensors import tensor_spec


class HostRuntime:
    """Simulated CUDA runtime: a graph is the recorded work, and a launch executes it."""

    def __init__(self):
        self.memory = {}
        self.graphs = {}
        self.executables = {}
        self.made = 0
        self.events = 0
        self.launched = 0
        self.refuse = None
        self.foreign = []
        self.callbacks = 0
        self.empty = False
        self.recording = None
        self.streams = 0
        self.lost = None
        self.several = False
        self.devices = []
        self.copies = []
        self.bodies = None

    def set_device(self, device_id):
        self.several = self.several or device_id > 0
        self.devices.append(device_id)

    def make_stream(self):
        self.streams += 1
        return self.streams

    def device_memory(self, size):
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    pinned_memory = device_memory

    def make_event(self):
        self.events += 1
        return self.events

    def record(self, event, stream):
        pass

    def elapsed_ns(self, start, end):
        return 1000

    def check_device(self, stream):
        pass

    def free(self, device=(), pinned=(), graphs=(), events=()):
        for address in (*device, *pinned):
            del self.memory[address]
        self.events -= len(events)
        for graph in graphs:
            del self.executables[graph]

    def copy(self, target, source, size, kind, stream):
        self.copies.append(source)
        if self.recording is not None:
            self.recording.append(Copy(source, target, kind))
        ctypes.memmove(target, source, size)

    def synchronize(self, stream):
        pass

    def launch(self, graph, stream):
        self.launched += 1
        method, arguments = self.executables[graph]
        method()(*arguments)

    def capture(self, stream, work):
        if self.refuse:
            raise CudaError(self.refuse)
        self.recording = []
        work()
        number = self.made = self.made + 1
        # A recorded graph has no reference to its recorder.
        self.graphs[number] = (weakref.WeakMethod(work.func), work.args), self.recording
        self.recording = None
        return number

    def host_work(self, graph):
        copies = self.graphs[graph][1] + self.foreign
        return copies, self.callbacks, len(copies) + (0 if self.empty else 3)

    def instantiate(self, graph):
        number = 1000 + graph
        self.executables[number] = self.graphs[graph][0]
        return number

    def destroy(self, graph):
        del self.graphs[graph]


def taken(bodies, length):
    """A body in pinned memory, which a thread allocates after the first one that finds none."""
    end = time.monotonic() + 60
    while (body := bodies.take(length)) is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    return body


def open_model(model):
    options = ort.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return (
        session,
        [tensor_spec(node) for node in session.get_inputs()],
        [tensor_spec(node) for node in session.get_outputs()],
    )

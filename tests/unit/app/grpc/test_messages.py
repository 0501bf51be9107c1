"""The messages are those of the public client, and are read strictly."""

import os
import subprocess
import sys

import pytest
from helpers.grpc_client import pb

from app.errors import InvalidRequestError
from app.grpc.messages import ModelInferRequest, message_class, methods, parse

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def fields(descriptor):
    return {field.number: (field.name, field.type, field.is_repeated) for field in descriptor.fields}


def test_methods_are_those_of_the_public_client():
    described = methods()
    assert set(described) >= set(SERVICE.methods_by_name)
    for name, theirs in SERVICE.methods_by_name.items():
        for ours, wanted in (
            (described[name].input_type, theirs.input_type),
            (described[name].output_type, theirs.output_type),
        ):
            assert ours.full_name == wanted.full_name
            known = fields(ours)
            assert {number: known[number] for number in fields(wanted)} == fields(wanted)


def test_a_message_of_the_public_client_is_read():
    theirs = pb.ModelInferRequest(model_name="m", id="1", raw_input_contents=[b"ab"])
    theirs.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    ours = parse(ModelInferRequest, theirs.SerializeToString())
    assert ours.SerializeToString() == theirs.SerializeToString()
    assert type(ours) is not type(theirs)  # of a pool of its own


def test_what_is_no_message_is_refused():
    with pytest.raises(
        InvalidRequestError, match="the 2 bytes of the request are not a valid protobuf message ModelInf"
    ):
        parse(ModelInferRequest, b"\xff\xff")


READ_BROKEN = """
from google.protobuf.internal import api_implementation
from app.errors import InvalidRequestError
from app.grpc.messages import ModelInferRequest, parse

for broken in (b"\\xff\\xff", b"\\x0a\\x02\\xff\\xff", b"\\x0a\\x05m", b"\\x2a\\x03\\x0a\\x01\\xff"):
    try:
        parse(ModelInferRequest, memoryview(broken))
    except InvalidRequestError:
        continue
    raise SystemExit(f"{broken} was read")
print(api_implementation.Type())
"""


@pytest.mark.parametrize("implementation", ["python", "upb"])
def test_every_implementation_of_protobuf_refuses_what_is_no_message(implementation):
    """Among that are strings that are not UTF-8, for which the one in Python has its own error."""
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    command = [sys.executable, "-c", READ_BROKEN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, implementation), done.stderr


def test_an_unknown_message_has_no_class():
    with pytest.raises(KeyError, match="Nothing"):
        message_class("Nothing")

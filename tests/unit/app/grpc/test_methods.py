"""Methods need the keys of the same requests over HTTP, and their messages are those of the service."""

import pytest

from app.grpc.messages import methods
from app.grpc.methods import served_methods
from app.service.access import Access, Keys

OPEN = {"ServerLive", "ServerReady"}
CONTROL = {"RepositoryModelLoad", "RepositoryModelUnload"}


@pytest.mark.parametrize("name", served_methods())
def test_keys(name):
    access = Access(Keys("predict_keys", "p" * 16, None), Keys("control_keys", "c" * 16, None))
    need = "none" if name in OPEN else "control" if name in CONTROL else "predict"
    assert access.needed(*served_methods()[name].same_as) == need


def test_the_paths_are_those_of_http():
    from fastapi.routing import APIRoute

    from app.http.routes.oip import router

    there = {(verb, route.path) for route in router.routes if isinstance(route, APIRoute) for verb in route.methods}
    for method in served_methods().values():
        verb, path = method.same_as
        assert (verb, path.replace("NAME", "{name}")) in there


def test_messages_are_those_of_the_service():
    described = methods()
    for name, method in served_methods().items():
        assert method.request.DESCRIPTOR.name == described[name].input_type.name
        assert method.response.DESCRIPTOR.name == described[name].output_type.name

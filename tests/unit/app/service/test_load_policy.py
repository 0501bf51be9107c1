import json

import pytest

from app.errors import InvalidRequestError
from app.repository.placement import PlacementSettings
from app.service.load_policy import LoadRequest, load_request


def read(config):
    return load_request({"parameters": {"config": config if isinstance(config, str) else json.dumps(config)}})


def test_the_version_policy_is_applied_and_the_rest_named():
    assert load_request({}) == load_request({"parameters": None}) == LoadRequest()
    assert read({"version_policy": {"latest": {"num_versions": 1}}}) == LoadRequest("latest")
    assert read({"version_policy": {"all": {}}, "name": "m"}) == LoadRequest("all")
    # as model_analyzer sends it
    whole = {
        "name": "m",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 8,
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        "dynamic_batching": {},
        "version_policy": {"specific": {"versions": [2]}},
    }
    found = read(whole)
    assert (found.policy, found.ignored) == ("2", ("platform", "max_batch_size", "dynamic_batching"))
    assert found.placement == PlacementSettings(devices=("cpu",), instances=2)
    assert found.warning == (
        "these members of 'config' have no effect; set them in panther.toml: platform, max_batch_size, dynamic_batching"
    )
    assert read({"max_batch_size": 8}).policy is None
    assert LoadRequest("2").warning is None
    assert read({"instance_group": [{"kind": "KIND_MODEL"}]}).warning.endswith(": instance_group.kind KIND_MODEL")


@pytest.mark.parametrize("config", ["", "[]", "3", '"a"', {"version_policy": {}}, {"version_policy": 3}, "{" * 100_000])
def test_what_is_no_configuration_is_refused(config):
    with pytest.raises(InvalidRequestError, match="parameter 'config' must be JSON such as"):
        read(config)


def test_other_parameters_are_refused():
    with pytest.raises(InvalidRequestError, match="the only parameter of load is 'config'"):
        load_request({"parameters": {"file:1/model.onnx": "AAAA"}})

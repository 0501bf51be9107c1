"""Triton's ``instance_group`` as a placement."""

import pytest

from app.errors import InvalidRequestError
from app.repository.placement import PlacementSettings
from app.service.instance_groups import read_groups


@pytest.mark.parametrize(
    ("groups", "devices", "instances"),
    [
        ([{"count": 2}], None, 2),
        ([{"kind": "KIND_AUTO", "count": 0}], None, 1),
        ([{"kind": "KIND_CPU", "count": 2}], ("cpu",), 2),
        ([{"kind": "KIND_GPU"}], "all", 1),
        ([{"kind": "KIND_GPU", "count": 2, "gpus": [0, 1], "name": "m_0"}], (0, 1), 2),
        ([{"gpus": [1]}], (1,), 1),
        ([{"kind": "KIND_GPU", "gpus": [0]}, {"kind": "KIND_GPU", "count": 2, "gpus": [1]}], (0, 1, 1), 1),
        ([{"kind": "KIND_CPU"}, {"kind": "KIND_GPU", "gpus": [3]}], ("cpu", 3), 1),
    ],
)
def test_groups_are_devices_and_instances(groups, devices, instances):
    assert read_groups(groups) == (PlacementSettings(devices=devices, instances=instances), ())


def test_what_has_no_effect_is_named():
    group = {"kind": "KIND_CPU", "passive": True, "rate_limiter": {}, "host_policy": "a"}
    placement, ignored = read_groups([group, {"kind": "KIND_MODEL"}, {"count": 2}])
    assert placement == PlacementSettings(devices=("cpu",))
    assert ignored == (
        "instance_group without devices, beside other groups",
        "instance_group.host_policy",
        "instance_group.kind KIND_MODEL",
        "instance_group.passive",
        "instance_group.rate_limiter",
    )
    assert read_groups([]) == (None, ())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "must be a list of objects"),
        ([3], "must be a list of objects"),
        ([{"kind": "KIND_TPU"}], "kind is 'KIND_TPU'; expected KIND_AUTO, KIND_GPU, KIND_CPU"),
        ([{"count": -1}], "count is -1; expected a whole number from 1 to 64"),
        ([{"count": 65}], "count is 65; expected"),
        ([{"count": True}], "count is True; expected"),
        ([{"gpus": [-1]}], r"gpus is \[-1\]; expected a list of device numbers"),
        ([{"gpus": "0"}], "gpus is '0'; expected"),
        ([{"kind": "KIND_CPU", "count": 40}, {"gpus": [0], "count": 40}], "must be .* a list of at most 64 of"),
    ],
)
def test_a_wrong_value_is_refused_with_its_rule(groups, message):
    with pytest.raises(InvalidRequestError, match=message):
        read_groups(groups)

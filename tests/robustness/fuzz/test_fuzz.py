"""A small, repeatable part of ``make fuzz``: seeds, what was found before, and some thousand changes of each."""

import gzip
import json
import random

import fuzz_inputs
import fuzz_models
import fuzz_targets
import pytest

QUICK = {"plain_json": 4000, "protocol": 4000, "npy": 1500, "octets": 2000, "encoded": 2000, "card": 600}
QUICK |= {"csv": 3000, "protobuf": 4000, "checkpoint": 400}


@pytest.mark.parametrize("name", fuzz_targets.TARGETS)
def test_seeds_and_changes_of_them(name):
    """Accepted inputs are changed further, so that not all are refused at their first byte."""
    rng = random.Random(0)
    pool = fuzz_inputs.seeds(name)
    run = fuzz_targets.TARGETS[name].run
    accepted = sum(run(seed) for seed in pool)
    assert accepted
    for _ in range(QUICK[name]):
        data = fuzz_inputs.change(rng.choice(pool), rng, fuzz_inputs.KEPT[name])
        if run(data):
            pool.append(data)
    assert len(pool) > QUICK[name] // 100


def places(value, path=()):
    """Where something stands in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*path, key)
        yield from places(part, (*path, key))


MISSING = object()
VALUES = [None, True, 0, 1, -1, 1.0, 1.5, "", "a", "1.0", [], {}, [1], ["a"], [None], {"a": 1}, 2**53 - 1, 1e300]
VALUES += [MISSING]


def test_every_field_of_a_card_with_every_kind_of_value():
    """Taken where the schema takes it, else refused with a message; never anything else."""
    card = json.loads(fuzz_inputs.seeds("card")[1])
    taken = 0
    for place in places(card):
        for value in VALUES:
            changed = json.loads(json.dumps(card))
            at = changed
            for key in place[:-1]:
                at = at[key]
            if value is MISSING:
                del at[place[-1]]
            else:
                at[place[-1]] = value
            taken += fuzz_targets.card(json.dumps(changed).encode())
    assert taken > 100


def head(document, tail=b"", which=0):
    text = json.dumps(document).encode()
    return bytes([which, 1]) + len(text).to_bytes(2, "little") + text + tail


def item(shape, datatype="FP32", **more):
    return {"name": "x", "shape": shape, "datatype": datatype, **more}


FP32, FREE, BF16, SCALAR, TEXTS, TEXT_PAIRS, THREE = 0, 1, 10, 11, 7, 6, 13
ROW = json.dumps({"inputs": [item([1, 3], data=[1, 2, 3])]}).encode()
FOUND = {
    "a list for a number": ("plain_json", bytes([SCALAR]) + b'{"inputs": [1]}', False),
    "a number for a number": ("plain_json", bytes([SCALAR]) + b'{"inputs": {"x": 1.5}}', True),
    "a byte order mark": ("plain_json", bytes([FREE]) + b'\xef\xbb\xbf{"inputs": [[5]]}', False),
    "a number beyond doubles that a second key hides": (
        "plain_json",
        bytes([FREE]) + b'{"inputs": [[[1e999]]], "inputs": [[5]]}',
        False,
    ),
    "a number that rounds to infinity": ("plain_json", bytes([BF16]) + b'{"inputs": [[3.3999e38, 1]]}', False),
    "the largest brain float": ("plain_json", bytes([BF16]) + b'{"inputs": [[3.3895e38, 1]]}', True),
    "a shape beyond memory, without elements": (
        "protocol",
        bytes([THREE, 0, 0, 0]) + json.dumps({"inputs": [item([0, 1, 2**62], "UINT64", data=[])]}).encode(),
        False,
    ),
    "texts beyond memory": (
        "protocol",
        head({"inputs": [item([2**40, 2], "BYTES", parameters={"binary_data_size": 4})]}, bytes(4), TEXT_PAIRS),
        False,
    ),
    "one text for two": ("protocol", bytes([TEXT_PAIRS, 1, 0, 0]) + b"text", False),
    "one text for one": ("protocol", bytes([TEXTS, 1, 0, 0]) + b"text", True),
    "inputs twice": (
        "protocol",
        bytes([FP32, 0, 0, 0]) + json.dumps({"inputs": [item([1, 3], data=[1, 2, 3])]})[:-1].encode() + b',"inputs":5}',
        False,
    ),
    "an id twice": (
        "protocol",
        bytes([FP32, 0, 0, 0]) + b'{"id":"a","id":7,' + ROW[1:],
        False,
    ),
    "two members of gzip": ("encoded", b"\0" + gzip.compress(b"one") + gzip.compress(b"two"), True),
    "bytes after gzip": ("encoded", b"\0" + gzip.compress(b"one") + b"more", False),
    "a member of gzip that is cut": ("encoded", b"\0" + gzip.compress(b"one") + gzip.compress(b"two")[:-3], False),
    "a card that nests": ("card", b'{"a":' * 100_000, False),
}  # fmt: skip


@pytest.mark.parametrize(("target", "data", "accepted"), FOUND.values(), ids=FOUND)
def test_what_was_found_before(target, data, accepted):
    assert fuzz_targets.TARGETS[target].run(data) == accepted


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }", b""),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }", b""),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }", bytes(13)),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1, 3), }", bytes(24)),
        ("{'descr': '|V0', 'fortran_order': False, 'shape': (1, 3), }", b""),
        ("-" * 3000 + "1", b""),
        ("(" * 150 + ")" * 150, b""),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3)L, }", bytes(12)),
        ("'", b""),
    ],
)
def test_npy_headers_that_lie(header, body):
    text = header.encode() + b"\n"
    data = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + body
    assert not fuzz_targets.npy(bytes([FP32]) + data)


def test_npy_scalars_keep_their_shape():
    from app.engine.codec.arrays import from_npy

    data = (
        b"\x93NUMPY\1\0\x3e\0" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (), }".ljust(61) + b"\n" + bytes(4)
    )
    assert from_npy(fuzz_targets.MODELS[SCALAR], data)["x"].shape == ()


def test_the_oracles_can_refuse():
    """An oracle that agreed with anything would find nothing."""
    target = fuzz_targets.TARGETS["plain_json"].run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.engine.codec.values._require", lambda *_: None)
        with pytest.raises(fuzz_targets.Finding, match="accepted, the oracle says otherwise"):
            target(bytes([FP32]) + b'{"inputs": [[true, 1, 2]]}')


def test_some_mutated_models():
    """In processes of their own: whatever they do there, the answer is a message."""
    from app.errors import LoadError
    from app.repository.trial_load import Trial, Trials

    rng = random.Random(0)
    files, trials, refused = fuzz_models.seeds(), Trials(), []
    try:
        for name, content in files:
            path = f"/dev/shm/panther-fuzz-{name}.onnx"
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(content)
            trials.run(Trial(name, "1", path, 1, 8, 20.0))
            for _ in range(6):
                with open(path, "wb") as file:  # noqa: PTH123
                    file.write(fuzz_models.change(content, rng))
                try:
                    trials.run(Trial(name, "1", path, 1, 8, 20.0))
                except LoadError as error:
                    refused.append(str(error))
    finally:
        trials.close()
    assert refused
    assert not [text for text in refused if "can't be tried" in text]

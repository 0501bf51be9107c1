"""Families of architectures, each through conversion, export, onnxruntime at another batch and length, and the server.

Each model is an untrained one of a layer or two, described in benchmarks/architectures/; one server has all the models.
A family whose library is missing is skipped by name. Of families with nearly the same graph one is run here; the
benchmark runs all.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import logging
import warnings

import pytest
from architectures.examine import ask, examine
from architectures.families import FAMILIES
from architectures.packages import missing
from helpers.processes import ROOT, Server

ASKED = {}
CHOSEN = [family for family in FAMILIES if family.like is None]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def no_warnings_of_libraries():
    """Those of transformers and torch about one another are not ours."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("family", CHOSEN, ids=lambda family: family.name)
def test_a_family_is_converted_exported_and_run(family, repository):
    lack = missing(family.package)
    if lack is not None:
        pytest.skip(f"{family.name}: {lack}")
    result, asked = examine(family, repository)
    if family.refused is not None:
        assert result.status == "refused"
        return
    assert result.status == ("works" if family.stays_dense is None else "stays dense")
    assert result.parity < 1e-4
    assert result.other_shape < 1e-4
    assert "batch" in result.varies
    # tiny models: the graph is a good part of the file, so only a weight that is stored twice shows
    assert result.file_bytes < 1.2 * result.dense_bytes + 2**15
    ASKED[family.name] = asked


def test_one_server_answers_for_all_of_them(repository, tmp_path):
    server = Server(repository, tmp_path, 1, (), {})
    try:
        server.wait_until_ready()
        for name, asked in ASKED.items():
            assert ask(server.url, asked) < 1e-4, name
    finally:
        server.end()


def test_there_are_forty_families_and_each_is_in_the_results():
    names = [family.name for family in FAMILIES]
    assert len(CHOSEN) >= 40
    assert len(set(names)) == len(names)
    assert {family.like for family in FAMILIES} - {None} <= {family.name for family in CHOSEN}
    recorded = json.loads((ROOT / "benchmarks" / "results" / "architectures.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in recorded["families"]] == names

"""Predictions of single layers beside what the whole model does when that layer alone is changed."""

import pytest
import torch

from panther.compression.api import _Calibrating
from panther.compression.linear import LinearOptions
from panther.compression.options import FLOAT, KINDS
from panther.compression.plan import Chooser
from panther.compression.trials import Trials
from panther.convert.layers import find_units


@pytest.fixture
def found(model, tokens):
    for parameter in model.parameters():
        parameter.requires_grad = False
    units = find_units(model, None, ())
    random = torch.Generator().manual_seed(0)
    calibrating = _Calibrating(model, tokens.split(48), None, 32, random, None, KINDS, lambda *_: None)
    calibrated = calibrating.run(units, ())
    parts = LinearOptions(model, units, (), calibrated, KINDS, lambda *_: None).parts()
    return parts, Trials(model, parts, calibrated.reference)


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_alone_costs_about_what_is_predicted(found, kind):
    parts, trials = found
    chooser = Chooser(parts, 0)
    ratios = []
    for number, part in enumerate(parts):
        for index in part.only([kind])[1:]:
            option = part.options[index]
            if not 1e-6 < option.error < 0.05:
                continue
            chosen = [0] * len(parts)
            chosen[number] = index
            measured = trials.run(chooser.plan(chosen)).deviation.error
            ratios.append(measured / option.error**0.5)
    assert len(ratios) >= 3
    assert min(ratios) > 0.35
    assert max(ratios) < 1.7


def test_every_layer_has_options_of_every_kind(found):
    parts, _ = found
    assert parts[0].options[0].kind == FLOAT
    assert {option.kind for option in parts[2].options} == {FLOAT, *KINDS}
    for part in parts:
        low_rank = [option for option in part.options if option.kind == "low_rank"]
        assert [option.bytes for option in low_rank] == sorted(option.bytes for option in low_rank)
        assert [option.error for option in low_rank] == sorted((option.error for option in low_rank), reverse=True)

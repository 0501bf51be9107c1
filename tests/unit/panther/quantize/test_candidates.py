"""Where smoothing is dropped: what it may cost, and what goes first."""

from types import SimpleNamespace

import pytest
import torch

from panther.quantize.candidates import Candidate, cheaper
from panther.quantize.smoothing import Activation


def candidate(plain, smoothed, d_in=8):
    """A candidate of one layer: its errors without and with smoothing."""
    choices = [
        Activation(0.0, None, 1.0, 0, (plain,)),
        Activation(0.5, torch.ones(d_in, dtype=torch.float64), 1.0, 0, (smoothed,)),
    ]
    return Candidate([SimpleNamespace(in_features=d_in)], None, choices)


def alphas(candidates):
    return [choice.alpha for choice in cheaper(candidates, [each.choices[1] for each in candidates])]


def test_total_error_grows_by_five_percent_at_most():
    # of an error of 4, 0.2 may be added: 0.05 + 0.06 + 0.07, not 0.08 as well
    candidates = [candidate(1 + added, 1.0) for added in (0.08, 0.06, 0.05, 0.07)]
    assert alphas(candidates) == [0.5, 0.0, 0.0, 0.0]


def test_wider_inputs_go_first():
    assert alphas([candidate(1.06, 1.0), candidate(1.08, 1.0, d_in=32)]) == [0.5, 0.0]


def test_no_smoothing_that_is_better_is_taken_and_gains_nothing():
    assert alphas([candidate(0.5, 1.0), candidate(1.11, 1.0)]) == [0.0, 0.5]


@pytest.mark.parametrize("tried", [(0.0,), (0.5,)])
def test_one_alpha_stays(tried):
    each = candidate(1.0, 1.0)
    each.choices = [choice for choice in each.choices if choice.alpha in tried]
    assert [choice.alpha for choice in cheaper([each], each.choices)] == list(tried)

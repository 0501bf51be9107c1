"""The tutorial's own code runs on this library: every block, in order, in one namespace, nothing changed.

In that order no block has forgotten an import that an earlier one has not made.
"""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from panther.counting import check_parameter_efficiency

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.rst"


def code_blocks(text: str) -> list[str]:
    """The bodies of ``.. code-block:: python``, dedented."""
    pattern = re.compile(r"^\.\. code-block:: python\n\n((?:[ \t]+.*\n|[ \t]*\n)+)", re.MULTILINE)
    return [textwrap.dedent(body.expandtabs()) for body in pattern.findall(text)]


@pytest.fixture(scope="module")
def tutorial():
    """The namespace after all blocks, and what each printed."""
    namespace: dict[str, object] = {"__name__": "tutorial"}
    printed = []
    with torch.random.fork_rng(), warnings.catch_warnings():
        # the tutorial builds layers that are larger than dense
        warnings.filterwarnings("ignore", message="SKLinear.* stores ", category=UserWarning)
        torch.manual_seed(0)
        for i, block in enumerate(code_blocks(TUTORIAL.read_text(encoding="utf-8"))):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, f"tutorial block {i}", "exec"), namespace)
            printed.append(out.getvalue())
    return namespace, printed


def test_every_block_runs(tutorial):
    _, printed = tutorial
    assert len(printed) == TUTORIAL.read_text(encoding="utf-8").count("code-block:: python") == 13


def test_the_reduction_is_what_the_tutorial_says(tutorial):
    _, printed = tutorial
    assert "Standard layer parameters: 16,781,312" in printed[0]
    # the tutorial prints 4,194,304, having lost the bias of 4,096
    assert "Sketched layer parameters: 4,198,400" in printed[0]
    assert "Memory reduction: 75.0%" in printed[0]


def test_its_numbers_are_those_of_the_library(tutorial):
    namespace, _ = tutorial
    for sizes in ((1024, 512, 2, 32), (1024, 512, 2, 64), (1024, 1024, 8, 64), (784, 512, 2, 64)):
        assert namespace["check_parameter_efficiency"](*sizes) == check_parameter_efficiency(*sizes)


def test_its_training_starts_near_chance_and_learns(tutorial):
    namespace, printed = tutorial
    training = next(text for text in printed if "Training sketched model" in text)
    assert training.count("Epoch") == 10
    first, *_, last = namespace["sketched_losses"]
    # ln 10 = 2.303; the public package starts at 11.1
    assert 2.1 < first < 2.5
    assert last < 1.0
    assert namespace["sketched_acc"] > 0.9


def test_its_initialisation_starts_at_ln_10(tutorial):
    namespace, _ = tutorial
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = namespace["SketchedNet"]()
        loss = torch.nn.functional.cross_entropy(model(torch.randn(1000, 784)), torch.randint(0, 10, (1000,)))
    assert abs(loss.item() - 2.3026) < 0.1


def test_its_growing_layer_grows_and_its_conditional_layer_chooses(tutorial):
    namespace, _ = tutorial
    growing = namespace["ProgressiveSketchedLayer"](512, 512, initial_terms=1, initial_rank=8, max_terms=2, max_rank=16)
    assert growing.increase_complexity()
    assert not growing.increase_complexity()
    assert growing(torch.randn(3, 512)).shape == (3, 512)
    with pytest.warns(UserWarning, match=r"stores 1,048,576 weights.*stores 262,144"):
        conditional = namespace["ConditionalSketchedLayer"](512, 512, sketch_threshold=4)
    x = torch.randn(4, 512)
    assert torch.equal(conditional(x), conditional.sketched_layer(x))
    assert torch.equal(conditional(x[:3]), conditional.standard_layer(x[:3]))


def test_its_analysis_prints_the_counts(tutorial):
    _, printed = tutorial
    analysis = next(text for text in printed if "S1s parameters" in text)
    assert "S1s parameters: 147,456\nS2s parameters: 73,728\n" in analysis
    assert "Total learnable: 221,696" in analysis

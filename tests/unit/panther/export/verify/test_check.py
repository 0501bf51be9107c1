import numpy as np
import pytest
import torch
from torch import nn

from panther.export import ExportError, pipeline
from panther.export.verify.check import _compare, check_inputs, random_like


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def wrong(monkeypatch):
    """Make the exporter write a file whose first constants are off by a factor."""

    def break_by(factor):
        lower = pipeline.lower

        def lowered(graph, sites, plans, **options):
            for site in sites:
                site.bias = site.bias * factor
            lower(graph, sites, plans, **options)

        monkeypatch.setattr(pipeline, "lower", lowered)

    return break_by


def test_a_file_that_computes_something_else_is_never_published(mlp, export, wrong, tmp_path):
    x = torch.randn(4, 64)
    export(mlp, x)
    before = files_of(tmp_path)
    wrong(1.1)
    with pytest.raises(
        ExportError, match=r"output 'output' differs from torch by 0\.\d+ .* tolerance is 0\.0001; noth"
    ):
        export(mlp, x)
    with pytest.raises(ExportError, match="differs from torch"):
        export(mlp, x, name="other")
    assert files_of(tmp_path) == before
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["1", "m", "models"]


def test_the_tolerance_is_the_callers(mlp, export, wrong):
    wrong(1 + 1e-3)
    with pytest.raises(ExportError, match="differs from torch"):
        export(mlp, torch.randn(4, 64))
    check = export(mlp, torch.randn(4, 64), tolerance=0.1).card.check
    assert 1e-5 < check.max_relative_error < 0.1
    assert check.tolerance == 0.1


def test_every_output_has_its_errors(sketched, export):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = sketched(64, 32)

        def forward(self, x):
            return self.a(x), 1000 * self.a(x)

    check = export(Two(), torch.randn(4, 64)).card.check
    assert [entry.name for entry in check.outputs] == ["output_0", "output_1"]
    assert check.outputs[1].max_absolute_error > 100 * check.outputs[0].max_absolute_error
    assert check.max_absolute_error == check.outputs[1].max_absolute_error


class WrongAtOne(nn.Module):
    """What a tracer that fixed the batch at two or more would get wrong."""

    def __init__(self, layer):
        super().__init__()
        self.a = layer

    def forward(self, x):
        return self.a(x) + (1.0 if x.shape[0] == 1 else 0.0)


def test_a_file_that_is_wrong_for_one_row_alone_is_caught(sketched, export):
    with pytest.raises(ExportError, match=r"output 'output' differs from torch"):
        export(WrongAtOne(sketched(64, 32)), torch.randn(4, 64))


def test_what_is_compared_on():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 90, (3, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 1]])
    axes = {"ids": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}}
    sets = list(check_inputs({"ids": ids, "mask": mask}, axes, generator))
    assert [required for _, required in sets] == [True, True, False, False]
    assert [tuple(inputs["ids"].shape) for inputs, _ in sets] == [(3, 5), (3, 5), (1, 5), (3, 1)]
    assert torch.equal(sets[0][0]["ids"], ids)
    assert not torch.equal(sets[1][0]["ids"], ids)
    assert torch.equal(sets[1][0]["mask"], mask)
    for inputs, _ in sets[1:]:
        assert set(inputs["ids"].flatten().tolist()) <= set(ids.flatten().tolist())
        assert inputs["mask"].any(-1).all()


def test_random_inputs_have_the_spread_of_the_examples():
    x = 5 + 3 * torch.randn(400, 50)
    result = random_like({"x": x, "on": torch.tensor([True, False])}, torch.Generator().manual_seed(1))
    assert result["x"].mean() == pytest.approx(5, abs=0.1)
    assert result["x"].std() == pytest.approx(3, abs=0.1)
    assert result["on"].tolist() == [True, False]


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("result", "reference", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.002], [1.0, 2.0], 1e-3),
        ([-INF, 2.0], [-INF, 2.0], 0.0),
        ([NAN, 2.0], [NAN, 2.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_errors_are_relative_to_the_largest_value(result, reference, error):
    assert _compare("y", np.array(result), np.array(reference), 0.01)[1] == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize(
    ("result", "reference", "message"),
    [
        ([1.0, NAN], [1.0, 2.0], "output 'y' is not finite"),
        ([1.0, 2.0], [1.0, INF], "output 'y' is not finite"),
        ([1.0, -INF], [1.0, INF], "output 'y' is not finite"),
        (
            [1.0, 2.1],
            [1.0, 2.0],
            r"output 'y' differs from torch by 0\.05 of its largest value; the tolerance is 0\.01",
        ),
        ([1.0], [1.0, 2.0], r"output 'y' has shape \(1,\) in the file and \(2,\) in torch"),
    ],
)
def test_what_differs_is_told(result, reference, message):
    with pytest.raises(ExportError, match=message):
        _compare("y", np.array(result), np.array(reference), 0.01)

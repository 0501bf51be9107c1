import copy
import dataclasses

import pytest
import torch
from helpers.optional import Optional
from helpers.training import DyingForward, Killed
from torch import nn

import panther as pr
from panther.convert import ConversionError, Stage
from panther.nn import LowRankEmbeddingBag, SKConv2d, SKLinear

datasets = Optional("sklearn.datasets")


def error(student, teacher, x):
    with torch.no_grad():
        y = teacher(x)
        return ((student(x) - y).norm() / y.norm()).item()


@pytest.fixture(scope="module")
def digits():
    """A network trained on the digits, and (1797, 64) inputs in a random order."""
    data = datasets.load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data / 16, dtype=torch.float32)[order]
    y = torch.tensor(data.target)[order]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 192), nn.ReLU(), nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval(), x


def test_goes_by_stages_and_beats_one_conversion(digits):
    network, x = digits
    train, held_out = x[:1400], x[1400:]
    state = copy.deepcopy(network.state_dict())
    seen: list[Stage] = []
    made = pr.sketch_and_distill(
        network,
        train.split(100),
        ratio=0.26,
        calibration=train[:24],
        steps=100,
        patience=20,
        progress=False,
        on_stage=seen.append,
    )
    assert tuple(seen) == made.stages
    assert [stage.ratio for stage in made.stages] == [0.75, 0.5, 0.26]
    assert [stage.distillation.steps for stage in made.stages[:2]] == [40, 40]
    assert made.report is made.stages[-1].report
    assert made.report.after.stored <= 0.26 * made.report.before.stored
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    plain = copy.deepcopy(network)
    pr.sketch_(plain, ratio=0.26, calibration=train[:24])
    assert error(made.model, network, held_out) < 0.97 * error(plain, network, held_out)
    assert str(made).count("→") == 2 * 3 + 1


def test_the_stages_can_be_chosen(mlp, inputs):
    made = pr.sketch_and_distill(mlp, [inputs], ratio=0.6, stages=(), steps=2, progress=False)
    assert [stage.ratio for stage in made.stages] == [0.6]
    made = pr.sketch_and_distill(mlp, [inputs], ratio=0.8, steps=2, progress=False)
    assert [stage.ratio for stage in made.stages] == [0.8]


def test_convolutions_and_layers_that_were_sketched_before(inputs):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(),
        SKLinear(512, 32, 1, 8), nn.ReLU(), nn.Linear(32, 32),
    )  # fmt: skip
    x = torch.randn(64, 3, 6, 6)
    made = pr.sketch_and_distill(net, x.split(16), ratio=0.5, stages=(0.7,), steps=3, progress=False)
    assert isinstance(made.model[2], SKConv2d)
    assert (made.model[4].num_terms, made.model[4].low_rank) == (1, 8)
    assert error(made.model, net, x) < 1


def test_attention_keeps_its_layers(inputs):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(64, 8)).eval()
    x = torch.randn(32, 5, 64)
    made = pr.sketch_and_distill(net, x.split(8), ratio=0.55, stages=(0.75,), steps=3, progress=False)
    assert sum(isinstance(module, SKLinear) for module in made.model.modules()) >= 4
    assert made.report.after.stored <= 0.55 * made.report.before.stored
    assert error(made.model, net, x) < 1


def test_bags_of_embeddings():
    torch.manual_seed(0)
    net = nn.Sequential(nn.EmbeddingBag(200, 32, mode="sum"), nn.Linear(32, 8))
    ids = torch.randint(200, (64, 5))
    made = pr.sketch_and_distill(net, ids.split(16), ratio=0.4, stages=(0.7,), steps=3, progress=False)
    assert isinstance(made.model[0], LowRankEmbeddingBag)
    assert error(made.model, net, ids) < 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"ratio": 0}, r"ratio \(0\) must be above 0"),
        ({"ratio": float("nan")}, r"ratio \(nan\)"),
        ({"ratio": 0.5, "stages": (0.5,)}, r"stages \(0.5\) must fall from at most 1 to above ratio \(0.5\)"),
        ({"ratio": 0.5, "stages": (0.6, 0.7)}, r"stages \(0.6, 0.7\) must fall"),
        ({"ratio": 0.5, "stages": (1.5,)}, r"stages \(1.5\)"),
        ({"ratio": 0.5, "steps": 0}, r"steps \(0\)"),
    ],
)
def test_refuses(mlp, inputs, arguments, match):
    with pytest.raises(ValueError, match=match):
        pr.sketch_and_distill(mlp, [inputs], progress=False, **arguments)
    with pytest.raises(ConversionError, match="inputs holds no batch"):
        pr.sketch_and_distill(mlp, [], ratio=0.5)


def test_goes_on_after_a_kill_in_a_conversion_or_a_training(mlp, inputs, tmp_path):
    batches = list(inputs.split(50))

    def distill(folder, die_at=None, **more):
        forward = DyingForward(die_at)
        options = {"ratio": 0.4, "stages": (0.6,), "steps": 40, "patience": 40, "progress": False} | more
        made = pr.sketch_and_distill(mlp, batches, forward=forward, checkpoints=tmp_path / folder, **options)
        return made, forward.calls

    whole, count = distill("whole")
    # by the calls of a model: in the training of the first stage, in what comes before the second's, and in that
    found = []
    for die_at in (90, 55, 80):
        with pytest.raises(Killed):
            distill("killed", die_at)
        found.append(sorted(path.name for path in (tmp_path / "killed").iterdir()))
    assert found == [["settings.pt", *work, "stages.pt"] for work in (["stage-1"], [], ["stage-2"])]
    seen: list[Stage] = []
    resumed, rest = distill("killed", on_stage=seen.append)
    assert rest < count
    assert [dataclasses.replace(stage.distillation, seconds=0) for stage in seen] == [
        dataclasses.replace(stage.distillation, seconds=0) for stage in whole.stages
    ]
    assert [stage.report for stage in seen] == [stage.report for stage in whole.stages]
    states = [made.model.state_dict() for made in (resumed, whole)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"settings.pt", "stages.pt"}
    with pytest.raises(ValueError, match=r"with ratios \[0\.6, 0\.4\]; this one has ratios \[0\.6, 0\.5\]"):
        distill("killed", ratio=0.5)

import pytest
import torch

from panther.convert import precision as settings
from panther.convert.precision import rounded_products


def state():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
    )


@pytest.fixture
def restored():
    """The settings as they are in a new process."""
    held = state()
    yield
    torch.set_float32_matmul_precision(held[0])
    torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision = held[1:]


@pytest.fixture(autouse=True)
def no_matrix_instructions(monkeypatch):
    monkeypatch.setattr(settings, "_has_matrix_instructions", lambda: False)


def test_a_cpu_with_matrix_instructions_keeps_its_precision(monkeypatch):
    monkeypatch.setattr(settings, "_has_matrix_instructions", lambda: True)
    held = state()
    with rounded_products(torch.device("cpu")):
        assert state() == held


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_the_setting_comes_back_as_it_was(restored, precision):
    torch.set_float32_matmul_precision(precision)
    held = state()
    inside = []

    def fail():
        with rounded_products(torch.device("cpu")):
            inside.append(torch.get_float32_matmul_precision())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == ["medium"]
    assert state() == held


def test_a_setting_by_backend_is_left(restored):
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    with rounded_products(torch.device("cpu")):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_other_devices_keep_theirs():
    held = state()
    with rounded_products(torch.device("cuda")):
        assert state() == held

import pytest

from panther.compression.budget import Budget


def test_it_says_what_it_is():
    assert str(Budget(max_bytes=2000)) == "at most 2,000 bytes"
    assert str(Budget(max_error=0.1)) == "error of the outputs at most 0.1"
    assert str(Budget(speedup=1.5)) == "at least 1.5 times as fast"
    assert str(Budget(metric=len, at_least=0.9)) == "metric at least 0.9"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "given: none"),
        ({"max_bytes": 3, "speedup": 2.0}, "given: max_bytes, speedup"),
        ({"metric": len}, "metric and at_least go together"),
        ({"max_error": 0.1, "at_least": 0.9}, "metric and at_least go together"),
        ({"max_bytes": 0}, r"max_bytes \(0\) must be at least 1"),
        ({"max_error": 0.0}, r"max_error \(0.0\) must be positive and finite"),
        ({"max_error": float("nan")}, r"max_error \(nan\) must be positive and finite"),
        ({"speedup": 1.0}, r"speedup \(1.0\) must be above 1"),
        ({"metric": 3, "at_least": 0.9}, r"metric \(3\) must be a function"),
        ({"metric": len, "at_least": float("inf")}, r"at_least \(inf\) must be finite"),
    ],
)
def test_what_is_wrong_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        Budget(**given)

"""Writes app/http/dashboard/samples/digits.json: real held-out digits for the dashboard's "Try it" form.

usage: python scripts/digit_samples.py

They are the first two of each class among the rows that 'panther train' holds out, in scikit-learn's format: 8x8 counts
from 0 to 16, one digit of base 17 each.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

from panther.train.data import TEST_FRACTION

OUTPUT = Path(__file__).parents[1] / "app" / "http" / "dashboard" / "samples" / "digits.json"
OF_EACH = 2
DIGITS = "0123456789abcdefg"


def samples() -> dict[str, object]:
    """The file's content."""
    bunch = datasets.load_digits()
    _, held_out = train_test_split(
        np.arange(len(bunch.target)), test_size=TEST_FRACTION, stratify=bunch.target, random_state=0
    )
    found: dict[int, list[str]] = defaultdict(list)
    for index in held_out:
        label = int(bunch.target[index])
        if len(found[label]) < OF_EACH:
            found[label].append("".join(DIGITS[int(count)] for count in bunch.images[index].reshape(-1)))
    return {
        "source": "UCI, Optical Recognition of Handwritten Digits, CC BY 4.0, by scikit-learn; held out of training",
        "samples": [{"label": str(label), "counts": text} for label in sorted(found) for text in found[label]],
    }


if __name__ == "__main__":
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(samples(), indent=1) + "\n")

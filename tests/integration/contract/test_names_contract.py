"""A model is exported under a name exactly where it would be served under it."""

import string

import pytest

from app.repository.versions import valid_name
from panther.export.publish.repository import check_name


def exported(name):
    try:
        check_name(name)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 255])
def test_the_length_of_a_name(length):
    assert exported("n" * length) == valid_name("n" * length) == (1 <= length <= 128)


def test_each_character_of_a_name_at_its_beginning_and_after_it():
    characters = [chr(code) for code in range(0x3000)]
    for before, more in (("", ""), ("n", "-.")):
        taken = {char for char in characters if valid_name(before + char)}
        assert {char for char in characters if exported(before + char)} == taken
        assert taken == {*string.ascii_letters, *string.digits, "_", *more}

"""Content negotiation: weighted names of Accept and Accept-Encoding."""

from collections.abc import Iterator


def preferences(header: bytes) -> Iterator[tuple[bytes, float]]:
    """The names of such a header in small letters, each with its weight; 0 says that it is not wanted."""
    for part in header.lower().split(b","):
        name, *parameters = part.split(b";")
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition(b"=")
            if key.strip() == b"q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        yield name.strip(), weight

"""Content negotiation: weighted names of Accept and Accept-Encoding."""

from collections.abc import Iterator


def preferences(header: bytes) -> Iterator[tuple[bytes, float]]:
    """The lowercase names of such a header, each with its weight; 0 excludes a name."""
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

"""Validation of the version policy, which selects the served versions of a model."""


def check_policy(value: str) -> str:
    """Check that a text is a version policy.

    Raises:
        ValueError: The text is not ``latest``, ``all`` or numbers separated by commas.
    """
    if value not in {"latest", "all"} and not all(part.strip().isdecimal() for part in value.split(",")):
        raise ValueError("must be latest, all, or version numbers separated by commas")
    return value

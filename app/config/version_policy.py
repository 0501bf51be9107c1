"""The rule for which versions of a model are served."""


def check_policy(value: str) -> str:
    """Check that a text is a version policy.

    Raises:
        ValueError: it is neither ``latest`` nor ``all`` nor numbers separated by commas.
    """
    if value not in {"latest", "all"} and not all(part.strip().isdecimal() for part in value.split(",")):
        raise ValueError("must be latest, all, or version numbers separated by commas")
    return value

"""What can go wrong in an export."""


class ExportError(Exception):
    """The model could not be exported, or the exported file did not compute what the model does."""


def first_line(error: BaseException) -> str:
    """What an error says in a line; torch adds pages of advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

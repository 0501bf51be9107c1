"""Errors of exports."""


class ExportError(Exception):
    """The model could not be exported, or the outputs of the file differ from the model's."""


def first_line(error: BaseException) -> str:
    """First line of an error message, without the advice that torch adds."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

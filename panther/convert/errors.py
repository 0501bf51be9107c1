"""What can go wrong in a conversion."""


class ConversionError(Exception):
    """The model could not be converted, and is as it was."""

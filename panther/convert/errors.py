"""Errors of conversions."""


class ConversionError(Exception):
    """The model could not be converted, and is unchanged."""

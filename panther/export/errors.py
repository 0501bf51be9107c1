"""What can go wrong in an export."""


class ExportError(Exception):
    """The model could not be exported, or the exported file did not compute what the model does."""

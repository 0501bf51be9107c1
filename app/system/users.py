"""The user that the process runs as, for messages about permissions."""

import os


def process_user() -> str:
    """The user's name, if it has one here, and number: ``user 'panther' (uid 10001)``."""
    if not hasattr(os, "geteuid"):
        return "the server's user"
    import pwd

    number = os.geteuid()
    try:
        return f"user {pwd.getpwuid(number).pw_name!r} (uid {number})"
    except KeyError:  # containers run as numbers that have no name
        return f"the user with uid {number}"

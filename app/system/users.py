"""The user of the process, for messages about permissions."""

import os


def process_user() -> str:
    """The name, if any, and number of the user: ``user 'panther' (uid 10001)``."""
    if not hasattr(os, "geteuid"):
        return "the server's user"
    import pwd

    number = os.geteuid()
    try:
        return f"user {pwd.getpwuid(number).pw_name!r} (uid {number})"
    except KeyError:  # containers run under numbers without a name
        return f"the user with uid {number}"

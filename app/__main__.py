"""``python -m app``: read the settings, serve."""

import sys
from collections.abc import Sequence

from app.errors import AppError
from app.logs import configure_logging
from app.settings import read_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve with the settings of the command line and the environment; the exit status."""
    try:
        settings = read_settings(sys.argv[1:] if arguments is None else arguments)
        configure_logging(settings.log_level, settings.log_format)
        # Imported late, so that --help and a wrong setting answer at once.
        from app.server import serve

        return serve(settings)
    except AppError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:  # Ctrl-C: stopping on request is a success
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m app``: read the settings, serve."""

import logging
import os
import sys
from collections.abc import Sequence

from app.config.settings_sources import effective, ignored_variables, read_settings
from app.errors import AppError
from app.service.access import Access, warn_of_open_doors
from app.telemetry.logs import configure_logging, log_settings, open_standard_streams, say_and_end


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve with the settings of the command line, the environment and a file; return the exit status."""
    open_standard_streams()
    try:
        # 'panther serve' runs this program under its own name.
        program = os.environ.pop("_PANTHER_PROGRAM", "python -m app")
        settings = read_settings(sys.argv[1:] if arguments is None else arguments, program=program)
        configure_logging(settings.log_level, settings.log_format)
        log_settings(effective(settings), ignored_variables())
        Access.of(settings)  # reports invalid keys before anything starts
        warn_of_open_doors(settings)
        # Imported late, so --help and errors in settings appear at once.
        from app.process.serve import serve
        from app.system.tuning import raise_file_limit

        too_few = raise_file_limit(settings.max_connections)
        if too_few is not None:
            logging.getLogger(__name__).warning("%s", too_few)
        return serve(settings)
    except AppError as error:
        say_and_end(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:  # Ctrl-C is a regular way to stop
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m panther.cli`."""

from panther.cli.commands import main

if __name__ == "__main__":
    main()

"""Print as JSON whether the rows of ONNX files are proven independent: ``python -m app.runtime.independence FILE``."""

import json
import sys
from dataclasses import asdict

from app.runtime.independence.proof import prove


def main() -> int:
    """Print a line for each file."""
    if len(sys.argv) < 2:
        sys.stderr.write("usage: python -m app.runtime.independence FILE ...\n")
        return 2
    for path in sys.argv[1:]:
        proof = asdict(prove(path))
        shown = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in proof.items()}
        sys.stdout.write(json.dumps({"path": path, **shown}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The server's proof that rows of a file are independent, asked of its program: the library never imports it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_LIMIT_S = 120.0
_FIELDS = ("verdict", "reason", "node", "op_type", "input_axes", "output_axes")


def row_proof(path: Path) -> dict[str, Any] | None:
    """Ask whether a server batches a file: the proof from its graph.

    Returns:
        verdict (``independent``: batched; ``mixed`` or ``unknown``: not), reason, the node and op_type that decide
        (empty where none does), and the axis of the rows in each input and output; None where there is no answer.
    """
    # -P: a folder 'app' in the working directory must not shadow the server.
    command = [sys.executable, "-P", "-m", "app.runtime.independence", str(path)]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=True)  # noqa: S603 # nosec B603
        answer = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return {name: answer[name] for name in _FIELDS}

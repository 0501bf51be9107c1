"""Every model that clients can see: the known ones, those only on disk, and skipped folders."""

import logging
from collections.abc import Mapping

from app.repository.folder import ModelFolder
from app.repository.versions import Entry, Version

log = logging.getLogger(__name__)


def listed(entries: Mapping[str, Entry], folder: ModelFolder) -> list[Entry]:
    """All models by name: known entries, versions that were never loaded, and skipped folders with the reason."""
    found = dict(entries)
    try:
        on_disk = folder.scan()
    except OSError as error:
        log.warning("the model folder can't be read: %s", error.strerror)
        on_disk = {}
    for name, versions in on_disk.items():
        known = found.get(name, Entry(name))
        fresh = {version: Version(version) for version in versions if version not in known.versions}
        found[name] = Entry(name, {**known.versions, **fresh})
    for (name, part), why in folder.skipped.items():
        known = found.get(name, Entry(name))
        if part not in known.versions:
            known = Entry(name, {**known.versions, part: Version(part, reason=f"skipped: {why}")})
        found[name] = known
    return [found[name] for name in sorted(found)]

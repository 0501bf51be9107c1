"""Unit tests mirror the sources by name: ``tests/unit/app/engine/test_batcher.py`` tests ``app/engine/batcher.py``."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests" / "unit"
# What tests a package as a whole, and rules that hold for all sources.
WHOLE = {
    "panther/convert/test_architectures.py",
    "panther/convert/test_from_linear.py",
    "panther/convert/test_half.py",
    "panther/convert/test_models.py",
    "panther/convert/test_sketch_.py",
    "panther/export/test_export.py",
    "panther/export/test_models.py",
    "panther/export/test_shared.py",
    "panther/nn/test_everywhere.py",
    "panther/nn/test_fsdp.py",
    "panther/train/test_fit.py",
    "panther/train/test_machines.py",
}
TESTS = sorted(path.relative_to(UNIT).as_posix() for path in UNIT.glob("*/**/test_*.py"))


@pytest.mark.parametrize("name", [name for name in TESTS if name not in WHOLE])
def test_a_unit_test_has_the_name_of_its_source(name):
    """``test_NAME.py`` or ``test_NAME_theme.py`` lies where ``NAME.py`` or the package ``NAME`` does."""
    path = Path(name)
    folder, stem = ROOT / path.parent, path.stem.removeprefix("test_")
    parts = stem.split("_")
    wanted = ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    assert any((folder / f"{each}.py").is_file() or (folder / each).is_dir() for each in wanted), (
        f"{name} tests no source of its name in {path.parent}"
    )


def test_what_is_listed_as_whole_is_there():
    assert set(TESTS) >= WHOLE


def test_the_longest_files_are_there(request):
    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    assert [name for name in conftest.LONGEST_FILES if not (ROOT / "tests" / name).is_file()] == []

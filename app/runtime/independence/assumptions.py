"""Candidate row axes of each input, the most likely first, from the names of the dimensions."""

from collections.abc import Iterator

from app.runtime.independence.graph import ValueInfo

Axes = dict[str, int | None]
_MAX_TRIES = 6


def no_axis(inputs: list[ValueInfo]) -> str:
    """The reason for having no candidate."""
    hidden = [value.name for value in inputs if value.shape is None]
    if hidden:
        return f"input {hidden[0]!r} has unknown rank"
    return "no input has an axis of variable size that could carry the rows"


def assumptions(inputs: list[ValueInfo]) -> Iterator[Axes]:
    """Candidate row axes of each input, the most likely first."""
    open_axes = {
        value.name: [axis for axis, size in enumerate(value.shape or ()) if not isinstance(size, int)]
        for value in inputs
    }
    names: dict[str, list[int]] = {}
    for value in inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, str):
                names.setdefault(size, []).append(axis)
    assumptions: list[Axes] = []
    first = {name: 0 if 0 in axes else None for name, axes in open_axes.items()}
    for name in sorted(names, key=lambda one: (min(names[one]), -len(names[one]))):
        named = {value.name: _axis_named(value, name) for value in inputs}
        unnamed = {
            value.name: named[value.name] if named[value.name] is not None else _first_unnamed(value)
            for value in inputs
        }
        assumptions += [unnamed, named] if 0 in names[name] else []
    assumptions.append(first)
    assumptions.append({name: axes[0] if axes else None for name, axes in open_axes.items()})
    for name in names:
        assumptions.append({value.name: _axis_named(value, name) for value in inputs})
    assumptions.sort(key=lambda axes: _preference(axes, first))
    seen: list[Axes] = []
    for axes in assumptions:
        if axes not in seen and any(axis is not None for axis in axes.values()):
            seen.append(axes)
            yield axes
        if len(seen) >= _MAX_TRIES:
            return


def _preference(axes: Axes, first: Axes) -> tuple[int, int]:
    """Order candidates by the number of first axes they miss, then by the number of inputs that carry rows."""
    missed = sum(first[name] is not None and axis != 0 for name, axis in axes.items())
    return missed, sum(axis is None for axis in axes.values())


def _axis_named(value: ValueInfo, name: str) -> int | None:
    return value.shape.index(name) if value.shape is not None and name in value.shape else None


def _first_unnamed(value: ValueInfo) -> int | None:
    return 0 if value.shape and value.shape[0] is None else None


def refusal(inputs: list[ValueInfo], axes: Axes) -> str:
    """The reason against a candidate: the file gives the number of rows to another axis, too."""
    rows = {
        value.shape[axis]: value.name
        for value in inputs
        if value.shape is not None and (axis := axes[value.name]) is not None
    }
    for value in inputs:
        for place, size in enumerate(value.shape or ()):
            if isinstance(size, str) and size in rows and axes[value.name] != place:
                return f"axis {place} of input {value.name!r} has the size {size!r}, which is the number of rows"
    return ""

"""Arithmetic on symbolic sizes: the number of rows, a length, and values computed from them.

A size is an integer, or the product of a factor and atoms. An atom is a symbol, a sum, or the result of an operation
with an unknown value; equal operations on equal sizes give the same atom.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeGuard

from app.runtime.independence.decisions import unproven

_LARGEST = 1 << 62
_MAX_ATOMS = 48
_MAX_TERMS = 24
_MAX_TABLE = 500_000


@dataclass(frozen=True, slots=True, eq=False)
class Atom:
    """An unknown factor.

    Attributes:
        number: Its index in the table, which orders the atoms of a product.
        low: A lower bound, or None.
        counts: Whether it depends on the number of rows.
        terms: The terms of a sum.
        real: Whether it is a floating-point number.
    """

    number: int
    low: int | None
    counts: bool
    terms: "tuple[tuple[int, tuple[Atom, ...]], ...]" = ()
    real: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """``factor`` times the atoms."""

    factor: int
    atoms: tuple[Atom, ...]

    @property
    def counts(self) -> bool:
        """Whether it depends on the number of rows."""
        return any(atom.counts for atom in self.atoms)


Number = int | Size
Element = int | float | bool | Size
_Terms = dict[tuple[Atom, ...], int]


def counts(value: object) -> bool:
    """Whether a size or an element depends on the number of rows."""
    return isinstance(value, Size) and value.counts


def is_real(value: Element) -> bool:
    """Whether an element is a floating-point number."""
    return isinstance(value, float) or (isinstance(value, Size) and any(atom.real for atom in value.atoms))


def is_known(value: object) -> TypeGuard[int]:
    """Whether a size is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass
class Algebra:
    """The atoms of one walk, and the operations on sizes.

    Attributes:
        assumed: Truth value of conditions, by the number of their atom. Walks of one graph number atoms alike.
    """

    _table: dict[tuple[object, ...], Atom] = field(default_factory=dict)
    _made: int = 0
    _ends: dict[Size, Number] = field(default_factory=dict)
    assumed: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the symbol of the number of rows."""
        self.rows_atom = self._atom(1, counts=True)
        self.rows = Size(1, (self.rows_atom,))

    def _atom(
        self,
        low: int | None,
        *,
        counts: bool = False,
        terms: tuple[tuple[int, tuple[Atom, ...]], ...] = (),
        real: bool = False,
    ) -> Atom:
        self._made += 1
        if self._made > _MAX_TABLE:
            raise unproven("has more symbolic sizes than the analysis supports")
        return Atom(self._made, low, counts, terms, real)

    def fresh(self, low: int = 0) -> Size:
        """A new symbol for a size that is the same for all rows."""
        return Size(1, (self._atom(low),))

    def opaque(self, operation: object, *values: Element, low: int | None = None, real: bool | None = None) -> Size:
        """Symbol for the result of an operation; the same for the same operands. Real if an operand or ``real`` is."""
        key = (operation, *(_key(value) for value in values))
        atom = self._table.get(key)
        if atom is None:
            if real is None:
                real = any(is_real(value) for value in values)
            atom = self._atom(low, counts=any(counts(value) for value in values), real=real)
            self._table[key] = atom
        return Size(1, (atom,))

    def upto(self, size: Number, end: Number) -> Size:
        """The size of an axis cut at an end that may exceed it."""
        found = self.opaque("upto", size, end, low=0)
        self._ends[found] = end
        return found

    def end_of(self, size: Number) -> Number | None:
        """The end at which an axis was cut, or None if it was not cut."""
        return self._ends.get(size) if isinstance(size, Size) else None

    def times(self, left: Number, right: Number) -> Number:
        """The product."""
        if left == 1:
            return right
        if right == 1:
            return left
        first, second = _size(left), _size(right)
        factor = first.factor * second.factor
        if factor == 0:
            return 0
        if abs(factor) > _LARGEST or len(first.atoms) + len(second.atoms) > _MAX_ATOMS:
            raise unproven("has a size that is too large to analyse")
        return _number(factor, (*first.atoms, *second.atoms))

    def product(self, values: "tuple[Number, ...] | list[Number]") -> Number:
        """The product of all values."""
        found: Number = 1
        for value in values:
            found = self.times(found, value)
        return found

    def plus(self, left: Number, right: Number, sign: int = 1) -> Number:
        """The sum, or the difference if the sign is -1."""
        if is_known(left) and is_known(right):
            return _checked(left + sign * right)
        terms: _Terms = {}
        for value, scale in ((left, 1), (right, sign)):
            for factor, atoms in _terms(value):
                terms[atoms] = terms.get(atoms, 0) + scale * factor
        terms = {atoms: factor for atoms, factor in terms.items() if factor}
        if not terms:
            return 0
        if len(terms) > _MAX_TERMS:
            return self.opaque("plus", left, right, sign)
        common = _common(list(terms))
        divisor = math.gcd(*terms.values())
        inner = {_without(atoms, common): factor // divisor for atoms, factor in terms.items()}
        if len(inner) == 1:
            ((atoms, factor),) = inner.items()
            return self.times(_number(divisor * factor, atoms), _number(1, common))
        ordered = tuple(sorted(((factor, atoms) for atoms, factor in inner.items()), key=_order))
        key = ("sum", *ordered)
        atom = self._table.get(key)
        if atom is None:
            low = _low_of_terms(ordered)
            atom = self._atom(low, counts=any(one.counts for _, atoms in ordered for one in atoms), terms=ordered)
            self._table[key] = atom
        return self.times(Size(1, (atom,)), _number(divisor, common))

    def divided(self, value: Number, divisor: Number) -> Number | None:
        """The quotient if the division is known to have no remainder, or None."""
        first, second = _size(value), _size(divisor)
        if first.factor == 0 and second.factor:
            return 0
        if second.factor == 0 or first.factor % second.factor:
            return None
        left, right = Counter(first.atoms), Counter(second.atoms)
        if right - left:
            return None
        return _number(first.factor // second.factor, tuple((left - right).elements()))

    def rounded_down(self, value: Number, divisor: int) -> Number | None:
        """The quotient rounded down, or None if it is unknown."""
        found: Number = 0
        for factor, atoms in _terms(value):
            if atoms and factor % divisor:
                return None
            found = self.plus(found, _number(factor // divisor, atoms))
        low = lower(value)
        return found if low is not None and low >= 0 and divisor > 0 else None

    def reduced(self, value: Number, divisor: Number) -> tuple[Number, Number]:
        """Both sides of a fraction without their common factors."""
        first, second = _size(value), _size(divisor)
        common = math.gcd(first.factor, second.factor) or 1
        left, right = Counter(first.atoms), Counter(second.atoms)
        return (
            _number(first.factor // common, tuple((left - right).elements())),
            _number(second.factor // common, tuple((right - left).elements())),
        )

    def same(self, left: Element, right: Element) -> bool | None:
        """Whether two sizes are equal for every number of rows; None if unknown."""
        if isinstance(left, Size) or isinstance(right, Size):
            if is_real(left) or is_real(right):
                return None
            first, second = _size(left), _size(right)
            difference = self.plus(first, second, -1)
            if is_known(difference):
                return difference == 0
            if (lower(difference) or 0) > 0 or (lower(self.plus(second, first, -1)) or 0) > 0:
                return False
            return None
        return left == right

    def less(self, left: Element, right: Element) -> bool | None:
        """Whether the first size is smaller; None if unknown."""
        if isinstance(left, Size) or isinstance(right, Size):
            if is_real(left) or is_real(right):
                return None
            first, second = _size(left), _size(right)
            low = lower(self.plus(second, first, -1))
            if low is not None and low > 0:
                return True
            other = lower(self.plus(first, second, -1))
            return False if other is not None and other >= 0 else None
        return left < right


def lower(value: Element) -> int | None:
    """A lower bound of a size, or None."""
    if not isinstance(value, Size):
        return math.floor(value) if abs(value) < _LARGEST else None
    return _low_of_terms(((value.factor, value.atoms),))


def _low_of_terms(terms: tuple[tuple[int, tuple[Atom, ...]], ...]) -> int | None:
    total = 0
    for factor, atoms in terms:
        lows = [atom.low for atom in atoms]
        bounds = [low for low in lows if low is not None and low >= 0]
        if len(bounds) < len(lows) or (factor < 0 and atoms):
            return None
        total += factor * math.prod(bounds)
    return total if abs(total) < _LARGEST else None


def _checked(value: int) -> int:
    if abs(value) > _LARGEST:
        raise unproven("has a size that is too large to analyse")
    return value


def _size(value: Element) -> Size:
    return value if isinstance(value, Size) else Size(int(value), ())


def _number(factor: int, atoms: tuple[Atom, ...]) -> Number:
    if not atoms or not factor:
        return _checked(factor)
    return Size(factor, tuple(sorted(atoms, key=lambda atom: atom.number)))


def _terms(value: Number) -> tuple[tuple[int, tuple[Atom, ...]], ...]:
    if not isinstance(value, Size):
        return ((int(value), ()),)
    sums = [atom for atom in value.atoms if atom.terms]
    if len(sums) != 1 or len(value.atoms) > 8:
        return ((value.factor, value.atoms),)
    others = list(value.atoms)
    others.remove(sums[0])
    return tuple(
        (value.factor * factor, tuple(sorted((*others, *atoms), key=lambda atom: atom.number)))
        for factor, atoms in sums[0].terms
    )


def _common(products: list[tuple[Atom, ...]]) -> tuple[Atom, ...]:
    found = Counter(products[0])
    for atoms in products[1:]:
        found &= Counter(atoms)
    return tuple(found.elements())


def _without(atoms: tuple[Atom, ...], common: tuple[Atom, ...]) -> tuple[Atom, ...]:
    left = Counter(atoms) - Counter(common)
    return tuple(sorted(left.elements(), key=lambda atom: atom.number))


def _order(term: tuple[int, tuple[Atom, ...]]) -> tuple[tuple[int, ...], int]:
    return tuple(atom.number for atom in term[1]), term[0]


def _key(value: Element) -> object:
    return value if isinstance(value, Size) else (type(value).__name__, value)

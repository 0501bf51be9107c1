"""Operations on one or two elements, possibly unknown sizes."""

import math

from app.runtime.independence.sizes import Algebra, Element, Number, Size, is_known, is_real, lower


def _is_real(*values: Element) -> bool:
    return any(is_real(value) for value in values)


def steady(value: float) -> float:
    """Check that a number can be rounded: single precision must not put it on the other side of an integer."""
    if isinstance(value, float) and 0 < abs(value - round(value)) < 1e-4:
        raise ValueError("too close to an integer")
    return value


def _numbers(left: Element, right: Element) -> tuple[int | float, int | float] | None:
    return None if isinstance(left, Size) or isinstance(right, Size) else (left, right)


def _sizes(left: Element, right: Element) -> tuple[Number, Number] | None:
    """Both elements, if they are integers or sizes."""
    if isinstance(left, float) or isinstance(right, float) or _is_real(left, right):
        return None
    return left, right


def add(algebra: Algebra, left: Element, right: Element) -> Element:
    """A sum."""
    if (known := _numbers(left, right)) is not None:
        return known[0] + known[1]
    sizes = _sizes(left, right)
    return algebra.opaque("add", left, right) if sizes is None else algebra.plus(*sizes)


def subtract(algebra: Algebra, left: Element, right: Element) -> Element:
    """A difference."""
    if (known := _numbers(left, right)) is not None:
        return known[0] - known[1]
    sizes = _sizes(left, right)
    return algebra.opaque("subtract", left, right) if sizes is None else algebra.plus(*sizes, -1)


def multiply(algebra: Algebra, left: Element, right: Element) -> Element:
    """A product."""
    if (known := _numbers(left, right)) is not None:
        return known[0] * known[1]
    sizes = _sizes(left, right)
    return algebra.opaque("multiply", left, right) if sizes is None else algebra.times(*sizes)


def divide(algebra: Algebra, left: Element, right: Element) -> Element:
    """A quotient; integer division truncates toward zero."""
    if (known := _numbers(left, right)) is not None:
        above, below = known
        if below == 0:
            raise ValueError("division by zero")
        if _is_real(left, right):
            return above / below
        quotient = abs(above) // abs(below)
        return quotient if (above < 0) == (below < 0) else -quotient
    sizes = _sizes(left, right)
    if sizes is None:
        return algebra.opaque("quotient", left, right)
    exact = algebra.divided(*sizes)
    if exact is None and isinstance(right, int) and right > 0:
        exact = algebra.rounded_down(sizes[0], right)
    if exact is not None:
        return exact
    return algebra.opaque("divide", left, right, low=0 if _both_positive(left, right) else None)


def modulo(algebra: Algebra, left: Element, right: Element) -> Element:
    """The remainder of a division."""
    if is_known(left) and is_known(right) and left >= 0 and right > 0:
        return left % right
    return algebra.opaque("mod", left, right)


def minimum(algebra: Algebra, left: Element, right: Element) -> Element:
    """The smaller element."""
    less = algebra.less(left, right)
    if less is None:
        return algebra.opaque("min", left, right, low=0 if _both_positive(left, right) else None)
    return left if less else right


def maximum(algebra: Algebra, left: Element, right: Element) -> Element:
    """The larger element."""
    less = algebra.less(left, right)
    if less is None:
        return algebra.opaque("max", left, right, low=0 if _both_positive(left, right) else None)
    return right if less else left


def _both_positive(left: Element, right: Element) -> bool:
    lows = lower(left), lower(right)
    return all(low is not None and low >= 0 for low in lows)


def equal(algebra: Algebra, left: Element, right: Element) -> Element:
    """Whether two elements are equal."""
    found = algebra.same(left, right)
    return algebra.opaque("equal", left, right, low=0) if found is None else found


def less(algebra: Algebra, left: Element, right: Element) -> Element:
    """Whether the first element is smaller."""
    found = algebra.less(left, right)
    return algebra.opaque("less", left, right, low=0) if found is None else found


def negated(algebra: Algebra, value: Element) -> Element:
    """Logical negation."""
    return algebra.opaque("not", value, low=0) if isinstance(value, Size) else not value


def conjunction(algebra: Algebra, left: Element, right: Element) -> Element:
    """Logical and."""
    if left is False or right is False:
        return False
    known = _numbers(left, right)
    return algebra.opaque("and", left, right, low=0) if known is None else all(known)


def disjunction(algebra: Algebra, left: Element, right: Element) -> Element:
    """Logical or."""
    if left is True or right is True:
        return True
    known = _numbers(left, right)
    return algebra.opaque("or", left, right, low=0) if known is None else any(known)


def negative(algebra: Algebra, value: Element) -> Element:
    """The negated element."""
    if not isinstance(value, Size):
        return -value
    return algebra.opaque("negative", value) if _is_real(value) else algebra.times(-1, value)


def absolute(algebra: Algebra, value: Element) -> Element:
    """The absolute value."""
    if not isinstance(value, Size):
        return abs(value)
    low = lower(value)
    return value if low is not None and low >= 0 else algebra.opaque("absolute", value, low=0)


def floor(algebra: Algebra, value: Element) -> Element:
    """The largest integer not above the element."""
    if not isinstance(value, Size):
        return float(math.floor(steady(value))) if isinstance(value, float) else value
    return algebra.opaque("floor", value)


def ceil(algebra: Algebra, value: Element) -> Element:
    """The smallest integer not below the element."""
    if not isinstance(value, Size):
        return float(math.ceil(steady(value))) if isinstance(value, float) else value
    return algebra.opaque("ceil", value)

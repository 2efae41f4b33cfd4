"""Makes the dataclasses whose fields are never assigned again. They load in a third of the usual time.

`@dataclass(frozen=True, slots=True)` compiles seven functions for each class, and a worker loads about seventy classes
before it does anything. `@frozen` compiles only `__init__`; all classes share the other functions. See decision 0090.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a class a dataclass with slots that is compared by its fields. mypy refuses assignments to them.

    A function that the class defines itself stays, as with dataclass: its repr may hide something.
    """
    made: Any = dataclass(eq=False, repr=False, slots=True)(cls)
    made.__compared__ = [field.name for field in fields(made) if field.compare]
    for name, shared in (("__eq__", _equal), ("__hash__", _hash), ("__repr__", _repr)):
        if name not in vars(cls):
            setattr(made, name, shared)
    return made  # type: ignore[no-any-return]


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, name) for name in self.__compared__])


def _equal(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _repr(self: Any) -> str:
    shown = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"

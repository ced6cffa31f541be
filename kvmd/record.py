"""Records: what frozen dataclasses are, without the code that each of those compiles when its module is imported.

Of the daemon's start that was a tenth.
"""

from __future__ import annotations

from typing import Any, Self, dataclass_transform


@dataclass_transform(frozen_default=True)
class Record:
    """Values by name, which don't change: a subclass's annotations are the names, what it gives them the defaults."""

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self.names()
        given = dict(zip(names, values, strict=False))
        for name in named:
            if name not in names or name in given:
                raise TypeError(f"{type(self).__name__} has no {name}, or it is given twice")
        given |= named
        missing = [name for name in names if name not in given and not hasattr(type(self), name)]
        if missing or len(values) > len(names):
            raise TypeError(f"{type(self).__name__} has {', '.join(names)}; missing: {', '.join(missing) or 'none'}")
        self.__dict__.update(given)
        self.check()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of all values."""
        return tuple(cls.__annotations__)

    def check(self) -> None:
        """Look whether the values make sense; raises what the record's class says."""

    def replace(self, **changes: Any) -> Self:
        """The same with other values."""
        return type(self)(**{**{name: getattr(self, name) for name in self.names()}, **changes})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of {type(self).__name__} can't be changed")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.names())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.names())})"

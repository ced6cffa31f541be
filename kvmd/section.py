"""A section of the configuration as a class: what a frozen dataclass is, without the code that one compiles.

Of the daemon's start that was a twentieth.
"""

from __future__ import annotations

from typing import Any, Self, dataclass_transform


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Section:
    """Values by name, which don't change: a subclass's annotations are the names, what it gives them the defaults."""

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in self.names():
                raise TypeError(f"{type(self).__name__} has no {name}")
        self.__dict__.update(values)
        self.check()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of all values."""
        return tuple(cls.__annotations__)

    def check(self) -> None:
        """Look whether the values make sense.

        :raises ValueError: ``NAME: what is wrong``.
        """

    def replace(self, **changes: Any) -> Self:
        """The same with other values."""
        return type(self)(**{**self.__dict__, **changes})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of {type(self).__name__} can't be changed")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.names())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.names())})"

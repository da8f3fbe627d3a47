"""Fields of a batch that raise when used: how the kit sees what an objective needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NoReturn

from dagflow.types import Transitions


class Poisoned(Exception):
    """A field was used that should not have been."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class Poison:
    """Fills a field; anything done with it raises `Poisoned`."""

    def __init__(self, field: str) -> None:
        object.__setattr__(self, "_field", field)

    def _raise(self, *_: object, **__: object) -> NoReturn:
        raise Poisoned(object.__getattribute__(self, "_field"))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> NoReturn:
        poison = next(
            value for value in _flat([*args, *(kwargs or {}).values()]) if type(value) is cls
        )
        raise Poisoned(object.__getattribute__(poison, "_field"))

    __getattr__ = __getitem__ = __len__ = __iter__ = __bool__ = __float__ = __call__ = _raise
    __neg__ = __pos__ = __abs__ = __invert__ = __array__ = _raise
    __eq__ = __ne__ = _raise
    __hash__ = object.__hash__
    __lt__ = __le__ = __gt__ = __ge__ = _raise
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _raise
    __rtruediv__ = __floordiv__ = __mod__ = __pow__ = __rpow__ = __matmul__ = __and__ = _raise


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def poisoned(batch: Transitions, names: set[str]) -> Transitions:
    """The batch, and its window, with these fields poisoned."""
    changes: dict[str, Any] = {name: Poison(name) for name in names}
    if batch.window is not None and "window" not in names:
        changes["window"] = replace(batch.window, **changes)
    return replace(batch, **changes)

"""Reading a JSON body field by field, with errors that name it as the service does. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from turnwise import errors
from turnwise.wire.fireworks.faults import Code, Refused

#: Fields that hold a secret, or a block with one.
_SECRETS = frozenset({"apiKey", "wandbConfig"})


class Fields:
    """A JSON object. Its fields are asked for in camelCase and named in snake_case.

    What is null or absent is the default; numbers may come as text, as 64-bit ones do.

    >>> Fields({"learningRate": "1e-4"}, "training_config.").number("learningRate")
    0.0001
    """

    def __init__(self, given: Mapping[str, Any], prefix: str = "") -> None:
        self._given = given
        self._prefix = prefix

    def block(self, name: str) -> Fields:
        """An object inside; an empty one where there is none."""
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise self.wrong(name, "is not an object")
        return Fields(value, self.path(name) + ".")

    def text(self, name: str, default: str = "") -> str:
        """Text."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "is not text")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where there is none."""
        value = self._value(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "is not true or false")
        return value

    def whole(self, name: str, default: int = 0) -> int:
        """A whole number."""
        number = self.number(name, default)
        if number != int(number):
            raise self.wrong(name, "is not a whole number")
        return int(number)

    def number(self, name: str, default: float = 0.0) -> float:
        """A number."""
        value = self._value(name, default)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong(name, "is not a number")
        return number

    def has(self, name: str) -> bool:
        """Whether it is there and says anything: not null, 0, false or empty."""
        return bool(self._given.get(name))

    def path(self, name: str) -> str:
        """A field's full name."""
        return self._prefix + re.sub("([A-Z])", lambda match: "_" + match[1].lower(), name)

    def wrong(self, name: str, reason: str, remedy: str = "") -> errors.InvalidInput:
        """What is wrong with a field. A secret's value is not repeated."""
        value = self._given.get(name)
        shown = f"({type(value).__name__})" if name in _SECRETS else value
        return errors.InvalidInput(self.path(name), shown, reason, remedy=remedy)

    def refuse(self, names: Mapping[str, str]) -> None:
        """Refuse fields that are set, but mean nothing here: each with the reason."""
        for name, reason in names.items():
            if self.has(name):
                raise Refused(Code.INVALID_ARGUMENT, f"{self.path(name)} is set, but {reason}")

    def _value(self, name: str, default: Any) -> Any:
        value = self._given.get(name)
        return default if value is None else value

"""A check of what a plugin's function returns first, which costs nothing from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm_ext.errors import ContractError


def bind_checked(owner: object, names: Sequence[str], function: Callable[..., Any], fault: str) -> None:
    """Let attributes ``names`` of ``owner`` be ``function``, whose first call has to return something.

    A function that works in place and forgets to return would otherwise fail in whatever code comes next.

    Args:
        fault: the text of the ContractError where it returns ``None``: whose function did, and what is due.
    """
    vars(owner).update(dict.fromkeys(names, _FirstCall(owner, names, function, fault)))


class _FirstCall:
    """Stands for the function until that has returned something. An object, so that a copy of its owner has its own."""

    def __init__(self, owner: object, names: Sequence[str], function: Callable[..., Any], fault: str) -> None:
        self._owner, self._names, self._function, self._fault = owner, names, function, fault

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._function(*args, **kwargs)
        if result is None:
            raise ContractError(self._fault)
        vars(self._owner).update(dict.fromkeys(self._names, self._function))
        return result

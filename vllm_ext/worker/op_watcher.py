"""Sees which of torch's ops are called."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OpWatcher(TorchDispatchMode):
    """As a context manager: calls :meth:`saw` for each op of this thread."""

    @abstractmethod
    def saw(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """An op was called, and this is what it has returned."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """A question of torch's: with its usual answer it imports its compiler, which takes two seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.saw(func, args, kwargs or {}, result)
        return result

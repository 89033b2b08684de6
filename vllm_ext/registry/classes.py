"""Classes by name: given as they are, or as ``module:Class``, which is imported when it is used."""

from __future__ import annotations

import importlib
import re
from typing import Any

from vllm_ext.errors import (
    ContractError,
    PluginLoadError,
    PluginNotFound,
    RegistrationError,
    did_you_mean,
    dotted_path,
    innermost_cause,
    listing,
)
from vllm_ext.registry.base import Registry

CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class ClassRegistry(Registry[Any]):
    """Classes of one kind (``what``, for messages), by name.

    Args:
        builtin: what comes with vllm_ext, as class paths, so that nothing is imported before it is needed.
    """

    def register(self, name: str, value: Any) -> None:
        """Add or replace an entry, with a class or the path of one; see :meth:`Registry.register`.

        Raises:
            RegistrationError: ``name`` is no name, or ``value`` neither a class nor a path ``package.module:Class``;
                nothing is changed.
        """
        if not isinstance(name, str) or not name.strip():
            raise RegistrationError(f"{self.what} {name!r} is not a name")
        if isinstance(value, str) and not CLASS_PATH.fullmatch(value):
            raise RegistrationError(f"{self.what} {name!r}: {value!r} is not of the form 'package.module:Class'")
        if not isinstance(value, str | type):
            raise RegistrationError(f"{self.what} {name!r}: {value!r} is neither a class nor 'package.module:Class'")
        super().register(name, value)

    def load(self, name: str, base: type | None = None, *, named_by: str = "") -> type[Any]:
        """The class that ``name`` stands for; an import that failed is tried again next time.

        Args:
            base: what it has to derive from, if anything.
            named_by: the setting that names it, for messages.

        Raises:
            PluginNotFound: nobody registered the name; the text has those that exist.
            PluginLoadError: the class cannot be imported.
            ContractError: it is no class, or does not derive from ``base``.
        """
        entry = self.find(name)
        if entry is None:
            asked = f", which {named_by} names" if named_by else ""
            raise PluginNotFound(
                f"no {self.what} {name!r} is registered{did_you_mean(name, self.names())}{asked}; registered: "
                f"{listing(self.names())}. A general plugin can register one"
            )
        found = entry.value
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            try:
                found = getattr(importlib.import_module(module), attribute)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise PluginLoadError(
                    f"{self.what} {name!r}, registered by {entry.owner_text} as {entry.value!r}, cannot be imported: "
                    f"{innermost_cause(error)}",
                    plugin=entry.owner_text,
                ) from error
        if not isinstance(found, type) or (base is not None and not issubclass(found, base)):
            expected = "class" if base is None else f"subclass of {dotted_path(base)}"
            raise ContractError(
                f"{self.what} {name!r}, registered by {entry.owner_text}: {entry.value!r} is not a {expected}",
                plugin=entry.owner_text,
            )
        return found

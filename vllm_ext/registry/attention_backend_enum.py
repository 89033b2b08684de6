"""``AttentionBackendEnum`` and ``register_backend``: vLLM's way to name, add and override attention backends.

It looks like vLLM's enumeration, and is none of Python's: members come and go with registrations, and which ones there
are depends on the engine's platform. Members are strings, their names, so that they equal what settings say.
"""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Callable, Iterator
from typing import ClassVar, TypeVar

from vllm_ext.errors import RegistrationError, dotted_path, innermost_cause
from vllm_ext.registry.attention_backends import ATTENTION_BACKENDS, IN_TREE
from vllm_ext.registry.scope import current_scope

C = TypeVar("C", bound=type)


class _Members(type):
    """What an enumeration can do as a class: ``E.NAME``, ``E["NAME"]``, ``for member in E``, ``"NAME" in E``."""

    def __getattr__(cls, name: str) -> AttentionBackendEnum:
        try:
            return AttentionBackendEnum(name)
        except RegistrationError as error:
            raise AttributeError(str(error)) from None

    def __getitem__(cls, name: str) -> AttentionBackendEnum:
        return AttentionBackendEnum(name)

    def __iter__(cls) -> Iterator[AttentionBackendEnum]:
        return iter([AttentionBackendEnum(name) for name in ATTENTION_BACKENDS.names(current_scope())])

    def __len__(cls) -> int:
        return len(ATTENTION_BACKENDS.names(current_scope()))

    def __contains__(cls, name: object) -> bool:
        return name in ATTENTION_BACKENDS.names(current_scope())

    @property
    def __members__(cls) -> dict[str, AttentionBackendEnum]:
        return {member.name: member for member in AttentionBackendEnum}


class AttentionBackendEnum(str, metaclass=_Members):
    """A name of an attention backend; there is one object for each. vLLM: ``AttentionBackendEnum``.

    ``AttentionBackendEnum["NAME"]`` is the member called so.

    Raises:
        RegistrationError: (a ``ValueError``) nothing is registered under this name for the engine's platform.
    """

    __slots__ = ()
    _objects: ClassVar[dict[str, AttentionBackendEnum]] = {}

    def __new__(cls, name: str) -> AttentionBackendEnum:
        scope = current_scope()
        if name not in ATTENTION_BACKENDS.names(scope):
            raise RegistrationError(
                f"{ATTENTION_BACKENDS.unknown(name, scope)}. Names are added by register_backend() in a platform or "
                "general plugin, which has to have run in this process"
            )
        return cls._objects.setdefault(str(name), super().__new__(cls, name))

    @classmethod
    def parse(cls, text: str) -> AttentionBackendEnum:
        """The member that a setting means, in any case of letters; RegistrationError where there is none. An extension
        of vLLM's contract.
        """
        names = {name.casefold(): name for name in ATTENTION_BACKENDS.names(current_scope())}
        return cls(names.get(text.casefold(), text))

    @property
    def name(self) -> str:
        """The name, which the member itself equals."""
        return str(self)

    @property
    def value(self) -> str:
        """Class path without overrides; empty for a name that only an override gives a meaning to."""
        return IN_TREE.get(self) or self._added_path()

    def get_path(self, include_classname: bool = True) -> str:
        """Class path of the backend that the name stands for, or the path of its module.

        Raises:
            RegistrationError: (a ``ValueError``) nothing is registered for it.
        """
        found = ATTENTION_BACKENDS.find(self, current_scope())
        if found is None:
            raise RegistrationError(
                f"attention backend {self.name!r} must be registered before use: register_backend("
                f"AttentionBackendEnum.{self.name}, 'package.module.Class') in a platform or general plugin"
            )
        return found.value if include_classname else split_path(found.value)[0]

    def get_class(self) -> type:
        """The backend's class, imported.

        Raises:
            RegistrationError: nothing is registered, or what is cannot be imported.
        """
        path = self.get_path()
        module, name = split_path(path)
        try:
            found: type = getattr(importlib.import_module(module), name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RegistrationError(
                f"attention backend {self.name!r}, registered by {self.registered_by}: {path!r} cannot be imported: "
                f"{innermost_cause(error)}"
            ) from error
        return found

    @property
    def registered_by(self) -> str:
        """Who says what the name stands for, for people; an extension of vLLM's contract."""
        found = ATTENTION_BACKENDS.peek(self, current_scope())
        return found.owner_text if found else "nobody"

    def is_registered(self) -> bool:
        """Whether the name stands for a class; an extension of vLLM's contract."""
        return ATTENTION_BACKENDS.peek(self, current_scope()) is not None

    def is_overridden(self) -> bool:
        """Whether an override counts for the engine's platform."""
        return ATTENTION_BACKENDS.peek_override(self, current_scope()) is not None

    def clear_override(self) -> None:
        """Let the name stand for what it did without overrides, for the engine's platform."""
        ATTENTION_BACKENDS.clear_override(self, current_scope())

    def __reduce_ex__(self, protocol: object) -> tuple[type[AttentionBackendEnum], tuple[str]]:
        # By name: in another process it is that process's own member, or an error that says what is missing there.
        return AttentionBackendEnum, (self.name,)

    def __repr__(self) -> str:
        return f"<AttentionBackendEnum.{self.name}: {self.value!r}>"

    def _added_path(self) -> str:
        found = ATTENTION_BACKENDS.peek_added(self, current_scope())
        return found.value if found else ""


def register_backend(
    backend: AttentionBackendEnum | str, class_path: str | None = None, is_mamba: bool = False
) -> Callable[[C], C]:
    """Override a member of :class:`AttentionBackendEnum`, or add a backend under a new name. vLLM:
    ``register_backend``.

    ``register_backend(AttentionBackendEnum.CUSTOM, "package.module.Class")``, or without a path as the decorator of the
    class. May be called again with the same arguments; where another distribution has registered something else, a
    warning names both, and an engine uses its own platform's.

    Args:
        backend: a member, to be overridden; or a new name, which settings then may use (in any case of letters).
        class_path: the :class:`AttentionBackend` subclass; it is imported when an engine needs it.

    Returns: a class decorator, which with ``class_path`` changes nothing.

    Raises:
        RegistrationError: the name is taken or none, the path has another form, the class is not at the top level of
            its module, or ``is_mamba``: the engine has no such layers.
    """
    if is_mamba:
        raise RegistrationError(f"attention backend {backend!r}: this engine has no Mamba layers to register one for")
    if isinstance(backend, AttentionBackendEnum):
        take = ATTENTION_BACKENDS.override
    else:
        _check_name(backend)
        take = ATTENTION_BACKENDS.add
    if class_path is not None:
        take(str(backend), class_path)
        return lambda cls: cls

    def decorate(cls: C) -> C:
        if not isinstance(cls, type) or "." in cls.__qualname__:
            raise RegistrationError(
                f"attention backend {str(backend)!r}: {getattr(cls, '__qualname__', cls)!r} is not a class at the top "
                "level of a module, so that other processes could not import it"
            )
        take(str(backend), dotted_path(cls))
        return cls

    return decorate


def _check_name(name: object) -> None:
    """RegistrationError unless it can be a member: an identifier that is no attribute of the class already."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise RegistrationError(f"attention backend {name!r} is no name; it takes an identifier, such as MY_ATTN")
    if hasattr(str, name) or name in vars(AttentionBackendEnum):
        raise RegistrationError(f"attention backend {name!r}: AttentionBackendEnum has an attribute of this name")


def split_path(class_path: str) -> tuple[str, str]:
    """Module and name of the class, of ``package.module.Class`` or ``package.module:Class``."""
    module, _, name = class_path.rpartition(":" if ":" in class_path else ".")
    return module, name

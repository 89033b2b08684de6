"""Values that may pass between the processes of an engine: plain data, tensors, and the dataclasses of contracts.

Nothing is pickled. What refers to code, a class or a function, passes as its import path, so that only code which the
other process can import by itself is ever reached.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import os
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import msgspec
import numpy as np
import torch

from vllm_ext.contracts.attention import dtype_name
from vllm_ext.errors import EngineError, innermost_cause

_TAG = "~"
_PLAIN = frozenset({type(None), bool, float, str, bytes})
_COLLECTIONS: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}
_BUILD: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_MSGPACK_INTEGERS = range(-(2**63), 2**64)


class NotPortable(EngineError, TypeError):
    """A value that cannot pass to another process."""


def encode(value: Any) -> bytes:
    """``value`` as bytes; NotPortable where it, or a part of it, cannot pass."""
    try:
        return msgspec.msgpack.encode(_to_plain(value))
    except NotPortable:
        raise
    except Exception as error:  # of torch, of a class's own code, of texts that are no Unicode
        raise NotPortable(f"a value cannot pass to another process: {innermost_cause(error)}") from error


def decode(data: bytes | memoryview) -> Any:
    """What :func:`encode` was given, equal to it and of the same types; NotPortable where code that it refers to
    cannot be imported here, or refuses the value.
    """
    try:
        return _from_plain(msgspec.msgpack.decode(data))
    except NotPortable:
        raise
    except (ImportError, AttributeError) as error:
        raise NotPortable(
            f"process {os.getpid()} got a value of another process that it cannot make: {error}; what passes between "
            "processes has to be importable, under the same name, in all of them"
        ) from error
    except Exception as error:  # of a class's own code, or a message that is damaged
        raise NotPortable(
            f"process {os.getpid()} got a value of another process that it cannot make: {innermost_cause(error)}"
        ) from error


def _to_plain(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if value in _MSGPACK_INTEGERS else {_TAG: "int", "v": str(value)}
    if kind is list:
        return [_to_plain(item) for item in value]
    if kind is dict:
        if all(type(key) is str for key in value) and _TAG not in value:
            return {key: _to_plain(item) for key, item in value.items()}
        return {_TAG: "dict", "v": [[_to_plain(key), _to_plain(item)] for key, item in value.items()]}
    if kind in _COLLECTIONS:
        return {_TAG: _COLLECTIONS[kind], "v": [_to_plain(item) for item in value]}
    return _tensor_to_plain(value) or _object_to_plain(value)


def _tensor_to_plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        data = array.flatten().view(torch.uint8).numpy().tobytes()
        return {_TAG: "tensor", "v": data, "dtype": dtype_name(array.dtype), "shape": list(array.shape)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {_TAG: "array", "v": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {_TAG: "scalar", "v": value.tobytes(), "dtype": value.dtype.str}
    if isinstance(value, torch.dtype):
        return {_TAG: "dtype", "v": dtype_name(value)}
    if isinstance(value, torch.device):
        return {_TAG: "device", "v": str(value)}
    if isinstance(value, torch.Size):
        return {_TAG: "size", "v": list(value)}
    return None


def _object_to_plain(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, enum.Enum):
        return {_TAG: "enum", "class": _path_of(kind), "v": _to_plain(value.value)}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return {_TAG: "named tuple", "class": _path_of(kind), "v": [_to_plain(item) for item in value]}
    if isinstance(value, msgspec.Struct):
        fields = {name: _to_plain(getattr(value, name)) for name in kind.__struct_fields__}
        return {_TAG: "object", "class": _path_of(kind), "v": fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_TAG: "dataclass", "class": _path_of(kind), "v": {k: _to_plain(v) for k, v in _state_of(value).items()}}
    if isinstance(value, functools.partial):
        parts = [_to_plain(part) for part in (value.func, list(value.args), value.keywords)]
        return {_TAG: "partial", "v": parts}
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return {_TAG: "code", "v": _path_of(value)}
    if isinstance(value, int | float | str | bytes | list | dict):
        # A subclass of a plain type, as which it arrives.
        base: type[Any] = next(base for base in (int, float, str, bytes, list, dict) if isinstance(value, base))
        return _to_plain(base(value))
    raise NotPortable(
        f"a value of {kind.__module__}.{kind.__qualname__} cannot pass to another process; what can are plain data, "
        "tensors, arrays, dataclasses, and classes and functions of an importable module"
    )


_READ: dict[str, Callable[[dict[str, Any]], Any]] = {
    "int": lambda value: int(value["v"]),
    "dict": lambda value: {_from_plain(key): _from_plain(item) for key, item in value["v"]},
    "tensor": lambda value: _tensor_of(value),
    "array": lambda value: np.frombuffer(value["v"], value["dtype"]).reshape(value["shape"]).copy(),
    "scalar": lambda value: np.frombuffer(value["v"], value["dtype"])[0],
    "dtype": lambda value: getattr(torch, value["v"]),
    "device": lambda value: torch.device(value["v"]),
    "size": lambda value: torch.Size(value["v"]),
    "enum": lambda value: _enum_class(value["class"])(_from_plain(value["v"])),
    "named tuple": lambda value: _import(value["class"])(*map(_from_plain, value["v"])),
    "object": lambda value: _data_class(value["class"])(**{key: _from_plain(item) for key, item in value["v"].items()}),
    "dataclass": lambda value: _with_state(_data_class(value["class"]), value["v"]),
    "partial": lambda value: _partial(*map(_from_plain, value["v"])),
    "code": lambda value: _import(value["v"]),
}


def _from_plain(value: Any) -> Any:
    if type(value) is list:
        return [_from_plain(item) for item in value]
    if type(value) is not dict:
        return value
    tag = value.get(_TAG)
    if tag is None:
        return {key: _from_plain(item) for key, item in value.items()}
    if tag in _BUILD:
        return _BUILD[tag](map(_from_plain, value["v"]))
    return _READ[tag](value)


def _state_of(value: Any) -> dict[str, Any]:
    """A dataclass's fields, with slots or without, and what it has besides them."""
    names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    return getattr(value, "__dict__", {}) | {name: getattr(value, name) for name in names}


def _with_state(cls: type[Any], state: dict[str, Any]) -> Any:
    """A dataclass as it was sent. It is not made anew: that would compute again what follows from its fields."""
    made = object.__new__(cls)
    for name, item in state.items():
        object.__setattr__(made, name, _from_plain(item))
    return made


def _enum_class(path: str) -> type[enum.Enum]:
    """As :func:`_data_class`, of an enumeration's member."""
    found = _import(path)
    if isinstance(found, type) and issubclass(found, enum.Enum):
        return found
    raise NotPortable(f"{path!r} came as the class of a value, and is no enumeration")


def _data_class(path: str) -> type[Any]:
    """Only what :func:`encode` makes an object of: any other callable would run with arguments of the sender's."""
    found = _import(path)
    if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, msgspec.Struct)):
        return found
    raise NotPortable(f"{path!r} came as the class of a value, and is neither a dataclass nor a msgspec.Struct")


def _tensor_of(value: dict[str, Any]) -> torch.Tensor:
    dtype = getattr(torch, value["dtype"])
    if not value["v"]:
        return torch.empty(value["shape"], dtype=dtype, device="cpu")
    return torch.frombuffer(bytearray(value["v"]), dtype=dtype).view(value["shape"])


def _partial(func: Callable[..., Any], args: list[Any], keywords: dict[str, Any]) -> functools.partial[Any]:
    return functools.partial(func, *args, **keywords)


def _path_of(thing: Any) -> str:
    """``module:qualname``, checked to lead back to the thing in any process."""
    module, qualname = thing.__module__, thing.__qualname__
    if module == "__main__":
        raise NotPortable(
            f"{qualname!r} is of the program that was started, which no other process imports; put it into a module"
        )
    path = f"{module}:{qualname}"
    try:
        found = _import(path)
    except (ImportError, AttributeError):
        found = None
    if found is not thing:
        raise NotPortable(
            f"{qualname!r} of {module} cannot pass to another process, which could not import it by that name; define "
            "it at the top level of its module"
        )
    return path


def _import(path: str) -> Any:
    module, _, qualname = path.partition(":")
    return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))

"""What a plugin has to be: a class of ours for the embedded engine, vLLM's own where that is the host."""

from __future__ import annotations

import importlib
from typing import Any

from vllm_ext.contracts.groups import KINDS, PluginKind, is_read_by_vllm
from vllm_ext.errors import ContractError, dotted_path, innermost_cause
from vllm_ext.plan import Decision
from vllm_ext.plan.requirements import VLLM

_KIND = {kind.key: kind for kind in KINDS}


def kind_of(decision: Decision) -> PluginKind:
    """The row of the table that the decision is about."""
    return _KIND[str(decision.kind)]


def source_of(decision: Decision) -> str:
    """The plugin in a sentence: ``platform plugin 'npu' of acme 1.0``."""
    return f"{kind_of(decision).title} plugin {decision}"


def is_for_vllm(decision: Decision, host: str) -> bool:
    """Whether vLLM would be the one to use the plugin; groups of our own it does not read."""
    return host == VLLM and is_read_by_vllm(decision.group)


def contracts_of(decision: Decision, host: str) -> tuple[Any, ...]:
    """The classes of which the plugin's has to be one; for an object, the protocol that it has to keep.

    Effects: imports vLLM where it is the host.

    Raises:
        ContractError: the vLLM that is the host has none of them.
    """
    kind = kind_of(decision)
    if not (kind.vllm_contracts and is_for_vllm(decision, host)):
        return (_import(str(kind.contract)),)
    found, causes = [], []
    for path in kind.vllm_contracts:
        try:
            found.append(_import(path))
        except Exception as error:  # noqa: BLE001 - what vLLM's import may raise is not ours to list
            causes.append(error)
    if not found:
        # Not from the cause, whose text alone would be shown.
        raise ContractError(
            f"{source_of(decision)} cannot be checked: the vLLM that is the host has no "
            f"{' or '.join(kind.vllm_contracts)}: {innermost_cause(causes[0])}",
            plugin=decision.name,
        ) from None
    return tuple(found)


def check_path_for_vllm(decision: Decision, path: Any) -> None:
    """ContractError for a class path with a colon, which vLLM does not split there."""
    if isinstance(path, str) and ":" in path:
        raise ContractError(
            f"{source_of(decision)} returned {path!r}, and vLLM takes a class path with dots only: "
            f"{path.replace(':', '.')!r}",
            plugin=decision.name,
        )


def hint_of_vllm(decision: Decision, found: Any) -> str:
    """Of a class that is vLLM's and not ours, whose it is, as the rest of a sentence; empty for others."""
    paths = kind_of(decision).vllm_contracts
    bases = found.__mro__ if isinstance(found, type) else ()
    path = next((dotted_path(base) for base in bases if dotted_path(base) in paths), None)
    if path is None:
        return ""
    ours = str(kind_of(decision).contract).rpartition(".")[2]
    return (
        f"; it is one of vLLM's, by {path}, and the host 'embedded' has classes of its own: derive it from {ours} of "
        "vllm_ext, or, if it is for a vLLM, set host: vllm"
    )


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)

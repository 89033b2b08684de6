"""Picking an attention backend for a layer: which of several can serve it, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_ext.contracts.attention import AttentionBackend
from vllm_ext.contracts.call_check import takes_keyword
from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.errors import (
    ConfigError,
    ContractError,
    RegistrationError,
    VllmExtError,
    did_you_mean,
    innermost_cause,
    listing,
)
from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import AttentionSelectorConfig, DeviceCapability

_NOT_VLLMS = ("has_logits_soft_cap", "has_alibi_slopes")
"""Fields of :class:`AttentionSelectorConfig` that vLLM's ``validate_configuration()`` has no parameters for."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backend can serve a layer: it can where there are no ``reasons``."""

    member: AttentionBackendEnum
    reasons: tuple[str, ...]
    failed: bool = False
    """Whether its class cannot be had, or cannot say; that is a fault, and not a limit of what it serves."""


def load_backend(member: AttentionBackendEnum) -> type[AttentionBackend]:
    """The class that a name stands for.

    Raises:
        RegistrationError: nothing is registered for it.
        ContractError: it cannot be imported, or is no attention backend.
    """
    source = f"{member.name}, registered by {member.registered_by}"
    base: Any = AttentionBackend
    backend: type[AttentionBackend] = resolve_class(member.get_path(), base, slot="attention", source=source)
    return backend


def reasons_against(
    backend: type[AttentionBackend], selector: AttentionSelectorConfig, capability: DeviceCapability | None
) -> tuple[str, ...]:
    """Why ``backend`` cannot serve a layer; none where it can.

    Raises:
        ContractError: it lacks a method, or its ``validate_configuration()`` raises something.
    """
    name = ".".join(backend.full_cls_name())
    if missing := backend.__abstractmethods__:
        raise ContractError(f"attention backend {name} does not implement {listing(missing)}")
    try:
        asked = {**selector._asdict(), "device_capability": capability}
        left_out = {
            name: asked.pop(name) for name in _NOT_VLLMS if not takes_keyword(backend.validate_configuration, name)
        }
        reasons: Any = backend.validate_configuration(**asked)
        # One reason by itself is a text, whose letters are none.
        given = [reasons] if isinstance(reasons, str) else [*reasons]
        if left_out.get("has_logits_soft_cap") and not backend.supports_logits_soft_cap():
            given.append("a soft cap on the logits is not supported")
        if left_out.get("has_alibi_slopes") and not backend.supports_alibi_slopes():
            given.append("ALiBi slopes are not supported")
        return tuple(filter(None, given))
    except Exception as error:
        raise ContractError(
            f"attention backend {name}: validate_configuration() failed: {innermost_cause(error)}"
        ) from error


def judge(
    member: AttentionBackendEnum, selector: AttentionSelectorConfig, capability: DeviceCapability | None
) -> Verdict:
    """The verdict on what ``member`` stands for; an error of its code is a reason, too."""
    try:
        return Verdict(member, reasons_against(load_backend(member), selector, capability))
    except VllmExtError as error:
        return Verdict(member, (str(error),), failed=True)


def selected_path(member: AttentionBackendEnum) -> str:
    """Class path of what the user named.

    Raises:
        ConfigError: it is one of vLLM's names that nothing is registered for.
    """
    try:
        return member.get_path()
    except RegistrationError:
        usable = [other.name for other in AttentionBackendEnum if other.is_registered()]
        raise ConfigError(
            f"attention.backend is {member.name!r}, for which no plugin has registered a class"
            f"{did_you_mean(member.name, usable)}; registered: {listing(usable)}"
        ) from None


def first_serving(
    candidates: Sequence[AttentionBackendEnum],
    selector: AttentionSelectorConfig,
    capability: DeviceCapability | None,
    *,
    platform: str,
) -> str:
    """Class path of the first of ``candidates`` that can serve a layer; ``platform`` is for the message.

    Raises:
        ConfigError: none can; the text has the reasons of each.
    """
    verdicts = []
    for member in candidates:
        verdicts.append(judge(member, selector, capability))
        if not verdicts[-1].reasons:
            return member.get_path()
    reasons = "; ".join(f"{verdict.member.name}: {', '.join(verdict.reasons)}" for verdict in verdicts)
    raise ConfigError(f"no attention backend of platform {platform!r} can serve this model: {reasons}")

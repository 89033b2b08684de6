"""Which attention backend an engine takes for a layer, and a record of why: what was considered, and what was not."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from vllm_ext.contracts.attention import AttentionBackend
from vllm_ext.contracts.attention_selection import judge, reasons_against
from vllm_ext.contracts.platform import AttentionSelectorConfig, DeviceCapability, Platform
from vllm_ext.contracts.qualname import is_class_path
from vllm_ext.dispatch.attention_call import attention_question
from vllm_ext.dispatch.naming_code import platform_code
from vllm_ext.errors import ConfigError, RegistrationError, VllmExtError
from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum, split_path
from vllm_ext.registry.attention_backends import ATTENTION_BACKENDS
from vllm_ext.registry.scope import current_scope

logger = logging.getLogger(__name__)


class Wish(NamedTuple):
    """What ``attention_config.backend`` holds, and who put it there; ``None`` leaves the choice to the platform."""

    backend: str | None
    origin: str


@dataclass(frozen=True, slots=True)
class Considered:
    """A backend that was considered for a layer, or that is registered and was not."""

    name: str
    class_path: str
    registered_by: str
    state: Literal["chosen", "passed_over", "failed"]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The decision for one kind of layer; ``outcome`` is the backend, or the error where there is none."""

    selector: AttentionSelectorConfig
    num_heads: int
    outcome: type[AttentionBackend] | VllmExtError
    reason: str
    """Which setting, or whose choice, decided."""
    origin: str
    """Where that comes from: of a setting its file or option, else ``platform:NAME``."""
    considered: tuple[Considered, ...]
    """The chosen one first, then candidates in the platform's order, then what plugins registered besides."""

    @property
    def is_made(self) -> bool:
        """Whether there is a backend."""
        return not isinstance(self.outcome, VllmExtError)

    @property
    def backend(self) -> type[AttentionBackend]:
        """The backend; raises the error where there is none."""
        if isinstance(self.outcome, VllmExtError):
            raise self.outcome
        return self.outcome

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """For people: candidate (a class path), state, reason and origin of each that was considered."""
        for one in self.considered:
            registered = f"{one.name}, registered by {one.registered_by}"
            reason = self.reason if one.state == "chosen" else "; ".join(one.reasons)
            origin = self.origin if one.state == "chosen" else ""
            yield one.class_path, one.state, f"{reason} ({registered})" if one.name else reason, origin


class AttentionChooser:
    """Chooses for the layers of one engine. Its methods run within the engine's scope of registrations.

    Args:
        name, origin: of the platform, for messages and records.
        resolve: gives the class of a class path, given who named it for messages; checks that it is a backend.
    """

    def __init__(
        self, platform: Platform, name: str, origin: str, resolve: Callable[[Any, str], type[AttentionBackend]]
    ) -> None:
        self._platform, self._name, self._origin, self._resolve = platform, name, origin, resolve
        with platform_code(platform):
            self._ask = attention_question(platform)
        self._warned: set[str] = set()

    @cached_property
    def _capability(self) -> DeviceCapability | None:
        with platform_code(self._platform):
            return self._platform.get_device_capability(0)

    def choose(self, wish: Wish, selector: AttentionSelectorConfig, num_heads: int) -> AttentionChoice:
        """The backend for such a layer as ``wish`` and the platform will have it.

        Effects: asks the platform, imports candidates, warns of those that cannot be had.
        """
        outcome: type[AttentionBackend] | VllmExtError
        member = None
        try:
            member = self._member(wish)
            outcome = self._wanted(wish, member, selector, num_heads)
        except VllmExtError as error:
            outcome = error
        is_platforms = wish.backend is None
        return AttentionChoice(
            selector,
            num_heads,
            outcome,
            reason=f"{self._name} chose it" if is_platforms else "attention.backend names it",
            origin=self._origin if is_platforms else wish.origin,
            considered=tuple(self._considered(outcome, member, selector)),
        )

    def _member(self, wish: Wish) -> AttentionBackendEnum | None:
        """The name that the wish is, if it is one and no class path."""
        if wish.backend is None or is_class_path(wish.backend):
            return None
        try:
            return AttentionBackendEnum.parse(wish.backend)
        except RegistrationError:
            text = ATTENTION_BACKENDS.unknown(wish.backend, current_scope())
            raise ConfigError(
                f"attention.backend ({wish.origin}): {text}. A general plugin adds one with register_backend(), and a "
                "class path needs no registration"
            ) from None

    def _wanted(
        self, wish: Wish, member: AttentionBackendEnum | None, selector: AttentionSelectorConfig, num_heads: int
    ) -> type[AttentionBackend]:
        if wish.backend is not None and member is None:
            source = f"attention.backend {wish.backend!r} of the settings"
            backend = self._resolve(wish.backend, source)
        else:
            source = self._name
            with platform_code(self._platform, may_refuse=True):
                qualname = self._ask(member, selector, num_heads)
            backend = self._resolve(qualname, source)
            if member is not None and not _is_meant(backend, member):
                raise ConfigError(
                    f"attention.backend ({wish.origin}) is {member.name!r}, and {self._name} takes "
                    f"{_path(backend)} ({backend.get_name()!r}) instead; leave the choice to it with "
                    "attention.backend: auto, or name a class path, about which no platform is asked"
                )
        if reasons := reasons_against(backend, selector, self._capability):
            raise ConfigError(
                f"attention backend {backend.get_name()!r} ({source}) cannot serve this model: {'; '.join(reasons)}"
            )
        return backend

    def _considered(
        self,
        outcome: type[AttentionBackend] | VllmExtError,
        member: AttentionBackendEnum | None,
        selector: AttentionSelectorConfig,
    ) -> Iterator[Considered]:
        """The chosen backend, and a verdict on every other one."""
        scope = current_scope()
        with platform_code(self._platform):
            candidates = self._platform.get_attn_backend_candidates(selector)
        found = {one: entry for one in AttentionBackendEnum if (entry := ATTENTION_BACKENDS.peek(one, scope))}
        named = [*([] if member is None else [member]), *candidates]
        others = dict.fromkeys([*named, *(one for one, entry in found.items() if entry.owner)])
        chosen = None
        if not isinstance(outcome, VllmExtError):
            meant = [one for one in others if one in found and _is_class_at(found[one].value, outcome)]
            chosen = member if member in found else next(iter(meant), None)
            by = "" if chosen is None else found[chosen].owner_text
            yield Considered(chosen or "", _path(outcome), by, "chosen", ())
        for one in others:
            if one != chosen:
                state, reasons = self._why_not(one, one in named, selector, chosen)
                path, by = (found[one].value, found[one].owner_text) if one in found else ("", "nobody")
                yield Considered(one.name, path, by, state, reasons)
        for name, entry in ATTENTION_BACKENDS.foreign(scope):
            reasons = ("it is registered for another platform",)
            yield Considered(name, entry.value, entry.owner_text, "passed_over", reasons)

    def _why_not(
        self,
        one: AttentionBackendEnum,
        is_named: bool,
        selector: AttentionSelectorConfig,
        chosen: AttentionBackendEnum | None,
    ) -> tuple[Literal["passed_over", "failed"], tuple[str, ...]]:
        """Why ``one`` is not used; ``is_named``: by the platform as a candidate, or by the settings."""
        if not is_named:
            return "passed_over", (f"neither attention.backend nor {self._name} names it",)
        verdict = judge(one, selector, self._capability)
        if verdict.failed:
            # Where nothing could be chosen, the error says it.
            if chosen is not None and one not in self._warned:
                self._warned.add(one)
                logger.warning("attention backend %s cannot be used: %s", one.name, "; ".join(verdict.reasons))
            return "failed", verdict.reasons
        if verdict.reasons:
            return "passed_over", verdict.reasons
        return "passed_over", (f"it could serve; {chosen or 'another'} comes before it",)


def _is_meant(backend: type[AttentionBackend], member: AttentionBackendEnum) -> bool:
    """Whether the class that a platform answered with is what ``member`` stands for."""
    is_registered = member.is_registered() and _is_class_at(member.get_path(), backend)
    return is_registered or backend.get_name().casefold() == member.casefold()


def _is_class_at(class_path: str, backend: type[AttentionBackend]) -> bool:
    """Whether ``backend``, which is imported, is what is found there, maybe not in the module that defines it."""
    module, name = split_path(class_path)
    return getattr(sys.modules.get(module), name, None) is backend


def _path(backend: type[AttentionBackend]) -> str:
    return ".".join(backend.full_cls_name())

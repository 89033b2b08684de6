"""The LoRA resolver contract: from the name of an adapter to where it is.

In vLLM: ``vllm.lora.resolver``. Whoever serves a request for a model that the engine does not know asks
:meth:`LoRAResolverRegistry.resolve_lora` whether it is an adapter; so far nothing in the engine does, since it does not
run adapters yet.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from pathlib import Path

from vllm_ext.contracts.lora_request import LoRARequest
from vllm_ext.errors import (
    InvalidRequest,
    PluginLoadError,
    PluginNotFound,
    RegistrationError,
    did_you_mean,
    innermost_cause,
    listing,
)
from vllm_ext.registry.base import Registration
from vllm_ext.registry.lora_resolvers import LORA_RESOLVERS

logger = logging.getLogger(__name__)


class LoRAResolver(ABC):
    """Finds adapters in one place. vLLM: ``LoRAResolver``."""

    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter ``lora_name`` for the model, fetched if need be. vLLM: ``resolve_lora``.

        Args:
            base_model_name: the model that the engine runs.
            lora_name: what a client asked for: any text. Where it becomes part of a path, see
                :func:`adapter_directory`.

        Returns: ``None`` where this place has no such adapter; the next resolver is asked then.
        """


class _LoRAResolverRegistry:
    """``register_resolver`` for plugins, ``resolve_lora`` for servers. vLLM: ``LoRAResolverRegistry``."""

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        """Ask ``resolver`` too, after those that are registered already; a name that is known keeps its place.

        Raises:
            RegistrationError: ``resolver_name`` is no name, or ``resolver`` no :class:`LoRAResolver` instance.
        """
        if not isinstance(resolver_name, str) or not resolver_name.strip():
            raise RegistrationError(f"LoRA resolver {resolver_name!r} is not a name")
        if not isinstance(resolver, LoRAResolver):
            raise RegistrationError(
                f"LoRA resolver {resolver_name!r}: {resolver!r} is not an instance of a subclass of "
                "vllm_ext.contracts.lora_resolver.LoRAResolver"
            )
        LORA_RESOLVERS.register(resolver_name, resolver)

    def get_supported_resolvers(self) -> list[str]:
        """All names, in the order in which they are asked."""
        return list(LORA_RESOLVERS.snapshot())

    def get_resolver(self, resolver_name: str) -> LoRAResolver:
        """The resolver of that name; PluginNotFound, with those that exist, where there is none."""
        entry = LORA_RESOLVERS.find(resolver_name)
        if entry is None:
            known = self.get_supported_resolvers()
            raise PluginNotFound(
                f"no LoRA resolver {resolver_name!r} is registered{did_you_mean(resolver_name, known)}; registered: "
                f"{listing(known)}"
            )
        resolver: LoRAResolver = entry.value
        return resolver

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Ask one resolver after the other, in the order of registration; the first that knows the adapter wins. An
        extension of vLLM's contract, whose server has this loop.

        One that fails is passed over. Where no other knows the adapter, its failure is the answer, since the adapter
        may be there.

        Returns: ``None`` where all of them answer that they have no such adapter.

        Raises:
            PluginLoadError: nobody knows the adapter, and some failed; the text has each with its owner.
        """
        failures: list[str] = []
        cause: BaseException | None = None
        for name in self.get_supported_resolvers():
            if (entry := LORA_RESOLVERS.find(name)) is None:  # gone meanwhile
                continue
            try:
                found = await entry.value.resolve_lora(base_model_name, lora_name)
                if found is None:
                    continue
                if isinstance(found, LoRARequest):
                    return found
                failures.append(f"{_describe(name, entry)} answered {found!r}, which is no LoRARequest")
            except (Exception, SystemExit) as error:  # noqa: BLE001 - reported, and the next one is asked
                failures.append(f"{_describe(name, entry)} failed: {innermost_cause(error)}")
                cause = cause or error
            logger.warning("LoRA adapter %r for %r: %s", lora_name, base_model_name, failures[-1])
        if failures:
            raise PluginLoadError(
                f"LoRA adapter {lora_name!r} for {base_model_name!r} was not found: {'; '.join(failures)}"
            ) from cause
        return None


def adapter_directory(root: str | Path, lora_name: str) -> Path | None:
    """The directory ``lora_name`` within ``root``, which must be a real one; ``None`` where there is none.

    Raises:
        InvalidRequest: the name leads out of ``root``: by ``..``, as an absolute path, or over a symbolic link.
    """
    base = Path(root).resolve()
    if "\0" in lora_name or not lora_name.strip():
        raise InvalidRequest(f"LoRA adapter {lora_name!r} is not a name")
    directory = (base / lora_name).resolve()
    if directory == base or not directory.is_relative_to(base):
        raise InvalidRequest(f"LoRA adapter {lora_name!r} is not a name of a directory within {str(base)!r}")
    return directory if directory.is_dir() else None


def _describe(name: str, entry: Registration[LoRAResolver]) -> str:
    return f"resolver {name!r} ({entry.owner_text})"


LoRAResolverRegistry = _LoRAResolverRegistry()

"""The setting ``custom_ops``: its form is checked before an engine is built, its names when the ops are known."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vllm_ext.errors import ConfigError, did_you_mean, listing
from vllm_ext.registry.custom_ops import CUSTOM_OPS

logger = logging.getLogger(__name__)


def check_custom_ops(custom_ops: Sequence[str], after: str = "") -> None:
    """ConfigError unless each element is ``all``, ``none``, ``+name`` or ``-name``, and none contradicts another.

    Args:
        after: who changed the list, for the message; nobody, if empty.
    """
    holds = f"custom_ops{after and f', after {after},'} holds"
    for element in custom_ops:
        if element not in ("all", "none") and not (element[:1] in ("+", "-") and element[1:]):
            raise ConfigError(f"{holds} {element!r}; an element is all, none, +name or -name")
    for one in custom_ops:
        other = {"all": "none", "none": "all"}.get(one, f"-{one[1:]}")
        if other != one and other in custom_ops:
            raise ConfigError(f"{holds} both {one} and {other}; keep one of them")


def warn_of_unknown_ops(custom_ops: Sequence[str]) -> None:
    """A warning for each name that no op has, once the model, whose modules register its ops, is built."""
    from vllm_ext.contracts.custom_op import PluggableLayer

    known = CUSTOM_OPS.names()
    for name in dict.fromkeys(element[1:] for element in custom_ops if element[:1] in ("+", "-")):
        if name not in known:
            logger.warning(
                "custom_ops names %r, and no such op is registered%s; registered: %s",
                name,
                did_you_mean(name, known),
                listing(known),
            )
        elif issubclass(CUSTOM_OPS.get(name), PluggableLayer):
            logger.warning("custom_ops names %r, which is a whole layer: it is not turned on or off", name)

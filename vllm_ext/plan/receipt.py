"""What a process of an engine answers with, once it has applied the engine's plan."""

from __future__ import annotations

import msgspec

from vllm_ext.plan.decisions import Decision


class Receipt(msgspec.Struct, frozen=True):
    """Proof of what one process runs; plain data."""

    process: str
    """``front end``, ``engine core`` or ``worker``."""
    pid: int
    fingerprint: str
    """Of the bound plan, as this process computed it from what it found."""
    rank: int | None = None
    """Of a worker."""
    active: tuple[str, ...] = ()
    """The platform, the general plugins and the logits processors that work here, in the plan's order; see
    :func:`label_of`."""
    inactive: tuple[str, ...] = ()
    """Those that are in the plan and do not work here: ``label: why``."""
    seconds: float = 0.0
    """Taken by the plugins, to import and to run."""
    forked_from: int | None = None
    """The PID of the process that this one was forked from, and whose loaded plugins it inherited."""

    @property
    def name(self) -> str:
        """The process, for messages."""
        return self.process if self.rank is None else f"{self.process} {self.rank}"


def label_of(decision: Decision) -> str:
    """A plugin in a receipt: ``group: distribution:name``."""
    return f"{decision.group}: {decision.reference}"

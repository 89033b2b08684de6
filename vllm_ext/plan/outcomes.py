"""What became of a decision when it was carried out."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Literal

from vllm_ext.errors import Unavailable, innermost_cause, message_of, one_line
from vllm_ext.plan.decisions import Decision, DecisionKey

OutcomeState = Literal["active", "passed_over", "unavailable", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of loading one plugin in this process."""

    key: DecisionKey
    state: OutcomeState
    detail: str = ""
    """One line: the reason of a plugin that declined, the innermost cause of a failure."""
    traceback: str | None = None
    error: BaseException | None = field(default=None, compare=False, repr=False)
    """The exception itself; it stays in this process."""
    seconds: float = 0.0
    """Of the import and the call together."""
    call_seconds: float = 0.0
    """Of the call alone."""

    @classmethod
    def of_error(
        cls, decision: Decision, error: BaseException, seconds: float = 0.0, call_seconds: float = 0.0
    ) -> Outcome:
        """``unavailable`` where the plugin declined by raising :class:`Unavailable`, else ``failed``."""
        if isinstance(error, Unavailable):
            detail = one_line(message_of(error)) or "no reason given"
            return cls(decision.key, "unavailable", detail, None, error, seconds, call_seconds)
        # What is no valid Unicode, such as half a character, could not be handed to another process.
        text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode()
        return cls(decision.key, "failed", innermost_cause(error), text, error, seconds, call_seconds)

"""What a check of one plugin came to."""

from __future__ import annotations

from typing import Literal, NamedTuple

Result = Literal["pass", "fail", "warning", "skipped"]


class Row(NamedTuple):
    """One finding of one check; a check may have several."""

    check: str
    result: Result
    detail: str

"""The first check of a plugin: what its distribution declares and requires, and what the plan makes of it."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_ext.check.rows import Result, Row
from vllm_ext.discovery import ExtensionRecord, examine, find_providers
from vllm_ext.plan import Decision
from vllm_ext.plan.requirements import VLLM, mentions_vllm, unmet_on_vllm

NAME = "metadata"

_RESULTS: dict[str, Result] = {
    "selected": "pass",
    "candidate": "pass",
    "available": "pass",
    "disabled": "warning",
    "duplicate": "warning",
}
"""By status; of any other no setting can make it usable."""


def metadata_rows(decision: Decision, against: str | None) -> Iterator[Row]:
    """The plan's decision, then what is odd about the distribution, and its requirements on the vLLM in ``against``."""
    yield Row(NAME, _RESULTS.get(decision.status, "fail"), f"{decision.status}: {decision.reason}")
    for note in decision.notes:
        yield Row(NAME, "warning", note)
    if decision.record is None:
        return
    if against is not None:
        yield from _requirement_rows(decision.record, against)
    for finding in examine():
        if finding.subject == decision.distribution:
            yield Row(NAME, "warning", f"{finding.text}. {finding.remedy}")


def _requirement_rows(record: ExtensionRecord, against: str) -> Iterator[Row]:
    providers = find_providers([VLLM], [against])
    if VLLM in providers:
        if (unmet := unmet_on_vllm(record, providers)) is not None:
            yield Row(NAME, "fail", f"{record.distribution} {unmet} in {against}")
    elif mentions_vllm(record):
        # A checkout has no metadata.
        yield Row(
            NAME, "skipped", f"the vLLM in {against} does not say its version, which {record.distribution} limits"
        )

"""Plans for the plugins that a test installs."""

from __future__ import annotations

import pytest
from support.distributions import config

from vllm_ext.discovery import scan
from vllm_ext.plan import Plan, resolve


@pytest.fixture
def make_plan(plugins):
    """The plan for what the test has installed beside vllm_ext itself; settings as in ``config``."""

    def make_plan(**settings: object) -> Plan:
        plan = resolve(scan(), config(**settings))
        plan.require_valid()
        return plan

    return make_plan

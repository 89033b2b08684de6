"""The plan for what is installed now: the one way from settings to decisions, for engines and for commands."""

from __future__ import annotations

import logging

from vllm_ext.config import Config
from vllm_ext.discovery import builtin_platforms, find_providers, scan
from vllm_ext.plan import Plan, modules_in_question, resolve
from vllm_ext.plan.requirements import VLLM

logger = logging.getLogger(__name__)


def plan_installed(config: Config) -> Plan:
    """Decide on everything that is installed. Reads metadata; imports no plugin.

    What is wrong with names in the settings is in ``Plan.errors``.
    """
    records = scan()
    providers = find_providers(modules_in_question(records, config))
    if config.settings.host == VLLM and VLLM in providers:
        records = [*records, *builtin_platforms(providers[VLLM])]
    return resolve(records, config, providers)


def make_plan(config: Config) -> Plan:
    """A plan to be carried out; what is odd but not wrong is a warning.

    Raises:
        VllmExtError: PluginNotFound and the like, where a name in the settings cannot be followed.
    """
    plan = plan_installed(config)
    plan.require_valid()
    for note in plan.notes:
        logger.warning("%s", note)
    return plan

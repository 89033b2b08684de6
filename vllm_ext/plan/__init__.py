"""What will be loaded, and why: the only place where that is decided."""

from vllm_ext.plan.bound import BoundPlan
from vllm_ext.plan.class_paths import modules_in_question
from vllm_ext.plan.decisions import Decision, DecisionKey, Status
from vllm_ext.plan.handover import (
    Difference,
    HandOver,
    active_differences,
    differences,
    found_here,
    side_by_side,
    value_differences,
)
from vllm_ext.plan.io_processors import MODEL_KEY, IOProcessorChoice, ModelsWish, choose_io_processor
from vllm_ext.plan.lookup import get_decision
from vllm_ext.plan.outcomes import Outcome, OutcomeState
from vllm_ext.plan.plan import Plan
from vllm_ext.plan.receipt import Receipt, label_of
from vllm_ext.plan.resolve import resolve
from vllm_ext.plan.serial import SCHEMA_VERSION, plan_from_dict, plan_to_dict

__all__ = [
    "MODEL_KEY",
    "SCHEMA_VERSION",
    "BoundPlan",
    "Decision",
    "DecisionKey",
    "Difference",
    "HandOver",
    "IOProcessorChoice",
    "ModelsWish",
    "Outcome",
    "OutcomeState",
    "Plan",
    "Receipt",
    "Status",
    "active_differences",
    "choose_io_processor",
    "differences",
    "found_here",
    "get_decision",
    "label_of",
    "modules_in_question",
    "plan_from_dict",
    "plan_to_dict",
    "resolve",
    "side_by_side",
    "value_differences",
]

"""What will be loaded, and why: the only place where that is decided."""

from vllm_ext.plan.bound import BoundPlan
from vllm_ext.plan.decisions import Decision, DecisionKey, Status
from vllm_ext.plan.outcomes import Outcome, OutcomeState
from vllm_ext.plan.plan import Plan
from vllm_ext.plan.resolve import resolve

__all__ = ["BoundPlan", "Decision", "DecisionKey", "Outcome", "OutcomeState", "Plan", "Status", "resolve"]

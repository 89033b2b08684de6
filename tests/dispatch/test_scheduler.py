"""A scheduler of one's own: named by its class path, checked before anything is built, built as vLLM builds it."""

from __future__ import annotations

import pytest
from support.device import make_dispatcher

from vllm_ext import SchedulerInterface
from vllm_ext.contracts.scheduler import CALLED_METHODS, CONSTRUCTOR_KEYWORDS
from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.scheduling.scheduler import Scheduler
from vllm_ext.errors import ContractError, EngineError


class Mine(Scheduler):
    pass


class Unrelated:
    """Has what is called, and derives from nothing."""

    def __init__(self, **keywords):
        self.keywords = keywords


for _name in CALLED_METHODS:
    setattr(Unrelated, _name, lambda self: None)


class Half(SchedulerInterface):
    def __init__(self, **keywords): ...

    def schedule(self): ...

    def make_stats(self): ...


class OldKeywords(Scheduler):
    def __init__(self, vllm_config, kv_cache_config, structured_output_manager, log_stats=False):
        super().__init__(vllm_config, kv_cache_config)


class Breaks(Scheduler):
    def __init__(self, **keywords):
        raise RuntimeError("no such policy")


def path(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def start(model, cls):
    return EngineCore(make_dispatcher(model, engine__scheduler_cls=cls if isinstance(cls, str) else path(cls)))


def test_unless_told_otherwise_it_is_the_engines_own(random_llama):
    core = EngineCore(make_dispatcher(random_llama))

    assert type(core.scheduler) is Scheduler
    core.shutdown()


@pytest.mark.parametrize("cls", [Mine, Unrelated])
def test_a_class_path_names_another_one(random_llama, cls):
    core = start(random_llama, cls)

    assert type(core.scheduler) is cls
    core.shutdown()


def test_it_is_built_with_vllms_keywords(random_llama):
    core = start(random_llama, Unrelated)

    assert tuple(core.scheduler.keywords) == CONSTRUCTOR_KEYWORDS
    assert core.scheduler.keywords["log_stats"] is True
    core.shutdown()


def test_all_methods_that_are_missing_are_named_before_a_model_is_loaded(random_llama, tmp_path):
    with pytest.raises(ContractError) as caught:
        start(random_llama, Half)

    assert str(caught.value) == (
        f"scheduler class of setting engine.scheduler_cls: {path(Half)} does not implement: update_from_output, "
        "add_request, finish_requests, abort_all, get_num_unfinished_requests, has_finished_requests, "
        "reset_prefix_cache. The engine calls these methods of every scheduler; "
        "vllm_ext.engine.scheduling.scheduler.Scheduler has them"
    )


def test_one_that_does_not_take_the_keywords_is_refused(random_llama):
    with pytest.raises(
        ContractError, match="does not take 'include_finished_set', and does not take 'block_size', and"
    ):
        start(random_llama, OldKeywords)


def test_one_whose_constructor_fails_is_named_with_the_cause(random_llama):
    with pytest.raises(EngineError, match=r"Breaks of setting engine.scheduler_cls cannot be built: .*no such policy"):
        start(random_llama, Breaks)


@pytest.mark.parametrize("named", ["no_module.Scheduler", "json.dumps", "Scheduler"])
def test_a_path_that_leads_nowhere_is_reported_with_who_named_it(random_llama, named):
    with pytest.raises(ContractError, match=r"scheduler class of setting engine\.scheduler_cls: "):
        start(random_llama, named)


def test_the_engine_calls_nothing_else_of_a_scheduler():
    """What :class:`EngineCore` uses is what the contract has."""
    import inspect
    import re

    used = set(re.findall(r"self\.scheduler\.(\w+)", inspect.getsource(EngineCore)))

    assert used <= set(CALLED_METHODS)

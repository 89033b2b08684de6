"""What plugins import goes on being found where it was, for as long as COMPATIBILITY.md says."""

from __future__ import annotations

import importlib

import pytest

from vllm_ext.contracts.qualname import resolve_class
from vllm_ext.engine.scheduling.scheduler import Scheduler
from vllm_ext.worker.sampling.sampler import Sampler, SamplerOutput

MOVED = [
    ("vllm_ext.worker.sampler", Sampler),
    ("vllm_ext.worker.sampler", SamplerOutput),
    ("vllm_ext.engine.scheduler", Scheduler),
]


@pytest.mark.parametrize(("module", "cls"), MOVED)
def test_what_plugins_import_is_at_its_older_place_too_and_deprecated(module, cls):
    text = (
        f"^{module}.{cls.__name__} is deprecated, and vllm_ext 0.3.0 will not have it; import it from {cls.__module__}$"
    )
    with pytest.warns(DeprecationWarning, match=text) as caught:
        found = getattr(importlib.import_module(module), cls.__name__)

    assert found is cls
    assert caught[0].filename == __file__


def test_a_setting_may_name_the_older_place():
    with pytest.warns(DeprecationWarning, match="import it from vllm_ext.engine.scheduling.scheduler"):
        cls = resolve_class("vllm_ext.engine.scheduler.Scheduler", Scheduler, slot="scheduler", source="a setting")

    assert cls is Scheduler


@pytest.mark.parametrize("module", sorted({module for module, _ in MOVED}))
def test_other_names_are_not_there(module):
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'Request'"):
        _ = importlib.import_module(module).Request

"""Platforms written for older signatures of get_attn_backend_cls are asked by them, and told of today's."""

from __future__ import annotations

import warnings

import pytest
import torch

from vllm_ext.attention.backends.reference import ReferenceBackend
from vllm_ext.config import load_config
from vllm_ext.contracts.platform import AttentionSelectorConfig
from vllm_ext.dispatch.attention_call import attention_question
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.errors import ContractError
from vllm_ext.managers import PlatformBinding
from vllm_ext.plan import resolve
from vllm_ext.platforms.cpu import CpuPlatform
from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum

LAYER = AttentionSelectorConfig(64, torch.float32, "auto", 16, has_sink=True)
SELECTED = AttentionBackendEnum.SDPA


def platform(method):
    """A platform whose method returns all that it is given, by name."""
    return type("Npu", (CpuPlatform,), {"get_attn_backend_cls": classmethod(method)})()


def today(cls, selected_backend, attn_selector_config, num_heads=None):
    return dict(locals())


def without_heads(cls, selected_backend, attn_selector_config):
    return dict(locals())


def keywords(cls, selected_backend, **kwargs):
    return {"selected_backend": selected_backend, **kwargs}


def use_v1(cls, selected_backend, head_size, dtype, kv_cache_dtype, block_size, use_v1, use_mla, has_sink, use_sparse):
    return dict(locals())


def use_v1_besides(cls, selected_backend, attn_selector_config, use_v1, num_heads=None):
    return dict(locals())


def fields(cls, selected_backend, head_size, dtype, kv_cache_dtype, block_size, use_mla, attn_type="x", mine=1):
    return dict(locals())


TODAY = {"selected_backend": SELECTED, "attn_selector_config": LAYER, "num_heads": 8}
FIELDS = {"head_size": 64, "dtype": torch.float32, "kv_cache_dtype": "auto", "block_size": 16, "use_mla": False}


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (today, TODAY),
        (without_heads, {"selected_backend": SELECTED, "attn_selector_config": LAYER}),
        (keywords, TODAY),
    ],
)
def test_todays_call_is_made_without_a_word(method, given):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = attention_question(platform(method))(SELECTED, LAYER, 8)

    assert {name: value for name, value in answer.items() if name != "cls"} == given


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (use_v1, {"selected_backend": SELECTED, **FIELDS, "use_v1": True, "has_sink": True, "use_sparse": False}),
        (use_v1_besides, {**TODAY, "use_v1": True}),
        (fields, {"selected_backend": SELECTED, **FIELDS, "attn_type": "decoder", "mine": 1}),
    ],
)
def test_older_signatures_are_called_as_they_were_written(method, given):
    with pytest.warns(DeprecationWarning, match="such as use_v1 are deprecated") as caught:
        ask = attention_question(platform(method))

    assert {name: value for name, value in ask(SELECTED, LAYER, 8).items() if name != "cls"} == given
    (warning,) = caught
    assert str(warning.message).endswith(
        "Npu.get_attn_backend_cls: parameters such as use_v1 are deprecated, and vllm_ext 0.3.0 will not give them; "
        "use get_attn_backend_cls(cls, selected_backend, attn_selector_config, num_heads=None)"
    )


def test_a_parameter_that_nobody_gives_is_an_error_that_names_it():
    def unknown(cls, selected_backend, attn_selector_config, favourite_colour):
        return ""

    with pytest.raises(ContractError, match="get_attn_backend_cls requires 'favourite_colour', which is not known"):
        attention_question(platform(unknown))


def test_an_engine_on_such_a_platform_chooses_its_backend():
    class Older(CpuPlatform):
        @classmethod
        def get_attn_backend_cls(cls, selected_backend, head_size, dtype, kv_cache_dtype, block_size, use_v1, use_mla):
            assert (selected_backend, head_size, use_v1, use_mla) == (None, 64, True, False)
            return AttentionBackendEnum.REFERENCE.get_path()

    config = load_config(environ={})
    with pytest.warns(DeprecationWarning, match=r"Older\.get_attn_backend_cls: parameters such as use_v1"):
        dispatcher = Dispatcher(PlatformBinding(resolve([], config).bind(None), Older()), config)

    assert dispatcher.attention_factory(LAYER, 8) is ReferenceBackend

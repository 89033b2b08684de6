"""What a backend says it serves, and the reasons that come of it."""

from __future__ import annotations

import pytest
import torch
from support.attention_step import Setup

from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.contracts.attention import AttentionBackend, AttentionType, MultipleOf
from vllm_ext.contracts.attention_selection import reasons_against
from vllm_ext.contracts.platform import AttentionSelectorConfig, DeviceCapability

LAYER = AttentionSelectorConfig(head_size=64, dtype=torch.float32, kv_cache_dtype="auto", block_size=16)


class Plain(AttentionBackend):
    """All defaults of the contract."""

    @staticmethod
    def get_name():
        return "PLAIN"

    get_impl_cls = SDPABackend.get_impl_cls
    get_builder_cls = SDPABackend.get_builder_cls


class AsInVllm(Plain):
    """Overrides what vLLM's class has with that class's own parameters."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None):
        return AttentionBackend.get_supported_kernel_block_sizes(kv_cache_spec)

    @classmethod
    def validate_configuration(
        cls,
        head_size,
        dtype,
        kv_cache_dtype,
        block_size,
        use_mla,
        has_sink,
        use_sparse,
        use_mm_prefix,
        use_per_head_quant_scales,
        device_capability,
        attn_type,
        has_sliding_window=False,
        use_non_causal=False,
        use_batch_invariant=False,
        use_kv_connector=False,
        use_pcp=False,
        use_adaptive_verification=False,
        use_dcp=False,
        use_rswa=False,
    ):
        return super().validate_configuration(
            head_size,
            dtype,
            kv_cache_dtype,
            block_size,
            use_mla,
            has_sink,
            use_sparse,
            use_mm_prefix,
            use_per_head_quant_scales,
            device_capability,
            attn_type,
            has_sliding_window,
            use_non_causal,
        )


def reasons(backend: type[AttentionBackend], *, capability: DeviceCapability | None = None, **layer) -> list[str]:
    return backend.validate_configuration(**LAYER._replace(**layer)._asdict(), device_capability=capability)


def test_by_default_it_serves_causal_attention_of_any_size():
    assert reasons(Plain) == []
    assert reasons(Plain, head_size=3, block_size=7) == []


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ({"dtype": torch.float64}, "dtype torch.float64 is not among ['float16', 'bfloat16', 'float32']"),
        ({"kv_cache_dtype": "fp8"}, "KV cache dtype 'fp8' is not among ['auto', 'float16', 'bfloat16']"),
        ({"attn_type": AttentionType.ENCODER}, "attention type 'encoder' is not supported"),
        ({"has_sliding_window": True}, "sliding windows are not supported"),
        ({"has_sink": True}, "attention sinks are not supported"),
        ({"has_logits_soft_cap": True}, "a soft cap on the logits is not supported"),
        ({"has_alibi_slopes": True}, "ALiBi slopes are not supported"),
    ],
)
def test_what_it_has_to_say_yes_to_is_a_reason_until_it_does(layer, reason):
    assert reasons(Plain, **layer) == [reason]


def test_all_reasons_are_given_at_once():
    assert len(reasons(Plain, dtype=torch.float64, has_sink=True, attn_type="encoder_only")) == 3


@pytest.mark.parametrize(
    ("method", "answer", "layer", "reason"),
    [
        ("get_supported_head_sizes", [32, 80], {}, "head size 64 is not among [32, 80]"),
        ("get_supported_kernel_block_sizes", [32, MultipleOf(24)], {}, "block size 16 is not supported"),
        ("supports_block_size", False, {}, "block size 16 is not supported"),
        ("supports_head_size", False, {}, "head size 64 is not among []"),
        ("supports_dtype", False, {}, "dtype torch.float32 is not among ['float16', 'bfloat16', 'float32']"),
        ("supports_kv_cache_dtype", False, {}, "KV cache dtype 'auto' is not among ['auto', 'float16', 'bfloat16']"),
        ("is_mla", True, {}, "it computes multi-head latent attention (MLA) only"),
        ("supports_combination", "not on Tuesdays", {}, "not on Tuesdays"),
    ],
)
def test_each_method_that_a_backend_overrides_is_asked(method, answer, layer, reason):
    overriding = type("Overriding", (Plain,), {method: staticmethod(lambda *args: answer)})

    assert reasons(overriding, **layer) == [reason]


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        ("supports_attn_type", {"attn_type": "encoder"}),
        ("supports_sliding_window", {"has_sliding_window": True}),
        ("supports_sink", {"has_sink": True}),
        ("supports_logits_soft_cap", {"has_logits_soft_cap": True}),
        ("supports_alibi_slopes", {"has_alibi_slopes": True}),
    ],
)
def test_a_backend_that_says_yes_is_believed(method, layer):
    assert reasons(type("Willing", (Plain,), {method: staticmethod(lambda *args: True)}), **layer) == []


def test_block_sizes_are_multiples_of_what_the_kernels_take():
    sizes = type("Sizes", (Plain,), {"get_supported_kernel_block_sizes": staticmethod(lambda: [12, MultipleOf(16)])})

    assert [size for size in range(1, 50) if sizes.supports_block_size(size)] == [12, 16, 24, 32, 36, 48]
    assert sizes.supports_block_size(None), "the size is still to be chosen"


def test_dtypes_may_be_given_by_name_or_as_they_are():
    for dtypes in ((torch.float64,), ("float64",), ("torch.float64",)):
        assert reasons(type("Wide", (Plain,), {"supported_dtypes": dtypes}), dtype=torch.float64) == []


def test_no_list_of_cache_dtypes_means_any():
    assert reasons(type("Any", (Plain,), {"supported_kv_cache_dtypes": ()}), kv_cache_dtype="fp8") == []


def test_the_capability_is_judged_where_there_is_one():
    class Picky(Plain):
        @classmethod
        def supports_compute_capability(cls, capability):
            return capability >= DeviceCapability(9, 0)

    assert reasons(Picky) == []
    assert reasons(Picky, capability=DeviceCapability(9, 0)) == []
    assert "is not supported" in reasons(Picky, capability=DeviceCapability(8, 0))[0]


def test_a_combination_is_judged_with_all_that_vllm_gives():
    given = []

    class Curious(Plain):
        @classmethod
        def supports_combination(
            cls,
            head_size,
            dtype,
            kv_cache_dtype,
            block_size,
            use_mla,
            has_sink,
            use_sparse,
            use_mm_prefix,
            device_capability,
        ):
            given.append({name: value for name, value in locals().items() if name not in ("cls", "given")})

    reasons(Curious, capability=DeviceCapability(8, 6))

    (seen,) = given
    assert seen == {
        "head_size": 64,
        "dtype": torch.float32,
        "kv_cache_dtype": "auto",
        "block_size": 16,
        "use_mla": False,
        "has_sink": False,
        "use_sparse": False,
        "use_mm_prefix": False,
        "device_capability": DeviceCapability(8, 6),
    }


def test_a_backend_is_known_by_module_and_name():
    assert Plain.full_cls_name() == (__name__, "Plain")


def test_the_common_metadata_gives_lengths_by_request():
    common = Setup([(0, 5), (11, 1), (4, 6)]).common_metadata()

    assert common.batch_size() == 3
    assert common.naive_query_lens().tolist() == [5, 1, 6]
    assert common.compute_num_computed_tokens().tolist() == [0, 11, 4]
    assert common.causal


@pytest.mark.parametrize(("answer", "expected"), [("not on Tuesdays", ("not on Tuesdays",)), ("", ()), ((), ())])
def test_one_reason_may_be_given_as_it_is(answer, expected):
    frank = type("Frank", (Plain,), {"validate_configuration": classmethod(lambda cls, **layer: answer)})

    assert reasons_against(frank, LAYER, None) == expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ({}, ()),
        ({"has_sink": True, "head_size": 3}, ("attention sinks are not supported",)),
        ({"has_sliding_window": True}, ("sliding windows are not supported",)),
        ({"attn_type": "encoder_only"}, ("attention type 'encoder_only' is not supported",)),
        ({"has_logits_soft_cap": True}, ("a soft cap on the logits is not supported",)),
        ({"has_alibi_slopes": True}, ("ALiBi slopes are not supported",)),
        (
            {"has_sink": True, "has_alibi_slopes": True},
            ("attention sinks are not supported", "ALiBi slopes are not supported"),
        ),
    ],
)
def test_an_override_with_vllms_parameters_is_asked_like_any_other(layer, expected):
    assert reasons_against(AsInVllm, LAYER._replace(**layer), None) == expected


def test_what_vllm_does_not_ask_for_is_answered_by_the_methods_of_the_backend():
    able = type("Able", (AsInVllm,), {"supports_alibi_slopes": classmethod(lambda cls: True)})

    assert reasons_against(able, LAYER._replace(has_alibi_slopes=True), None) == ()

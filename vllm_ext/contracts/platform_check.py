"""What is wrong with a platform's class, found before anything of it is used: all of it at once, and by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import NamedTuple

from vllm_ext.contracts.call_check import misfit
from vllm_ext.contracts.device import PlatformEnum
from vllm_ext.contracts.platform import Platform
from vllm_ext.errors import one_line


class Problems(NamedTuple):
    """Sentences about a platform: with ``errors`` it is of no use, ``warnings`` may be meant so."""

    errors: list[str]
    warnings: list[str]


ATTRIBUTES = ("_enum", "device_type", "device_name")
METHODS = ("check_and_update_config", "get_attn_backend_cls", "get_device_name", "get_device_total_memory")
"""What every platform provides itself, unless settings make up for it."""

CALLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "log_warnings": ((), ()),
    "pre_register_and_update": ((), ()),
    "validate_environ": ((), ("hard_fail",)),
    "check_max_model_len": (("max_model_len",), ()),
    "verify_model_arch": (("model_arch",), ()),
    "verify_quantization": (("quant",), ()),
    "apply_config_platform_defaults": (("vllm_config",), ()),
    "check_and_update_config": (("vllm_config",), ()),
    "support_static_graph_mode": ((), ()),
    "get_static_graph_wrapper_cls": ((), ()),
    "support_hybrid_kv_cache": ((), ()),
    "import_kernels": ((), ()),
    "update_block_size_for_backend": (("vllm_config",), ()),
    "register_custom_kv_cache_specs": (("vllm_config",), ()),
    "get_max_output_tokens": (("prompt_len",), ()),
    "validate_request": (("processed_inputs", "params"), ()),
    "set_additional_forward_context": (
        (),
        (
            "attn_metadata",
            "vllm_config",
            "num_tokens",
            "dp_metadata",
            "num_tokens_across_dp",
            "cudagraph_runtime_mode",
            "batch_descriptor",
            "ubatch_slices",
        ),
    ),
    "get_device_communicator_cls": ((), ()),
    "get_unquantized_linear_method_cls": ((), ()),
    "get_device_name": (("device_id",), ()),
    "get_device_total_memory": (("device_id",), ()),
    "get_device_capability": (("device_id",), ()),
    "get_current_memory_usage": (("device",), ()),
    "logical_device_id_to_visible_device_id": (("device_id",), ()),
    "visible_device_id_to_physical_device_id": (("device_id",), ()),
    "device_control_id_to_physical_device_id": (("device_id",), ()),
    "device_id_to_physical_device_id": (("device_id",), ()),
    "set_device": (("device",), ()),
    "check_if_supports_dtype": (("dtype",), ()),
    "manual_seed_all": (("seed",), ()),
    "seed_everything": (("seed",), ()),
    "inference_mode": ((), ()),
    "is_pin_memory_available": ((), ()),
    "is_sleep_mode_available": ((), ()),
}
"""How each method is called: by position, and by keyword. ``get_attn_backend_cls`` is not here: older signatures of it
are the dispatcher's to deal with."""

NOT_CALLED = frozenset(
    """
    additional_env_vars can_update_inplace check_runner_kv_caches_multi_layer current_device current_stream
    device_count discover_numa_topology empty_cache enable_multi_stream_overlap Event fp8_dtype
    get_all_device_numa_nodes get_all_gpu_pci_bus_ids get_compile_backend get_default_ir_op_priority get_device_uuid
    get_device_properties get_global_graph_pool get_infinity_values get_lora_vocab_padding_size
    get_mla_prefill_backend_cls get_nixl_memory_type get_nixl_supported_devices get_pass_manager_cls
    get_piecewise_backend_cls get_punica_wrapper get_supported_vit_attn_backends
    get_vit_attn_backend graph_pool_handle import_ir_kernels is_arch_support_pdl is_async_output_supported
    is_cumem_allocator_available is_fp8_fnuz is_fully_connected is_integrated_gpu is_kv_cache_dtype_supported
    is_zen_cpu make_synced_weight_loader mem_get_info num_compute_units pass_key ray_device_key
    ray_noset_device_env_vars register_triton_kernel_overrides set_torch_compile stateless_init_device_torch_dist_pg
    Stream stream support_deep_gemm supports_fp8 supports_mx supports_structured_output supports_v1 synchronize
    use_all_gather use_custom_allreduce use_sync_weight_loader uses_host_device_handling
    """.split()  # noqa: SIM905 - a list that can be read
)
"""Names that vLLM has, or had, for platforms, and that the embedded engine never asks for: no misspelling of others."""

_IDENTITY = frozenset(name for name in vars(Platform.__mro__[1]) if name.startswith("is_") and "_available" not in name)
"""Questions for a platform's kind, which nobody overrides; a kind of one's own has a name much like them."""
_ALWAYS_IN_TORCH = ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "privateuseone")
_CLOSE = 0.86
"""Of difflib's ratio: a letter or two in a name of ten, a word like ``_cls`` in one of twenty."""


def check_platform(platform: Platform, methods: Collection[str] = METHODS) -> Problems:
    """Compare a platform with the contract; nothing of it is called, but its properties are read.

    Args:
        methods: what it has to provide itself.
    """
    misspelt = dict(_misspelt(platform))
    unset = [name for name in ATTRIBUTES if not _is_set(platform, name)]
    missing = [name for name in methods if is_inherited(platform, name)]
    errors = []
    if unset:
        errors.append(
            f"does not set {', '.join(unset)}{_instead(unset, misspelt)}; _enum has to be a PlatformEnum, "
            "device_type and device_name have to be strings"
        )
    if missing:
        errors.append(f"does not implement {', '.join(missing)}{_instead(missing, misspelt)}")
    warnings = [
        f"defines {found!r}, which is no name of the contract; did you mean {meant!r}?"
        for found, meant in misspelt.items()
        if meant not in (*unset, *missing)
    ]
    return Problems([*errors, *_device_type_errors(platform), *_form_errors(platform)], warnings)


def _is_set(platform: Platform, name: str) -> bool:
    value = getattr(platform, name, None)
    return isinstance(value, PlatformEnum) if name == "_enum" else isinstance(value, str) and bool(value)


def is_inherited(platform: Platform, name: str) -> bool:
    """Whether its class leaves a classmethod as the contract has it."""
    return getattr(getattr(type(platform), name), "__func__", None) is getattr(Platform, name).__func__


def _instead(absent: list[str], misspelt: dict[str, str]) -> str:
    """What the class has in place of what it lacks."""
    found = [f"{name!r}; did you mean {meant!r}?" for name, meant in misspelt.items() if meant in absent]
    return f" (it defines {' '.join(found)})" if found else ""


def _device_type_errors(platform: Platform) -> Iterator[str]:
    """torch has to know the device type: tensors are put there, and process groups are made for it."""
    device_type = getattr(platform, "device_type", None)
    if not isinstance(device_type, str) or device_type in ("", *_ALWAYS_IN_TORCH):
        return
    import torch

    try:
        known = torch.device(device_type).type == device_type
    except RuntimeError:
        known = False
    if not known:
        private = torch._C._get_privateuse1_backend_name()
        yield (
            f"has device_type {device_type!r}, which is no device type of torch {torch.__version__}: it takes cpu, "
            f"cuda or another of torch's own, or {private!r}, the one that is free for backends out of tree; "
            f"torch.utils.rename_privateuse1_backend({device_type!r}), before the platform's class is returned, gives "
            "that this name"
        )


def _form_errors(platform: Platform) -> Iterator[str]:
    """Attributes that are methods, methods that are not, and methods that cannot be called as the engine calls them."""
    # Of the class: the property itself may have to import torch.
    if callable(type(platform).supported_dtypes):
        yield "defines supported_dtypes as a method; it has to be a property or a list"
    for name, (positional, keywords) in CALLS.items():
        method = getattr(platform, name)
        if not callable(method):
            yield f"defines {name} as {one_line(repr(method))}; it has to be a method"
        elif complaint := misfit(method, name, positional, keywords):
            yield complaint


def _misspelt(platform: Platform) -> Iterator[tuple[str, str]]:
    """Public names of the platform's own classes that are nearly names of the contract which they leave as it is."""
    own = {name for cls in _own_classes(type(platform)) for name in vars(cls) if not name.startswith("_")}
    open_names = [name for name in _contract_names() if name not in own]
    for name in sorted(own - _contract_names() - NOT_CALLED):
        if close := difflib.get_close_matches(name, open_names, n=1, cutoff=_CLOSE):
            yield name, close[0]


def _own_classes(cls: type) -> Iterator[type]:
    """The classes that are not vllm_ext's."""
    return (base for base in cls.__mro__ if base is not object and base.__module__.partition(".")[0] != "vllm_ext")


def _contract_names() -> frozenset[str]:
    """Public names that a platform may define."""
    bases = Platform.__mro__[:2]
    names = {name for base in bases for name in (*vars(base), *base.__annotations__) if not name.startswith("_")}
    return frozenset(names - _IDENTITY)

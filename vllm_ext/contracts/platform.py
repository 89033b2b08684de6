"""The platform contract: what a hardware plugin's class answers.

Methods and attributes keep vLLM's names and defaults. An attribute that neither the platform nor torch's device module
has raises :class:`AttributeError`; vLLM answers ``None`` there, which turns a misspelt hook into a late surprise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_ext.contracts.block_sizes import find_block_size
from vllm_ext.contracts.device import CpuArchEnum, DeviceCapability, PlatformEnum
from vllm_ext.contracts.platform_device import PlatformDevice
from vllm_ext.errors import ConfigError, dotted_path, listing

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.pooling_params import PoolingParams
    from vllm_ext.contracts.sampling_params import SamplingParams
    from vllm_ext.contracts.vllm_config import VllmConfig
    from vllm_ext.registry.attention_backend_enum import AttentionBackendEnum

__all__ = [
    "AttentionSelectorConfig",
    "CpuArchEnum",
    "DeviceCapability",
    "Platform",
    "PlatformEnum",
    "UnspecifiedPlatform",
]


class Platform(PlatformDevice):
    """Base class of platforms. A subclass sets at least ``_enum``, ``device_name`` and ``device_type`` and implements
    :meth:`check_and_update_config`, :meth:`get_attn_backend_cls`, :meth:`get_device_name` and
    :meth:`get_device_total_memory`. It is instantiated without arguments. vLLM: ``Platform``. The in-tree worker asks
    for :meth:`manual_seed_all`, :meth:`get_current_memory_usage` and, where ``device_type`` is not ``cpu``,
    :meth:`set_device` besides.

    Where an engine calls a hook, in this order. In the front end: :meth:`log_warnings`,
    :meth:`pre_register_and_update`, :meth:`validate_environ`, :meth:`check_max_model_len`,
    :meth:`verify_quantization`, :meth:`apply_config_platform_defaults`, :meth:`support_static_graph_mode`,
    :meth:`verify_model_arch`, :meth:`check_and_update_config`, :meth:`support_hybrid_kv_cache`; for each request
    :meth:`get_max_output_tokens` and :meth:`validate_request`. Beside the worker: :meth:`import_kernels` before its
    class is built, :meth:`update_block_size_for_backend` after its model is loaded,
    :meth:`register_custom_kv_cache_specs` before it is asked for its KV cache.
    """

    dispatch_key: str = "CPU"
    """torch's dispatcher key for custom ops."""
    dist_backend: str = ""
    """torch.distributed backend of the device groups; empty stands for gloo."""
    simple_compile_backend: str = "inductor"
    """What :func:`torch.compile` is to use for a plugin's own helpers; this engine compiles nothing."""
    supported_quantization: tuple[str, ...] | list[str] = ()
    """Names of the quantization methods it can run; empty for no restriction."""

    # Configuration hooks ------------------------------------------------------------------------------------------

    @classmethod
    def log_warnings(cls) -> None:
        """Once per engine, when logging is configured: whatever its user should read."""

    @classmethod
    def pre_register_and_update(cls, parser: Any = None) -> None:
        """Before the configuration exists, to register what it may name. ``parser`` is vLLM's command line, and
        ``None`` here.
        """

    @classmethod
    def validate_environ(cls, hard_fail: bool) -> None:
        """Look at the environment variables that are the platform's own; an unknown one is to be warned about, or with
        ``hard_fail`` (False, as by default in vLLM) to be a ValueError. Unknown names that begin with ``VLLM_EXT_`` are
        refused before.
        """

    @classmethod
    def check_max_model_len(cls, max_model_len: int) -> int:
        """As much of ``max_model_len``, the model's own limit in tokens, as this device serves; asked when the user set
        none. A ValueError refuses the model.
        """
        return max_model_len

    @classmethod
    def verify_model_arch(cls, model_arch: str) -> None:
        """ValueError where this device cannot run ``model_arch``, a name from the model's ``config.json``. The engine
        turns it into a ConfigError with its text, and whatever else is raised into an error that names the platform.
        """

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        """Accept the quantization method of the name ``quant``, or refuse it.

        Raises:
            ConfigError: ``supported_quantization`` has others, and not this one (vLLM: ValueError, which it also is).
        """
        if cls.supported_quantization and quant not in cls.supported_quantization:
            raise ConfigError(
                f"quantization {quant!r} is not supported by platform {cls.device_name!r} ({dotted_path(cls)}); "
                f"supported: {listing(cls.supported_quantization)}"
            )

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: VllmConfig) -> None:
        """Change ``vllm_config`` where the user's values should still win. It is run twice, and the second run must
        change nothing more; what it changed is recorded with the platform as its origin.
        """

    @classmethod
    def check_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """The last word on ``vllm_config``: refuse it by a ValueError, adjust it, set ``parallel_config.worker_cls``
        where that is ``auto``. It is run twice, and the second run must change nothing more; what it changed is
        recorded with the platform as its origin. Every process of an engine runs it, and it has to come to the same
        configuration in each. What the user named stays, whatever the hook sets: a class, or a name of a backend, an
        executor, a quantization method, a load format or a tokenizer mode.
        """

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: VllmConfig) -> None:
        """Once the model is loaded, and before there is a KV cache: choose ``cache_config.block_size`` (tokens).

        By default the first multiple of it, doubling, that all attention layers of the model support, or else the
        smallest larger one that they do. A size that the user has set stays.
        """
        cache_config = vllm_config.cache_config
        layers = vllm_config.compilation_config.static_forward_context.values()
        backends = {layer.attn_backend for layer in layers if hasattr(layer, "attn_backend")}
        if cache_config.user_specified_block_size:
            return
        fitting = find_block_size(backends, cache_config.block_size)
        if fitting is not None:
            cache_config.block_size = fitting

    @classmethod
    def register_custom_kv_cache_specs(cls, vllm_config: VllmConfig) -> None:
        """Right before the workers are asked what their layers store, for platforms with kinds of their own of
        :class:`vllm_ext.contracts.kv_cache.KVCacheSpec`. ``vllm_config`` is only read.
        """

    # Requests and steps -------------------------------------------------------------------------------------------

    @classmethod
    def validate_request(cls, processed_inputs: dict[str, Any], params: SamplingParams | PoolingParams) -> None:
        """Refuse a request by raising ValueError (its text is the user's); called for each one by the front end, in
        any thread.

        Args:
            processed_inputs: ``type`` (``token``), ``prompt_token_ids`` (a list of int), and ``prompt``, the text, or
                ``None`` where there was none. Not to be changed.
            params: as they will hold for it; of a pooling model :class:`PoolingParams`. Not to be changed.
        """

    @classmethod
    def set_additional_forward_context(cls, **kwargs: Any) -> dict[str, Any]:
        """Values to add to the forward context of each step (:attr:`ForwardContext.additional`).

        Keywords: ``attn_metadata`` (by layer name; ``None`` in a profiling run), ``vllm_config``, ``num_tokens``,
        ``cudagraph_runtime_mode`` (``FULL`` where the step may be replayed, else ``NONE``), ``batch_descriptor``
        (``None`` for steps that may not be replayed); and of vLLM's, which are ``None`` here: ``dp_metadata``,
        ``num_tokens_across_dp``, ``ubatch_slices``.
        """
        return {}

    # What it can do -----------------------------------------------------------------------------------------------

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Whether its worker takes layers with different sliding windows, or with and without one, in several KV cache
        groups; otherwise they come in one group, whose spec has no window.
        """
        return False

    @classmethod
    def support_static_graph_mode(cls) -> bool:
        """Whether steps may be replayed as static graphs, by its worker or by :meth:`get_static_graph_wrapper_cls`.
        Otherwise, and where ``engine.enforce_eager`` is set, ``compilation_config.cudagraph_mode`` is ``NONE``.
        """
        return False

    @classmethod
    def get_static_graph_wrapper_cls(cls) -> str | None:
        """Class path of an :class:`~vllm_ext.contracts.static_graph.AbstractStaticGraphWrapper` that the in-tree worker
        puts before the model; ``None`` where there is none.
        """
        return None

    @classmethod
    def opaque_attention_op(cls) -> bool:
        """Whether compiled models call attention as an op of torch. This engine compiles no model and does not ask."""
        return False

    @classmethod
    def use_custom_op_collectives(cls) -> bool:
        """Whether compiled models call collectives as ops of torch. This engine compiles no model and does not ask."""
        return False

    @classmethod
    def import_kernels(cls) -> None:
        """Import the platform's compiled kernels; called in the worker's process, before the worker's class is
        resolved. vLLM's default imports its own; those of vllm_ext come with its cpu platform.
        """

    # Implementations, by class path -------------------------------------------------------------------------------

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: AttentionBackendEnum | None,
        attn_selector_config: AttentionSelectorConfig,
        num_heads: int | None = None,
    ) -> str:
        """Class path of the attention backend for such a layer.

        Asked once for each kind of layer, while the model is built. The older signature with ``use_v1`` is deprecated
        and still called.

        Args:
            selected_backend: what ``attention.backend`` of the settings names, which has to be used or refused;
                ``None`` where the platform chooses.
            attn_selector_config: the layer.
            num_heads: its query heads on this rank.

        Raises:
            ConfigError: none of its backends can serve the layer, for a reason that the text gives (vLLM: ValueError,
                which it also is).
        """
        return ""

    @classmethod
    def get_attn_backend_candidates(cls, attn_selector_config: AttentionSelectorConfig) -> list[AttentionBackendEnum]:
        """Backends that :meth:`get_attn_backend_cls` chooses from for such a layer, best first; for ``explain``, which
        says why each was passed over. An extension of vLLM's contract.
        """
        return []

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        """Class path of the communicator."""
        return "vllm_ext.contracts.communicator.DeviceCommunicatorBase"

    @classmethod
    def get_unquantized_linear_method_cls(cls) -> str:
        """Class path of how dense weights are laid out and multiplied; an extension of vLLM's contract."""
        return "vllm_ext.layers.linear_method.UnquantizedLinearMethod"

    def __getattr__(self, name: str) -> Any:
        """Device functions such as ``synchronize`` come from torch's module for the device type."""
        # A device type that is not set, or whose property fails, ends up here itself.
        device_type = None if name == "device_type" else getattr(self, "device_type", None)
        if device_type and not name.startswith("_"):
            import torch

            module = getattr(torch, device_type, None)
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"platform {type(self).__qualname__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<platform {dotted_path(type(self))}>"


class AttentionSelectorConfig(NamedTuple):
    """What a platform and a backend are told about a layer before a backend is picked."""

    head_size: int
    dtype: torch.dtype
    kv_cache_dtype: str
    """``auto``: that of key and value."""
    block_size: int | None
    """Tokens in a block; ``None`` while the platform may still choose, since the user did not."""
    use_mla: bool = False
    has_sink: bool = False
    use_sparse: bool = False
    use_mm_prefix: bool = False
    use_per_head_quant_scales: bool = False
    attn_type: str = "decoder"
    has_sliding_window: bool = False
    use_non_causal: bool = False
    use_batch_invariant: bool = False
    use_kv_connector: bool = False
    use_pcp: bool = False
    use_adaptive_verification: bool = False
    use_dcp: bool = False
    use_rswa: bool = False
    """The fields ``use_…`` are vLLM's; layers of this engine leave them at their defaults."""
    has_logits_soft_cap: bool = False
    """An extension of vLLM's contract."""
    has_alibi_slopes: bool = False
    """An extension of vLLM's contract."""


class UnspecifiedPlatform(Platform):
    """Stands where no platform activated; an engine cannot be built on it."""

    _enum = PlatformEnum.UNSPECIFIED
    device_name = ""
    device_type = ""

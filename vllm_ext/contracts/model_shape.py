"""What a worker of a platform asks of the model's configuration: sizes, and which kinds of model it is none of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from vllm_ext.contracts.vllm_config import HFConfig, ParallelConfig


class ModelShape:
    """Part of :class:`vllm_ext.contracts.vllm_config.ModelConfig`, with vLLM's names.

    Sizes are what the keys of ``config.json`` say; a key that a model class takes for granted, where the file does not
    have it, is not known here. CheckpointError where a size is missing or no positive number.
    """

    hf_config: HFConfig

    use_mla: ClassVar[bool] = False
    is_deepseek_mla: ClassVar[bool] = False
    is_hybrid: ClassVar[bool] = False
    is_attention_free: ClassVar[bool] = False
    has_inner_state: ClassVar[bool] = False
    is_encoder_decoder: ClassVar[bool] = False
    is_multimodal_model: ClassVar[bool] = False
    is_multimodal_raw_input_only_model: ClassVar[bool] = False
    is_mm_prefix_lm: ClassVar[bool] = False
    uses_mrope: ClassVar[bool] = False
    uses_xdrope_dim: ClassVar[int] = 0
    uses_alibi: ClassVar[bool] = False
    multimodal_config: ClassVar[Any] = None
    attention_chunk_size: ClassVar[int | None] = None
    """There are no such models here: each has attention over the tokens of one text, with a KV cache or without."""
    trust_remote_code: ClassVar[bool] = False
    revision: ClassVar[str | None] = None
    tokenizer_revision: ClassVar[str | None] = None
    """A model is a directory, whose code is never run."""
    enable_prompt_embeds: ClassVar[bool] = False
    skip_tokenizer_init: ClassVar[bool] = False
    disable_cascade_attn: ClassVar[bool] = True
    disable_sliding_window: ClassVar[bool] = False
    max_logprobs: ClassVar[int] = -1
    """As in vLLM no limit; the only one is the vocabulary."""

    @property
    def hf_text_config(self) -> HFConfig:
        """The model's configuration: every model is one of texts."""
        return self.hf_config

    @property
    def architecture(self) -> str:
        """Name of the first model class; empty where ``config.json`` has none."""
        return next(iter(self.hf_config.get("architectures", [])), "")

    def get_vocab_size(self) -> int:
        """Token ids that the model knows."""
        return self.hf_config.positive_int("vocab_size")

    def get_hidden_size(self) -> int:
        """Numbers in the state of a token."""
        return self.hf_config.positive_int("hidden_size", self.hf_config.get("n_embd"))

    def get_total_num_attention_heads(self) -> int:
        """Query heads of a layer, over all ranks."""
        return self.hf_config.positive_int("num_attention_heads", self.hf_config.get("n_head"))

    def get_num_attention_heads(self, parallel_config: ParallelConfig) -> int:
        """Query heads of a layer, on one rank."""
        return self.get_total_num_attention_heads() // parallel_config.tensor_parallel_size

    def get_total_num_kv_heads(self) -> int:
        """KV heads of a layer, over all ranks; as many as query heads where nothing is said."""
        return self.hf_config.positive_int("num_key_value_heads", self.get_total_num_attention_heads())

    def get_num_kv_heads(self, parallel_config: ParallelConfig) -> int:
        """KV heads of a layer, on one rank; where there are fewer than ranks, some ranks have the same."""
        return max(1, self.get_total_num_kv_heads() // parallel_config.tensor_parallel_size)

    def get_head_size(self) -> int:
        """Numbers in a key, or a value, of one head."""
        return self.hf_config.positive_int("head_dim", self.get_hidden_size() // self.get_total_num_attention_heads())

    def get_total_num_hidden_layers(self) -> int:
        """Layers of the model."""
        return self.hf_config.positive_int("num_hidden_layers", self.hf_config.get("n_layer"))

    def get_num_layers(self, parallel_config: ParallelConfig) -> int:
        """Layers on one rank, which are all."""
        return self.get_total_num_hidden_layers()

    def get_num_layers_by_block_type(
        self,
        parallel_config: ParallelConfig,
        block_type: Literal["attention", "linear_attention", "mamba"] = "attention",
    ) -> int:
        """Layers of a kind on one rank: every layer has attention."""
        return self.get_num_layers(parallel_config) if block_type == "attention" else 0

    def get_sliding_window(self) -> int | None:
        """Tokens that a layer with a window sees; ``None`` where no layer has one."""
        if self.hf_config.get("use_sliding_window", True) is False:
            return None
        window: int | None = self.hf_config.get("sliding_window")
        return window

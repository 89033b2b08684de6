"""What vLLM has a name for and the settings of the engine have none: what to use here, or why there is nothing."""

from __future__ import annotations

_ADAPTERS = "nothing: the engine applies no adapters; merge one into the weights"
_MULTI_MODAL = "nothing: the engine takes text alone"
_NO_HUB = "nothing: a model is a directory of this machine"
_NO_REMOTE_CODE = "nothing: code in a model directory is never run; a plugin registers what is not built in"
_ELSEWHERE = "which LLM takes in overrides"

INSTEAD = {
    "attention_backend": f"'attention.backend', {_ELSEWHERE}",
    "compilation_config": f"'custom_ops' for its custom_ops, {_ELSEWHERE}; models are not compiled",
    "cpu_offload_gb": "nothing: the weights are where the platform computes",
    "data_parallel_size": "nothing: make one engine for each copy of the model",
    "distributed_executor_backend": "'engine.executor': uniproc or multiproc",
    "download_dir": _NO_HUB,
    "enable_chunked_prefill": "nothing: long prompts are always computed in chunks of 'engine.max_num_batched_tokens'",
    "enable_lora": _ADAPTERS,
    "generation_config": "nothing: generation_config.json of the model directory is followed",
    "gpu_memory_utilization": "'engine.kv_cache_memory', in bytes; by itself it takes what fits and can be used",
    "hf_config_path": "nothing: change config.json in the model directory",
    "hf_overrides": "nothing: change config.json in the model directory",
    "hf_token": _NO_HUB,
    "kv_cache_dtype": "nothing: the KV cache has the dtype of 'engine.dtype'",
    "kv_cache_memory_bytes": "'engine.kv_cache_memory'",
    "limit_mm_per_prompt": _MULTI_MODAL,
    "max_logprobs": "nothing: a request may ask for as many as there are",
    "max_loras": _ADAPTERS,
    "max_lora_rank": _ADAPTERS,
    "mm_processor_kwargs": _MULTI_MODAL,
    "override_generation_config": "nothing: give SamplingParams, or change the directory's generation_config.json",
    "pipeline_parallel_size": "nothing: layers are shared, by 'engine.tensor_parallel_size'",
    "pooler_config": "'engine.pooling_type' for its pooling_type; the rest is read in the model directory",
    "profiler_config": f"'profiler.torch_profiler_dir', {_ELSEWHERE}",
    "revision": _NO_HUB,
    "skip_tokenizer_init": "nothing: the tokenizer is always read; detokenize=False in SamplingParams makes no text",
    "speculative_config": "nothing: tokens are not speculated",
    "swap_space": "nothing: requests that are preempted are computed again, and nothing is swapped",
    "tokenizer": "nothing: it is that of the model directory; 'engine.tokenizer_mode' names another way to read it",
    "tokenizer_revision": _NO_HUB,
    "trust_remote_code": _NO_REMOTE_CODE,
    "worker_cls": f"'worker.cls', {_ELSEWHERE}",
    "worker_extension_cls": f"'worker.extension_cls', {_ELSEWHERE}",
}
"""By the name of an argument of vLLM's ``LLM``: settings by their path in quotes, or ``nothing`` and the reason."""

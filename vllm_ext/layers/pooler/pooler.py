"""The poolers of in-tree models: a method and a head for each task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vllm_ext.contracts.pooler import PoolingMetadata
from vllm_ext.contracts.pooling_params import PoolingParams, PoolingTask
from vllm_ext.contracts.vllm_config import PoolerConfig, VllmConfig
from vllm_ext.errors import ConfigError
from vllm_ext.layers.pooler.heads import ClassifierHead, EmbeddingHead
from vllm_ext.layers.pooler.methods import POOLING_METHODS


class DispatchPooler(nn.Module):
    """One task for prompts and one for tokens, with the same head. vLLM: ``DispatchPooler``.

    Args:
        prompt_task: by the method of ``config``.
        token_task: of every token; ``plugin`` stands for ``prompt_task``.
    """

    def __init__(
        self,
        config: PoolerConfig,
        head: EmbeddingHead | ClassifierHead,
        prompt_task: PoolingTask,
        token_task: PoolingTask,
    ) -> None:
        super().__init__()
        self.head = head
        self._method = POOLING_METHODS[config.pooling_type]
        self._reads_last_only = config.pooling_type == "LAST"
        self._prompt_task, self._token_task = prompt_task, token_task

    @classmethod
    def for_embedding(cls, vllm_config: VllmConfig) -> DispatchPooler:
        """Tasks ``embed`` and ``token_embed``."""
        config = pooler_config_of(vllm_config)
        hidden_size = vllm_config.model_config.hf_config.get("hidden_size")
        return cls(config, EmbeddingHead(config, hidden_size), "embed", "token_embed")

    @classmethod
    def for_classification(
        cls, vllm_config: VllmConfig, classifier: Callable[[torch.Tensor], torch.Tensor]
    ) -> DispatchPooler:
        """Tasks ``classify`` and ``token_classify``; ``classifier`` takes pooled states ``[rows, hidden]``."""
        config = pooler_config_of(vllm_config)
        head = ClassifierHead(classifier, config, vllm_config.model_config)
        return cls(config, head, "classify", "token_classify")

    def get_supported_tasks(self) -> frozenset[PoolingTask]:
        return frozenset({self._prompt_task, self._token_task, "plugin"})

    def needs_all_tokens(self, task: PoolingTask) -> bool:
        return task == self._token_task or not self._reads_last_only

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        params = pooling_metadata.pooling_params
        by_token = [each.task == self._token_task for each in params]
        of_tokens = self._of_tokens(hidden_states, pooling_metadata) if any(by_token) else []
        if all(by_token):
            return of_tokens
        of_prompts = self._of_prompts(hidden_states, pooling_metadata)
        if not of_tokens:
            return of_prompts
        return [of_tokens[i] if is_token else of_prompts[i] for i, is_token in enumerate(by_token)]

    def _of_prompts(self, hidden_states: torch.Tensor, metadata: PoolingMetadata) -> list[torch.Tensor]:
        rows = self.head.project(self._method(hidden_states, metadata))
        if _are_alike(metadata.pooling_params):
            return list(self.head.finish(rows, metadata.pooling_params[0]))
        return [self.head.finish(rows[i : i + 1], each)[0] for i, each in enumerate(metadata.pooling_params)]

    def _of_tokens(self, hidden_states: torch.Tensor, metadata: PoolingMetadata) -> list[torch.Tensor]:
        parts = self.head.project(hidden_states).split(metadata.query_start_loc.diff().tolist())
        return [self.head.finish(rows, each) for rows, each in zip(parts, metadata.pooling_params, strict=True)]


def _are_alike(params: list[PoolingParams]) -> bool:
    return all(each is params[0] or each == params[0] for each in params)


def pooler_config_of(vllm_config: VllmConfig) -> PoolerConfig:
    """The engine's; ConfigError where the engine is not for pooling."""
    config = vllm_config.model_config.pooler_config
    if config is None:
        raise ConfigError(
            f"model {vllm_config.model_config.model!r} is a pooling model, and engine.runner is 'generate'; set it to "
            "'pooling'"
        )
    return config

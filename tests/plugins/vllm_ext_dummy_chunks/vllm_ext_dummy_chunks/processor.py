"""Documents in, chunks with offsets out."""

from typing import NamedTuple

from vllm_ext import IOProcessor
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext_dummy_chunks.splitter import Span, split


class Chunk(NamedTuple):
    """Characters of one of the documents, which count from 0."""

    document: int
    span: Span


class DocumentChunks(IOProcessor[list[str], list[dict]]):
    """A text, or a list of texts, becomes a list of ``{"document", "start", "end", "embedding"}``: of each part of each
    document the characters from ``start`` to ``end``, and its vector.

    A part has as many tokens as the option ``chunk_tokens`` says, by default as the model can take.
    """

    def __init__(self, vllm_config, renderer):
        super().__init__(vllm_config, renderer)
        options = vllm_config.additional_config.get("document_chunks", {})
        self.chunk_tokens = min(options.get("chunk_tokens", 1 << 30), vllm_config.model_config.max_model_len)
        self.chunks: dict[str, list[Chunk]] = {}

    def parse_data(self, data: object) -> list[str]:
        documents = [data] if isinstance(data, str) else data
        if not isinstance(documents, list) or not all(isinstance(text, str) for text in documents):
            raise ValueError(f"the data is {type(data).__name__}; it takes a text or a list of texts")
        if not any(text.strip() for text in documents):
            raise ValueError("there is no text in it")
        return documents

    def merge_pooling_params(self, params: PoolingParams | None = None) -> PoolingParams:
        params = PoolingParams() if params is None else params
        params.task = "embed"
        return params

    def pre_process(self, prompt: list[str], request_id: str | None = None, **kwargs) -> list[str]:
        self.chunks[request_id] = [
            Chunk(number, span) for number, text in enumerate(prompt) for span in split(text, self._fits)
        ]
        return [prompt[chunk.document][slice(*chunk.span)] for chunk in self.chunks[request_id]]

    def post_process(self, outputs, request_id: str | None = None, **kwargs) -> list[dict]:
        return [
            {
                "document": chunk.document,
                "start": chunk.span.start,
                "end": chunk.span.end,
                "embedding": output.outputs.data.tolist(),
            }
            for chunk, output in zip(self.chunks.pop(request_id), outputs, strict=True)
        ]

    def discard(self, request_id: str) -> None:
        self.chunks.pop(request_id, None)

    def _fits(self, text: str) -> bool:
        return len(self.renderer.tokenizer.encode(text)) <= self.chunk_tokens

"""How a model runner calls a model: with what, and what it takes for hidden states and logits."""

from __future__ import annotations

from typing import Any

import torch

from vllm_ext.contracts.call_check import takes_keyword
from vllm_ext.errors import ContractError, EngineError, dotted_path, one_line


def compute_logits(model: Any, vocab_size: int | None, hidden_states: torch.Tensor) -> torch.Tensor:
    """Logits ``[rows, vocabulary]`` of hidden states ``[rows, hidden size]``.

    Args:
        vocab_size: tokens of the model, of which each has to have a logit; ``None`` where its ``config.json`` does not
            say.

    Raises:
        ContractError: the model gave none, or of another number of rows or tokens. A rank that has no logits would go
            on without the token that the others have, a part of the vocabulary be taken for the whole, and nobody would
            know.
        EngineError: the model pools.
    """
    if not hasattr(model, "compute_logits"):
        raise EngineError("the model pools, and has no compute_logits()")
    logits = model.compute_logits(hidden_states)
    if (
        isinstance(logits, torch.Tensor)
        and logits.shape[:1] == hidden_states.shape[:1]
        and (vocab_size is None or logits.shape[1:] == (vocab_size,))
    ):
        return logits
    returned = f"a tensor {list(logits.shape)}" if isinstance(logits, torch.Tensor) else repr(logits)
    num_rows = len(hidden_states)
    raise ContractError(
        f"compute_logits() of model {dotted_path(type(model))} returned {returned} for {num_rows} rows of hidden "
        f"states; it has to give the logits of all {num_rows} rows on every rank{_of_all_tokens(vocab_size)}"
    )


def _of_all_tokens(vocab_size: int | None) -> str:
    if vocab_size is None:
        return ""
    return (
        f", one for each of the {vocab_size} tokens that config.json has as vocab_size: all parts of a head that is "
        "split, and without what a padded one has beyond them"
    )


def check_hidden_states(model: Any, hidden_states: Any, num_rows: int) -> torch.Tensor:
    """What the model's :meth:`forward` returned.

    Raises:
        ContractError: it is no tensor of ``num_rows`` rows. Others would be taken for the rows of other requests.
    """
    is_tensor = isinstance(hidden_states, torch.Tensor)
    if is_tensor and hidden_states.shape[:1] == (num_rows,):
        return hidden_states
    returned = f"a tensor {list(hidden_states.shape)}, and not {num_rows} rows" if is_tensor else repr(hidden_states)
    raise ContractError(
        f"forward() of model {dotted_path(type(model))} returned {one_line(returned)}; it has to return the "
        "hidden states, one tensor [tokens, hidden size]"
    )


def selects_rows(model: Any) -> bool:
    """Whether the model's ``forward`` takes ``logits_indices``, and returns the hidden states of these tokens alone.

    A subclass of such a model may define ``forward`` as vLLM calls it, without them.
    """
    return bool(getattr(model, "supports_logits_indices", False)) and takes_keyword(model.forward, "logits_indices")

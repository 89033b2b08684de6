"""How a layer binds a collective of its group once, for all steps."""

from __future__ import annotations

from torch import nn

from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.contracts.first_result import bind_checked
from vllm_ext.errors import dotted_path


def bind_collective(layer: nn.Module, attribute: str, communicator: DeviceCommunicatorBase, method: str) -> None:
    """Let ``attribute`` of ``layer`` be the communicator's ``method``, whose first result is checked.

    A collective that works in place returns its tensor all the same: ContractError, with its class, where it does not.
    """
    function, cls = getattr(communicator, method), type(communicator)
    if getattr(cls, method, None) is getattr(DeviceCommunicatorBase, method):
        vars(layer)[attribute] = function
        return
    fault = (
        f"{method}() of communicator {dotted_path(cls)} returned None; it has to return the result on every rank, be "
        "it the tensor that it was given"
    )
    bind_checked(layer, [attribute], function, fault)

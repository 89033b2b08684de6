"""What tells of the server itself: whether it works, what it serves, and how much."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.responses import Response

from vllm_ext._version import __version__
from vllm_ext.errors import RefusedByServer
from vllm_ext.server.answers import encode, json_response
from vllm_ext.server.service import Service


class ModelCard(msgspec.Struct):
    """A model, by the name that requests have to give."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int


class ModelList(msgspec.Struct):
    object: str
    data: list[ModelCard]


async def health(service: Service) -> Response:
    """200 and nothing while the engine can serve, 503 once it cannot."""
    await service.engine.check_health()
    return Response()


async def version(_: Service) -> Response:
    """The version of vllm_ext."""
    return json_response(200, encode({"version": __version__}))


async def models(service: Service) -> Response:
    """The one model that is served."""
    name = service.model_name
    card = ModelCard(name, "model", service.created, "vllm-ext", name, None, service.model_config.max_model_len)
    return json_response(200, encode(ModelList("list", [card])))


async def metrics(service: Service) -> Response:
    """What the stat logger ``prometheus`` has measured, in Prometheus's format."""
    if not service.has_metrics:
        raise RefusedByServer(
            "there are no metrics, since the stat logger 'prometheus' is not on: it takes the extra 'prometheus' of "
            "vllm-ext, and the settings under plugins.stat_logger may leave it out",
            status=404,
        )
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

    text = await service.in_thread(partial(generate_latest, REGISTRY))
    return Response(text, media_type=CONTENT_TYPE_LATEST)

"""The application: the routes, and the shape of every error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from vllm_ext._version import __version__
from vllm_ext.errors import VllmExtError
from vllm_ext.server import chat, completions, monitoring, pooling, tokenizing
from vllm_ext.server.answers import json_response
from vllm_ext.server.decoding import RequestBody, read_request
from vllm_ext.server.errors import error_body, phrase_of
from vllm_ext.server.protocol import ChatRequest, CompletionRequest
from vllm_ext.server.service import Service


class Route(NamedTuple):
    """One of the server's own."""

    path: str
    handler: Callable[..., Awaitable[Response]]
    """Called with the service, and with the request's body where it has one."""
    body: type[RequestBody] | None = None
    """What is sent; without a body the method is GET."""


ROUTES = (
    Route("/health", monitoring.health),
    Route("/version", monitoring.version),
    Route("/metrics", monitoring.metrics),
    Route("/v1/models", monitoring.models),
    Route("/v1/completions", completions.create_completion, CompletionRequest),
    Route("/v1/chat/completions", chat.create_chat_completion, ChatRequest),
    Route("/v1/embeddings", pooling.create_embeddings, pooling.EmbeddingRequest),
    Route("/classify", pooling.classify, pooling.ClassifyRequest),
    Route("/pooling", pooling.pool, pooling.PoolingRequest),
    Route("/tokenize", tokenizing.tokenize, tokenizing.TokenizeRequest),
    Route("/detokenize", tokenizing.detokenize, tokenizing.DetokenizeRequest),
)
"""The server's own; a plugin's route with the same method and path takes the place of one."""


def build_app(service: Service) -> FastAPI:
    """The application with the server's own routes; ``state`` has what vLLM's has for plugins."""
    # Without pages of documentation, which would load their scripts from elsewhere.
    app = FastAPI(title="vllm-ext", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    for route in ROUTES:
        methods = ["GET" if route.body is None else "POST"]
        app.add_api_route(route.path, _endpoint(service, route), methods=methods, name=route.handler.__name__)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_misfit)
    app.add_exception_handler(VllmExtError, _answerer(service))
    app.add_exception_handler(Exception, _answerer(service))
    app.state.engine_client = service.engine
    app.state.vllm_config = service.engine.vllm_config
    return app


def _endpoint(service: Service, route: Route) -> Callable[[Request], Awaitable[Response]]:
    """The handler as FastAPI calls it."""

    async def endpoint(http: Request) -> Response:
        try:
            if route.body is None:
                return await route.handler(service)
            request = await read_request(http, route.body)
            service.check_model(request)
            return await route.handler(service, request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody gets it
        except Exception as error:  # noqa: BLE001 - logged, and the client gets an answer
            return json_response(*service.error(error, route.body))

    return endpoint


def _answerer(service: Service) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(_: Request, error: Exception) -> Response:
        return json_response(*service.error(error))

    return answer


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """What a router or a plugin's route raises."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code in (404, 405) and message == phrase_of(error.status_code).title():
        message = f"there is no {request.method} {request.url.path}"
    return json_response(error.status_code, error_body(error.status_code, message), error.headers)


async def _answer_misfit(_: Request, error: Exception) -> Response:
    """What FastAPI says of a request to a plugin's route."""
    assert isinstance(error, RequestValidationError)
    # Its own text has the file of the route, too, which is no business of clients.
    misfits = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
    return json_response(400, error_body(400, "; ".join(misfits)))

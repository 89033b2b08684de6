"""The endpoint contract (vLLM's ``vllm.plugins.endpoint_plugins``): routes of a plugin in the HTTP server."""

from __future__ import annotations

from typing import Any, Protocol


class EndpointPlugin(Protocol):
    """What the factory in ``vllm.endpoint_plugins`` returns; any object with these members. vLLM:
    ``EndpointPlugin``.

    ``vllm-ext serve`` loads those that the settings name, in their order. What one raises ends the start with its name,
    unless it was merely found (``plugins.endpoint.enabled: all``): then nothing of it is left in the application.
    """

    name: str
    """For the log."""
    required_tasks: tuple[str, ...] | None
    """Tasks of which the model has to support one; ``None`` where any will do."""

    def attach_router(self, app: Any) -> None:
        """Add routes to the FastAPI application ``app``; called once, after the server's own routes are there.

        A route with the method and the path of one of the server's own takes its place. One that another plugin has is
        an error.
        """
        ...

    async def init_state(self, engine_client: Any | None, state: Any, args: Any) -> None:
        """Prepare ``state``, the application's, before the first request, in the event loop of the server.

        Args:
            engine_client: the server's ``AsyncLLM``, which ``state.engine_client`` is, too; ``None`` without an engine.
            state: ``request.app.state`` of every route; ``state.vllm_config`` is the engine's configuration.
            args: a namespace with ``host``, ``port``, ``model`` and ``served_model_name`` (a list), as vLLM has them.
        """
        ...

"""The endpoint contract (vLLM's ``vllm.plugins.endpoint_plugins``): routes of a plugin in the HTTP server."""

from __future__ import annotations

from typing import Any, Protocol


class EndpointPlugin(Protocol):
    """What the factory in ``vllm.endpoint_plugins`` returns; any object with these members. vLLM:
    ``EndpointPlugin``.
    """

    name: str
    required_tasks: tuple[str, ...] | None
    """Tasks of which the model has to support one; ``None`` where any will do."""

    def attach_router(self, app: Any) -> None:
        """Add routes to the FastAPI application ``app``; called once, after the server's own routes are there."""
        ...

    async def init_state(self, engine_client: Any | None, state: Any, args: Any) -> None:
        """Prepare ``state``, the application's, before the first request; without an engine the client is ``None``."""
        ...

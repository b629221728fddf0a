"""What the tools ask of the service behind them, and how its errors are told to an agent.

Wrong arguments, refused values and systems that are down come back as an `isError` result with one readable text that
says how to call again; anything unexpected is masked (FastMCP's setting) and logged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Mapping
from typing import Annotated, Any, Protocol, TypeVar

from fastmcp.exceptions import ToolError, ValidationError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from mcp_types import CallToolRequestParams, ToolAnnotations
from pydantic import Field
from pydantic import ValidationError as PydanticValidationError

from shoal.errors import ConfigurationError, ShoalError, TransientError
from shoal.mcp.budget import TOKENS_DEFAULT, TOKENS_MAX, TOKENS_MIN
from shoal.mcp.results import Compact

READ = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
WRITE = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

Word = Annotated[str | None, Field(max_length=200)]
Message = Annotated[str | None, Field(max_length=4000)]
Cursor = Annotated[str | None, Field(max_length=4000, description="next_cursor of the answer before.")]
Tokens = Annotated[
    int, Field(ge=TOKENS_MIN, le=TOKENS_MAX, description="The answer is no longer than this; the rest has a cursor.")
]
TOKENS = TOKENS_DEFAULT

T = TypeVar("T")


class ServiceProtocol(Protocol):
    """What the tools need; bodies are those of REST (contracts 3). Raises ShoalError."""

    async def scrapes_search(self, parameters: Mapping[str, Any]) -> dict[str, Any]: ...
    async def collection_search(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]: ...
    async def similar_apis(self, spec: Mapping[str, Any], limit: int) -> dict[str, Any]: ...
    async def fix_patterns(self, parameters: Mapping[str, Any]) -> dict[str, Any]: ...
    async def report_fix(
        self, report: Mapping[str, Any], *, idempotency_key: str | None, actor: str
    ) -> dict[str, Any]: ...
    async def mark_fix(
        self, fix_id: str, mark: Mapping[str, Any], *, idempotency_key: str | None, actor: str
    ) -> dict[str, Any]: ...
    async def ingest_status(self) -> dict[str, Any]: ...

    async def collections(self) -> list[dict[str, Any]]:
        """[{name, embedding_model, documents, chunks, indexed_through, contents, columns}]."""
        ...

    async def document_chunks(self, collection: str, document_id: str, first: int, limit: int) -> dict[str, Any]:
        """{document, content_schema, chunks: [{chunk_index, heading, text, char_start, char_end}], freshness}, of the
        current version; `chunks` from `first` on."""
        ...

    async def similar_documents(self, collection: str, document_id: str, limit: int) -> list[dict[str, Any]]:
        """As `similar_apis`, to what is known of a stored document."""
        ...


class CallAgain(ToolError):
    """The service refused what it was asked: the caller must ask differently."""


def as_object(value: object) -> object:
    """Agents often send an object as a string of JSON: take both."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


async def asked(answer: Awaitable[T]) -> T:
    """The service's answer; its errors as ones that the caller may read."""
    try:
        return await answer
    except TransientError as error:
        wait = f"Try again in {error.retry_after_s:g} s." if error.retry_after_s else "Try again shortly."
        raise ToolError(f"{error}. {wait}", log_level=logging.WARNING) from None
    except ConfigurationError as error:
        raise ToolError(f"Shoal itself is misconfigured: {error}", log_level=logging.ERROR) from None
    except ShoalError as error:
        raise CallAgain(str(error), log_level=logging.INFO) from None


def answer(result: Compact) -> ToolResult:
    """As structured content (what Claude Code shows) and as the same JSON in text (what others do)."""
    return ToolResult(structured_content=result.shown())


class HelpfulErrors(Middleware):
    """Turns what a caller can mend into one readable text: wrong arguments, refused values, systems that are down."""

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[Any, Any]
    ) -> Any:
        try:
            return await call_next(context)
        except ValidationError as error:
            cause = error.__cause__
            complaints = (
                [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in cause.errors(include_url=False)[:5]]
                if isinstance(cause, PydanticValidationError)
                else [str(error)]
            )
            raise ToolError(await self._say(context, complaints)) from None
        except CallAgain as error:
            raise ToolError(await self._say(context, [str(error)])) from None

    @staticmethod
    async def _say(context: MiddlewareContext[CallToolRequestParams], complaints: list[str]) -> str:
        name = context.message.name
        assert context.fastmcp_context is not None
        tool = await context.fastmcp_context.fastmcp.get_tool(name)
        schema: dict[str, Any] = tool.parameters if tool else {}
        required = set(schema.get("required", ()))
        arguments = ", ".join(n if n in required else f"{n}?" for n in schema.get("properties", {}))
        return "\n".join(
            ["Wrong arguments:", *(f"- {c[:300]}" for c in complaints), f"Call again as {name}({arguments})."]
        )

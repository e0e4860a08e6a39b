"""Ask a Dynamo worker over its request plane: one question, one answer.

    router -> worker    path, headers, question, and where to answer
    router <- worker    acknowledgement
    router <- worker    a connection of its own: who answers, prologue, answer, end

Dynamo's Python client cannot be used: it drops answers that are not wrapped as generated tokens
are. Messages on both connections are two parts, a JSON header and a msgpack body, after three
8-byte numbers: their lengths, and a checksum that is 0 where there is none.

The way back is open to whoever knows a number drawn for this question, on the address that the
worker is reached from, until the answer is there. Plain TCP only (`DYN_REQUEST_PLANE=tcp`).

Sources: ai-dynamo 1.6.1 on the wire; github.com/ai-dynamo/dynamo, `lib/runtime/src/pipeline/
network`.
"""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

_LENGTHS = struct.Struct(">QQQ")
_MAX_PART_BYTES = 2**30
_Reader = asyncio.StreamReader


async def ask(target: str, question: Mapping[str, object], timeout_s: float) -> bytes:
    """Return the answer's body, msgpack.

    Args:
        target: `host:port/path`, as discovery has it.
        question: what the path takes.
        timeout_s: for all of it.

    Raises:
        OSError: the worker cannot be reached; TimeoutError among them.
        ValueError: it answers with an error, or not as it should.
    """
    address, _, path = target.partition("/")
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                here = writer.get_extra_info("sockname")[0]
                async with _way_back(here, timeout_s) as (back, subject, answer):
                    writer.write(_request(path, question, back, subject))
                    refusal = await reader.readexactly(
                        *struct.unpack(">I", await reader.readexactly(4))
                    )
                    if refusal:
                        raise ValueError(f"{target}: {refusal[:200]!r}")
                    return await answer
            finally:
                writer.close()
    except TimeoutError as error:
        raise TimeoutError(f"{target}: no answer within {timeout_s:g} s") from error
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError(f"{target}: ended before its answer") from error


def _request(path: str, question: Mapping[str, object], back: str, subject: str) -> bytes:
    way_back = {
        "address": back,
        "subject": subject,
        "context": subject,
        "stream_type": "response",
    }
    control = {
        "id": subject,
        "request_type": "single_in",
        "response_type": "many_out",
        "payload_codec": "msgpack",
        "connection_info": {"transport": "tcp_server", "info": json.dumps(way_back)},
    }
    header, body = json.dumps(control).encode(), msgspec.msgpack.encode(question)
    payload = _LENGTHS.pack(len(header), len(body), 0) + header + body
    headers = json.dumps({"request-id": subject}).encode()
    return b"".join(
        (
            struct.pack(">H", len(path)) + path.encode(),
            struct.pack(">H", len(headers)) + headers,
            struct.pack(">I", len(payload)) + payload,
        )
    )


@asynccontextmanager
async def _way_back(
    host: str, timeout_s: float
) -> AsyncIterator[tuple[str, str, asyncio.Future[bytes]]]:
    """Listen for the worker: address, number of the question, and the answer to come."""
    subject = str(uuid.uuid4())
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def answered(reader: _Reader, writer: asyncio.StreamWriter) -> None:
        is_worker = False
        try:
            async with asyncio.timeout(timeout_s):
                header, _ = await _read_parts(reader)
                is_worker = json.loads(header).get("subject") == subject
                if not is_worker:
                    return
                prologue, _ = await _read_parts(reader)
                error = json.loads(prologue).get("error")
                if error is not None:
                    raise ValueError(f"the worker answers {error}")
                _, body = await _read_parts(reader)
            if not answer.done():
                answer.set_result(body)
        except (OSError, ValueError, AttributeError, asyncio.IncompleteReadError) as error:
            if is_worker and not answer.done():
                answer.set_exception(ValueError(f"no answer: {error!r}"))
        finally:
            writer.close()

    server = await asyncio.start_server(answered, host, 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), subject, answer
    finally:
        server.close()
        if not answer.cancel() and not answer.cancelled():
            answer.exception()  # told already, or of no interest any more


async def _read_parts(reader: _Reader) -> tuple[bytes, bytes]:
    header, body, _ = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
    if max(header, body) > _MAX_PART_BYTES:
        raise ValueError(f"a message of {header} and {body} bytes")
    return await reader.readexactly(header), await reader.readexactly(body)

"""An OpenAI request body becomes the token ids that its engine will compute.

The router hashes these ids to find cached prefixes and counts them to predict latency; the mock
engine counts them too. A body is the parsed JSON of `/v1/completions` (`prompt`) or of
`/v1/chat/completions` (`messages`). Chat templates are rendered as transformers renders them, in
jinja2's sandbox. Images and other parts that are not text count as no tokens.

`Tokenizer.prompt_ids` calls `encode_batch_fast`, which releases the GIL; `encode` does not. 8,192
tokens (32,000 characters) take 5 ms and a hop to a thread and back 0.05 ms, so `prompt_ids_async`
uses a thread from 4,000 characters (0.6 ms) on (benchmarks/bench_router_kv.py measures both).
`WordTokenizer` keeps the GIL, so no thread would help it.

Whatever is wrong with the body is a ValueError whose text can be the `message` of an OpenAI error.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import numpy as np
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hrl_planner.errors import RouterError

THREAD_FROM_CHARS = 4_000  # from here a thread costs less than the wait it spares the event loop
_MAX_ID = 2**32 - 1

Body = Mapping[str, Any]


class PromptTokenizer(Protocol):
    """What turns a request body into token ids."""

    def prompt_ids(self, body: Body) -> list[int]:
        """Return the ids of the prompt; ValueError says what is wrong with the body."""
        ...


async def prompt_ids_async(
    tokenizer: PromptTokenizer, body: Body, executor: Executor | None = None
) -> list[int]:
    """`tokenizer.prompt_ids(body)`, in a thread where the prompt is long enough to be felt."""
    if isinstance(tokenizer, WordTokenizer) or prompt_chars(body) < THREAD_FROM_CHARS:
        return tokenizer.prompt_ids(body)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(executor, tokenizer.prompt_ids, body)


# --- The body -------------------------------------------------------------------------------------


def is_chat(body: Body) -> bool:
    """Whether the body holds messages rather than a prompt."""
    has_messages = body.get("messages") is not None
    if has_messages and body.get("prompt") is not None:
        raise ValueError("Only one of 'messages' and 'prompt' may be given.")
    return has_messages


def given_ids(body: Body) -> list[int] | None:
    """The prompt's token ids where the client has sent ids, otherwise None."""
    prompt = _single_prompt(body)
    return prompt if isinstance(prompt, list) else None


def prompt_text(body: Body) -> str:
    r"""The prompt as plain text, for those who have no template: equal prefixes stay equal.

    A chat is its tools as JSON, a line `role: content` per message, and `assistant:` for the answer
    to come. Ids that the client has sent are written in decimal.
    """
    if not is_chat(body):
        prompt = _single_prompt(body)
        return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
    lines = [json.dumps(body["tools"], ensure_ascii=False)] if body.get("tools") else []
    for message in _messages(body):
        calls = message.get("tool_calls")
        tail = json.dumps(calls, ensure_ascii=False) if calls else ""
        lines.append(f"{message['role']}: {_plain(message.get('content'))}{tail}")
    return "\n".join((*lines, "assistant:"))


def prompt_chars(body: Body) -> int:
    """About how many characters must be tokenised; 0 for ids and for what is malformed."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return len(prompt)
    messages = body.get("messages")
    if not isinstance(messages, list):
        return 0
    contents = (m.get("content") for m in messages if isinstance(m, dict))
    # The text of parts may be short beside their number; counting each as long errs to a thread.
    return sum(len(c) if isinstance(c, str) else THREAD_FROM_CHARS for c in contents if c)


def _single_prompt(body: Body) -> str | list[int]:
    prompt = body.get("prompt")
    if prompt is None:
        raise ValueError("Missing required parameter: 'prompt'.")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise ValueError(
                f"Invalid value for 'prompt': one prompt per request, but got {len(prompt)}."
            )
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt or set(map(type, prompt)) != {int}:
        raise ValueError(
            "Invalid type for 'prompt': expected a string, a non-empty array of token ids, or an "
            "array of one of these."
        )
    if min(prompt) < 0 or max(prompt) > _MAX_ID:
        raise ValueError(f"Invalid value for 'prompt': token ids lie in 0..{_MAX_ID}.")
    return prompt


def _messages(body: Body) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("Invalid type for 'messages': expected a non-empty array of objects.")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"Missing required parameter: 'messages[{i}].role'.")
        content = message.get("content")
        if content is not None and not isinstance(content, str) and not _are_parts(content):
            raise ValueError(
                f"Invalid type for 'messages[{i}].content': expected a string or an array of "
                "content parts."
            )
    return messages


def _are_parts(content: object) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text", ""), str) for part in content
    )


def _plain(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content if "text" in part)


# --- A model's own tokenizer ----------------------------------------------------------------------


class Tokenizer:
    """A `tokenizer.json` and, where the model has one, its chat template.

    Without a template a chat is tokenised as `prompt_text` writes it. `add_special_tokens`,
    `add_generation_prompt`, `chat_template_kwargs`, `tools` and `documents` of the body are
    honoured as vLLM honours them; a template in the body is not.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template: ChatTemplate | None = None) -> None:
        # Limits that a tokenizer.json may carry are for training batches, not for prompts.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template = template

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a `tokenizer.json`, or a model directory that has one."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RouterError(f"{file}: cannot read the tokenizer: {error}") from error
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise RouterError(f"{file}: not a tokenizer.json: {error}") from error
        return cls(backend, ChatTemplate.load(path) if path.is_dir() else None)

    def prompt_ids(self, body: Body) -> list[int]:
        """Return the ids of the prompt; ValueError says what is wrong with the body."""
        if not is_chat(body):
            prompt = _single_prompt(body)
            if not isinstance(prompt, str):
                return prompt
            return self._encode(prompt, bool(body.get("add_special_tokens", True)))
        special = bool(body.get("add_special_tokens", False))
        if self._template is None:
            return self._encode(prompt_text(body), special)
        return self._encode(self._template.render(body), special)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            encodings = self._backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        except (UnicodeEncodeError, TypeError) as error:  # a lone surrogate
            raise ValueError("Invalid prompt: the text is not valid Unicode.") from error
        ids: list[int] = encodings[0].ids
        return ids


class WordTokenizer:
    """One token per word: what mock engine and router share where no model's tokenizer is at hand.

    The id of a word is its CRC-32 modulo the vocabulary, so every process gives the same.
    """

    def __init__(self, vocabulary: int = 32_000) -> None:
        self._vocabulary = vocabulary

    def prompt_ids(self, body: Body) -> list[int]:
        """Return one id per whitespace-separated word of `prompt_text`; given ids stay."""
        ids = None if is_chat(body) else given_ids(body)
        if ids is not None:
            return ids
        try:
            words = prompt_text(body).encode().split()
        except UnicodeEncodeError as error:
            raise ValueError("Invalid prompt: the text is not valid Unicode.") from error
        checksums = np.fromiter(map(zlib.crc32, words), np.int64, len(words))
        of_words: list[int] = (checksums % self._vocabulary).tolist()
        return of_words


# --- Chat templates -------------------------------------------------------------------------------


class ChatTemplate:
    """A model's jinja2 template over messages, rendered as `apply_chat_template` does.

    Args:
        source: text of the template.
        tool_source: another template for bodies with tools; `source` where empty.
        special_tokens: `bos_token`, `eos_token` and the like, known to the template by name.
    """

    def __init__(
        self, source: str, tool_source: str = "", special_tokens: Mapping[str, str] | None = None
    ) -> None:
        env = _environment()
        self._plain = env.from_string(source)
        self._tools = env.from_string(tool_source) if tool_source else self._plain
        self._wants_parts = _iterates_content(env, source)
        self._special = dict(special_tokens or {})

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate | None:
        """Read the template of a model directory; None where the model has none."""
        config_file = directory / "tokenizer_config.json"
        jinja_file = directory / "chat_template.jinja"
        config = _read_config(config_file)
        named = config.get("chat_template")
        origin = config_file
        if jinja_file.exists():
            named, origin = jinja_file.read_text(encoding="utf-8"), jinja_file
        try:
            if isinstance(named, list):
                named = {entry["name"]: entry["template"] for entry in named}
            elif not isinstance(named, dict):
                named = {"default": named}
            if named.get("default") is None:
                return None
            return cls(named["default"], named.get("tool_use", ""), _special_tokens(config))
        except jinja2.TemplateSyntaxError as error:
            raise RouterError(
                f"{origin}: chat_template, line {error.lineno}: {error.message}"
            ) from error
        except (KeyError, TypeError) as error:
            raise RouterError(
                f"{origin}: chat_template: expected text or a list of name and template"
            ) from error

    def render(self, body: Body) -> str:
        """Return the text that the model is given for the body's messages."""
        messages = [self._message(m, i) for i, m in enumerate(_messages(body))]
        extra = body.get("chat_template_kwargs") or {}
        if not isinstance(extra, dict):
            raise ValueError("Invalid type for 'chat_template_kwargs': expected an object.")
        tools = body.get("tools") or None
        variables = {
            **self._special,
            "tools": tools,
            "documents": body.get("documents"),
            "add_generation_prompt": body.get("add_generation_prompt", True),
            **extra,
            "messages": messages,
        }
        try:
            return (self._tools if tools else self._plain).render(variables)
        except Exception as error:  # a template is a program: it fails as it likes
            raise ValueError(f"The chat template refused 'messages': {error}") from error

    def _message(self, message: dict[str, Any], i: int) -> dict[str, Any]:
        content = message.get("content")
        out = dict(message)
        if isinstance(content, list) and not self._wants_parts:
            out["content"] = _plain(content)
        elif isinstance(content, str) and self._wants_parts:
            out["content"] = [{"type": "text", "text": content}]
        if message.get("tool_calls"):
            out["tool_calls"] = _parsed_calls(message["tool_calls"], i)
        return out


def _parsed_calls(calls: Any, i: int) -> list[dict[str, Any]]:
    """Arguments of tool calls as objects: a client sends JSON text, templates expect objects."""
    parsed = []
    try:
        for call in calls if isinstance(calls, list) else [calls]:
            function = dict(call["function"])
            if isinstance(function.get("arguments"), str):
                function["arguments"] = json.loads(function["arguments"] or "{}")
            parsed.append({**call, "function": function})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"Invalid value for 'messages[{i}].tool_calls': expected functions with JSON arguments."
        ) from error
    return parsed


def _read_config(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RouterError(f"{file}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise RouterError(f"{file}: expected an object, got {type(config).__name__}")
    return config


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`*_token` entries; each is text or an object that holds the text as `content`."""
    tokens = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    return env


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML and sorts keys: other tokens than the engine's.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _iterates_content(env: ImmutableSandboxedEnvironment, source: str) -> bool:
    """Whether the template loops over the parts of a message's content, as vLLM decides it."""

    def is_content(node: jinja2.nodes.Node) -> bool:
        if isinstance(node, jinja2.nodes.Getattr):
            return node.attr == "content"
        if isinstance(node, jinja2.nodes.Getitem):
            return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
        return False

    loops = env.parse(source).find_all(jinja2.nodes.For)
    return any(is_content(loop.iter) for loop in loops)

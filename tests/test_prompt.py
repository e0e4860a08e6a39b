"""Request bodies become the token ids that an engine computes, or a reason why not."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from hrl_planner.errors import RouterError
from hrl_planner.prompt import (
    THREAD_FROM_CHARS,
    ChatTemplate,
    Tokenizer,
    WordTokenizer,
    prompt_ids_async,
    prompt_text,
)

WORDS = ["<s>", "user:", "assistant:", "system:", "one", "two", "three", "?"]


def write_tokenizer(directory: Path, **config: Any) -> Path:
    """A word-level tokenizer that puts `<s>` in front, with limits as training leaves them."""
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(directory / "tokenizer.json"))
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def words_of(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


# --- Completions ----------------------------------------------------------------------------------


def test_a_prompt_is_tokenised_with_special_tokens_and_without_limits(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path) / "tokenizer.json")
    for prompt in ("one two three one two", ["one two three one two"]):
        assert words_of(tokenizer.prompt_ids({"prompt": prompt})) == "<s> one two three one two"
    assert words_of(tokenizer.prompt_ids({"prompt": "one", "add_special_tokens": False})) == "one"


@pytest.mark.parametrize("prompt", [[3, 1, 2], [[3, 1, 2]]])
def test_given_ids_stay_as_they_are(tmp_path: Path, prompt: Any) -> None:
    for tokenizer in (Tokenizer.load(write_tokenizer(tmp_path)), WordTokenizer()):
        assert tokenizer.prompt_ids({"prompt": prompt}) == [3, 1, 2]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "Missing required parameter: 'prompt'"),
        ({"prompt": ["one", "two"]}, "one prompt per request, but got 2"),
        ({"prompt": []}, "expected a string"),
        ({"prompt": [1, True]}, "expected a string"),
        ({"prompt": [1, 2.5]}, "expected a string"),
        ({"prompt": 7}, "expected a string"),
        ({"prompt": [-1]}, "token ids lie in"),
        ({"prompt": [2**32]}, "token ids lie in"),
        ({"prompt": "\ud800"}, "not valid Unicode"),
        ({"prompt": "one", "messages": [{"role": "user"}]}, "Only one of"),
        ({"messages": []}, "'messages'"),
        ({"messages": "one"}, "'messages'"),
        ({"messages": [{"content": "one"}]}, r"'messages\[0\].role'"),
        ({"messages": [{"role": "user", "content": 3}]}, r"'messages\[0\].content'"),
        ({"messages": [{"role": "user", "content": [{"text": 3}]}]}, r"'messages\[0\].content'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not valid Unicode"),
    ],
)
def test_a_bad_body_is_told_its_reason(tmp_path: Path, body: dict[str, Any], reason: str) -> None:
    for tokenizer in (Tokenizer.load(write_tokenizer(tmp_path)), WordTokenizer()):
        with pytest.raises(ValueError, match=reason):
            tokenizer.prompt_ids(body)


# --- Chat -----------------------------------------------------------------------------------------

CHAT = {
    "messages": [
        {"role": "system", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "image_url"}]},
    ]
}
# The blocks, trimming, loop controls and filters that published templates use.
TEMPLATE = """{{- bos_token }}
{%- if tools %}
[tools]{{ tools | tojson }}[/tools]
{% endif %}
{% for message in messages %}
    {% if message.role == 'skip' %}
        {% continue %}
    {% endif %}
    {% if message.tool_calls %}
<call>{{ message.tool_calls[0].function.arguments.city }}</call>
    {% else %}
<{{ message['role'] }}>{{ message['content'] | trim }}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
{% generation %}
<assistant>
{% endgeneration %}
{% endif %}"""


def test_a_chat_without_a_template_is_plain_lines(tmp_path: Path) -> None:
    assert prompt_text(CHAT) == "system: one\nuser: two\nassistant:"
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path))
    assert words_of(tokenizer.prompt_ids(CHAT)) == "system: one user: two assistant:"


def test_a_chat_that_goes_on_keeps_its_prefix() -> None:
    more = [{"role": "assistant", "content": "three"}, {"role": "user", "content": "one"}]
    longer = {"messages": CHAT["messages"] + more}
    assert prompt_text(longer).startswith(prompt_text(CHAT))
    words = WordTokenizer()
    ids = words.prompt_ids(CHAT)
    assert words.prompt_ids(longer)[: len(ids)] == ids


def test_a_template_is_rendered_as_transformers_does() -> None:
    template = ChatTemplate(TEMPLATE, special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    messages = [
        {"role": "system", "content": " be <kind> "},
        {"role": "skip", "content": "not this"},
        *CHAT["messages"][1:],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Bern"}'}}],
        },
    ]
    tools = [{"type": "function", "function": {"name": "f", "text": "<é>"}}]
    assert template.render({"messages": messages, "tools": tools}) == (
        '<s>[tools][{"type": "function", "function": {"name": "f", "text": "<é>"}}][/tools]\n'
        "<system>be <kind></s>\n"
        "<user>two</s>\n"
        "<call>Bern</call>\n"
        "<assistant>\n"
    )
    without = {"messages": CHAT["messages"][:1], "add_generation_prompt": False}
    assert template.render(without) == "<s><system>one</s>\n"


def test_a_template_that_loops_over_parts_is_given_parts() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% for part in m['content'] %}[{{ part.text }}]{% endfor %}"
        "{% endfor %}"
    )
    messages = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
    ]
    assert template.render({"messages": messages}) == "[one][two]"


def test_what_the_body_gives_the_template_cannot_replace_the_messages() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ mood }}")
    body = {**CHAT, "chat_template_kwargs": {"mood": "!", "messages": [{"content": "forged"}]}}
    assert template.render(body) == "one!"
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        template.render({**CHAT, "chat_template_kwargs": 3})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_a_template_that_refuses_is_the_bodys_fault(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ChatTemplate(source).render(CHAT)


def test_arguments_that_are_not_json_are_refused() -> None:
    call = {"function": {"name": "f", "arguments": "{"}}
    body = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    with pytest.raises(ValueError, match=r"'messages\[0\].tool_calls'"):
        ChatTemplate("x").render(body)


def test_the_date_is_at_hand_for_templates() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') | int > 2000 }}").render(CHAT) == "True"


# --- Files ----------------------------------------------------------------------------------------


def test_a_model_directory_brings_its_template_and_its_special_tokens(tmp_path: Path) -> None:
    source = "{{ bos_token }} {% for m in messages %}{{ m.content }} {% endfor %}"
    write_tokenizer(tmp_path, chat_template=source, bos_token={"content": "<s>"})
    tokenizer = Tokenizer.load(tmp_path)
    # The template has put the first token there: no second one.
    assert words_of(tokenizer.prompt_ids(CHAT)) == "<s> one two"


def test_a_jinja_file_goes_before_the_config_and_tools_may_have_a_template(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, chat_template=named))
    assert words_of(tokenizer.prompt_ids(CHAT)) == "one"
    assert words_of(tokenizer.prompt_ids({**CHAT, "tools": [{"type": "function"}]})) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert words_of(Tokenizer.load(tmp_path).prompt_ids(CHAT)) == "three"


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match=r"tokenizer\.json: cannot read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RouterError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.load(tmp_path)
    for template in (3, "{% if", [{"name": "default"}]):
        write_tokenizer(tmp_path, chat_template=template)
        with pytest.raises(RouterError, match=r"tokenizer_config\.json: chat_template"):
            Tokenizer.load(tmp_path)
    for text in ("[]", "{"):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(RouterError, match=r"tokenizer_config\.json"):
            Tokenizer.load(tmp_path)


# --- Words, threads -------------------------------------------------------------------------------


def test_words_have_the_same_ids_in_every_process() -> None:
    # CRC-32 of "123456789" is the check value of its definition.
    assert WordTokenizer(2**32).prompt_ids({"prompt": " 123456789\n"}) == [0xCBF43926]
    ids = WordTokenizer(100).prompt_ids({"prompt": "one two one"})
    assert ids[0] == ids[2] != ids[1]
    assert max(ids) < 100


class WhereAmI:
    """Notes the thread that it is called in."""

    def __init__(self) -> None:
        self.thread = ""

    def prompt_ids(self, body: Any) -> list[int]:
        self.thread = threading.current_thread().name
        return [1]


@pytest.mark.parametrize(
    ("body", "in_thread"),
    [
        ({"prompt": "x" * (THREAD_FROM_CHARS - 1)}, False),
        ({"prompt": ["x" * THREAD_FROM_CHARS]}, True),
        ({"prompt": [1] * 100_000}, False),
        ({"messages": [{"role": "user", "content": "x" * THREAD_FROM_CHARS}]}, True),
        ({"messages": [{"role": "user", "content": "x"}]}, False),
        ({"messages": 3}, False),
    ],
)
def test_long_text_is_tokenised_in_a_thread(body: dict[str, Any], in_thread: bool) -> None:
    where = WhereAmI()
    with ThreadPoolExecutor(1, thread_name_prefix="pool") as pool:
        assert asyncio.run(prompt_ids_async(where, body, pool)) == [1]
    assert where.thread.startswith("pool") is in_thread

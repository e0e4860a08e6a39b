from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrl_planner.errors import RouterError, SpecError
from hrl_planner.router.classes import Classes
from hrl_planner.router.config import RouterConfig
from hrl_planner.router.request import CHAT, COMPLETIONS, Call, Refusal, Wish, read
from hrl_planner.spec import ClusterSpec
from tests.routers import aggregated_spec

MODELS = ("m",)


def ask(path: str = COMPLETIONS, **body: object) -> Wish:
    return read(Call("id", path, json.dumps(body).encode()), MODELS)


def test_a_body_says_prompt_limit_streaming_and_slo_as_dynamo_has_them():
    wish = ask(
        model="m",
        prompt=[1, 2, 3],
        max_tokens=7,
        stream=True,
        nvext={"router": {"ttft_target": 100, "itl_target": 10}, "agent_hints": {"priority": 50}},
    )
    assert wish == Wish({"prompt": [1, 2, 3]}, True, 7, 0.1, 0.01, 50.0)


def test_a_chat_body_keeps_its_messages_and_tools():
    message = {"role": "user", "content": "hello"}
    wish = ask(CHAT, messages=[message], max_completion_tokens=5)
    assert wish.prompt == {"messages": [message], "tools": None}
    assert (wish.stream, wish.max_tokens, wish.ttft_s) == (False, 5, None)


@pytest.mark.parametrize(
    ("raw", "status", "reason"),
    [
        (b"", 400, "bad_body"),
        (b"{", 400, "bad_body"),
        (b"[1, 2]", 400, "bad_body"),
        (b'{"prompt": 5}', 400, "bad_body"),
        (b'{"prompt": ""}', 400, "bad_body"),
        (b'{"prompt": "a", "max_tokens": "many"}', 400, "bad_body"),
        (b'{"prompt": "a", "max_tokens": 0}', 400, "bad_body"),
        (b'{"prompt": "a", "max_tokens": -3}', 400, "bad_body"),
        (b'{"prompt": "a", "max_completion_tokens": 0, "max_tokens": 5}', 400, "bad_body"),
        (b'{"prompt": "\xff"}', 400, "bad_body"),
        (b'{"prompt": ' + b"[" * 2000 + b"]" * 2000 + b"}", 400, "bad_body"),
        (b'{"prompt": "a", "x": ' + b"[" * 2000 + b"]" * 2000 + b"}", 400, "bad_body"),
        (b'{"prompt": "a", "nvext": {"router": {"ttft_target": -1}}}', 400, "bad_body"),
        (b'{"prompt": "a", "nvext": {"router": {"itl_target": 1e30}}}', 400, "bad_body"),
        (b'{"prompt": "a", "nvext": {"router": {"ttft_target": 1e-322}}}', 400, "bad_body"),
        (b'{"prompt": "a", "model": "other"}', 404, "model_not_found"),
        (b"\xff\xfe\x00", 400, "bad_body"),
    ],
)
def test_a_bad_body_is_refused_in_openais_words(raw: bytes, status: int, reason: str):
    with pytest.raises(Refusal) as refused:
        read(Call("id", COMPLETIONS, raw), MODELS)
    assert refused.value.status == status
    error = json.loads(refused.value.body())["error"]
    assert error["code"] == reason and error["message"]


@pytest.mark.parametrize("limit", [-(10**9), 0, 2**31 + 1, 10**23])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "osl"])
def test_a_limit_that_no_answer_can_have_is_refused_by_field_and_value(field: str, limit: int):
    hint = {"nvext": {"agent_hints": {"osl": limit}}}
    with pytest.raises(Refusal, match=rf"{field} must be from 1 to 2147483648, got {limit}$"):
        ask(prompt="a", **hint if field == "osl" else {field: limit})


def test_a_hint_of_the_length_is_taken_where_there_is_no_limit():
    hint = {"agent_hints": {"osl": 30}}
    assert ask(prompt="a", nvext=hint).max_tokens == 30
    assert ask(prompt="a", max_tokens=7, nvext=hint).max_tokens == 7


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(raw: bytes):
    try:
        read(Call("id", COMPLETIONS, raw), MODELS)
    except Refusal as refusal:
        assert 400 <= refusal.status < 500


def wish(max_tokens: int | None = None, ttft_s: float | None = None) -> Wish:
    return Wish({"prompt": "a"}, True, max_tokens, ttft_s, None, 0.0)


def test_the_class_comes_from_header_then_targets_then_lengths_then_share():
    reference = Classes(ClusterSpec.load("reference"))
    assert reference.names[reference.of("batch", wish(), 10).class_id] == "batch"
    assert reference.names[reference.of("", wish(ttft_s=12.0), 10).class_id] == "batch"
    assert reference.names[reference.of("", wish(ttft_s=0.4), 9000).class_id] == "interactive"
    assert reference.names[reference.of("", wish(), 9000).class_id] == "agentic"
    assert reference.names[reference.of("", wish(), 10).class_id] == "interactive"


def test_targets_of_the_body_replace_those_of_the_class_one_by_one():
    targets = Classes(aggregated_spec()).of("loose", wish(ttft_s=1.5), 10)
    assert (targets.ttft_s, targets.itl_s) == (1.5, 0.1)


def test_an_unknown_class_is_refused_with_the_known_ones():
    with pytest.raises(Refusal, match="one of: tight, loose") as refused:
        Classes(aggregated_spec()).of("gold", wish(), 10)
    assert refused.value.status == 400


GOOD = "spec: small\ndiscovery: {kind: file, path: workers.yaml}\n"


def test_a_configs_paths_are_relative_to_its_file(tmp_path: Path):
    (tmp_path / "router.yaml").write_text(GOOD + "kv: {dynamo: {kind: file, path: kv}}\n")
    config = RouterConfig.load(tmp_path / "router.yaml")
    assert config.discovery.path == str(tmp_path / "workers.yaml")  # type: ignore[union-attr]
    assert config.kv.dynamo.path == tmp_path / "kv"  # type: ignore[union-attr]
    assert config.served_models() == ("meta-llama/Meta-Llama-3.1-8B",)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (GOOD + "lissten: 1\n", RouterError, "lissten"),
        ("discovery: {kind: file, path: w.yaml}\n", RouterError, "spec: Field required"),
        ("spec: small\ndiscovery: {kind: zookeeper}\n", RouterError, "zookeeper"),
        (GOOD + "handoff: {prefill_attempts: 0}\n", RouterError, "handoff.prefill_attempts"),
        (GOOD + "tokenizer: {kind: file}\n", RouterError, "path goes with kind: file"),
        (GOOD.replace("small", "nowhere"), SpecError, "nowhere"),
        ("- a\n", RouterError, "a router config is a mapping"),
    ],
)
def test_a_bad_config_is_named_by_file_field_and_value(
    tmp_path: Path, text: str, error: type[Exception], says: str
):
    path = tmp_path / "router.yaml"
    path.write_text(text)
    with pytest.raises(error) as raised:
        RouterConfig.load(path)
    assert says in str(raised.value)
    if error is RouterError:
        assert "router.yaml" in str(raised.value)

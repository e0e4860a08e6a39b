"""Readers find out the format, read it whole, and name the line of whatever is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hrl_planner.errors import TraceError
from hrl_planner.workload import merge, read_rate_curve, read_trace, write_trace
from hrl_planner.workload.curves import constant
from hrl_planner.workload.generators import independent_requests, sessions
from hrl_planner.workload.prefixes import AGENTIC
from hrl_planner.workload.readers import detect_format
from hrl_planner.workload.statistics import describe

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
OWN = "arrival_s,isl_tokens,osl_tokens\n"
RATES = "time_s,rate_rps,mean_isl,mean_osl\n"
MOON = '{"timestamp": %s, "input_length": %s, "output_length": %s, "hash_ids": %s}\n'


def put(tmp_path: Path, text: str, name: str = "x.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def public_trace(name: str) -> Path:
    folder = os.environ.get("HRL_PLANNER_TRACES")
    base = Path(folder) if folder else Path(__file__).parents[2] / "shared" / "traces"
    if not (base / name).is_file():
        pytest.skip(f"{name} is not at {base}; set HRL_PLANNER_TRACES to the folder that has it")
    return base / name


def test_azure_counts_time_from_the_first_request(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    trace = read_trace(put(tmp_path, text))
    assert trace.arrival_s.tolist() == [0.0, pytest.approx(4.314579, abs=1e-9)]
    assert trace.isl_tokens.tolist() == [374, 396]
    later = AZURE + "2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 00:00:01.009930+00:00,3,4\n"
    assert read_trace(put(tmp_path, later)).arrival_s.tolist() == [0.0, 1.0]


def test_burstgpt_labels_by_model_and_log_type_and_skips_failures_when_asked(
    tmp_path: Path,
) -> None:
    text = BURST + "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n"
    path = put(tmp_path, text)
    with pytest.raises(TraceError, match=r"x.csv line 3 field Response tokens: value 0 .*skip"):
        read_trace(path)
    trace = read_trace(path, skip_failed=True)
    assert trace.labels == ("ChatGPT Conversation log",)
    assert trace.arrival_s.tolist() == [0.0]


def test_mooncake_hash_ids_become_dense_blocks(tmp_path: Path) -> None:
    text = MOON % (0, 600, 5, [7, 9]) + "\n" + MOON % (27500, 700, 6, [7, 11])
    trace = read_trace(put(tmp_path, text, "x.jsonl"))
    assert trace.arrival_s.tolist() == [0.0, 27.5]
    assert trace.block_ids.tolist() == [0, 1, 0, 2]
    assert trace.block_tokens == 512


def test_our_own_format_survives_a_round_trip(tmp_path: Path) -> None:
    chats = sessions(constant(2.0, 120.0), AGENTIC, seed=1, label="agentic")
    trace = merge([chats, independent_requests(constant(2.0, 150.0), seed=2)])
    for name in ("t.csv", "t.csv.gz"):
        write_trace(trace, tmp_path / name)
        again = read_trace(tmp_path / name)
        for column in ("arrival_s", "isl_tokens", "osl_tokens", "label", "session_id"):
            assert (getattr(again, column) == getattr(trace, column)).all()
        assert (again.block_ids == trace.block_ids).all()
        assert (again.block_offsets == trace.block_offsets).all()
        assert again.duration_s == trace.duration_s
        assert again.labels == trace.labels


def test_a_rate_curve_becomes_requests_at_its_rates(tmp_path: Path) -> None:
    path = put(tmp_path, RATES + "0,10,200,50\n600,0,nan,nan\n1200,30,400,20\n")
    curve = read_rate_curve(path)
    assert curve.edges_s.tolist() == [0, 600, 1200, 1800]
    trace = read_trace(path, seed=3)
    counts = np.histogram(trace.arrival_s, bins=[0, 600, 1200, 1800])[0]
    assert counts[1] == 0
    assert abs(counts[0] - 6000) < 400 and abs(counts[2] - 18000) < 700
    late = trace.arrival_s >= 1200
    assert trace.isl_tokens[late].mean() == pytest.approx(400, rel=0.05)
    part = read_trace(path, start_s=1200, rate=0.5, seed=3)
    assert part.duration_s == 600 and abs(len(part) - 9000) < 500


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (AZURE + "2023-11-16 18:15:46,0,44\n", "line 2 field ContextTokens: value 0 is below 1"),
        (AZURE + "2023-11-16 18:15:46,5,nan\n", "line 2 field GeneratedTokens: value nan"),
        (AZURE + "2023-11-16 18:15:46,5,9999999999\n", "line 2 field GeneratedTokens: value 9999"),
        (
            AZURE + "2023-11-16 18:15:46,5,1\n2023-11-16 18:15:45,5,1\n",
            "line 3 field TIMESTAMP: value -1 is negative|line 3 field TIMESTAMP: value -1 is bef",
        ),
        (AZURE + "yesterday,5,1\n", "line 2 field TIMESTAMP: value 'yesterday'"),
        (AZURE + "2023-11-16 18:15:46,5\n", "line 2 field GeneratedTokens: 2 cells where"),
        (AZURE + "2023-11-16 18:15:46,5,1,8\n", "line 2 .*4 cells where"),
        (AZURE + "2023-11-16 18:15:46,five,1\n", "line 2 field ContextTokens: value 'five'"),
        (AZURE, "no requests in it"),
        ("", "start of no known trace format"),
        ("a,b\n1,2\n", "line 1: 'a,b' is the start of no known trace format"),
        (BURST + "5,ChatGPT,0,18,18,API log\n", "line 2 field Request tokens: value 0"),
        (BURST + "9,C,1,1,2,API log\n5,C,1,1,2,API log\n", "line 3 field Timestamp: value 5"),
        (OWN + '"1,2,3\n', "malformed CSV|cells where"),
        (OWN + "-1,2,3\n", "line 2 field arrival_s: value -1 is negative"),
        (OWN + "1,2,3\n\n0.5,2,3\n", "line 4 field arrival_s: value 0.5 is before"),
        (OWN + "inf,2,3\n", "line 2 field arrival_s: value inf"),
        ("# duration_s=soon\n" + OWN + "1,2,3\n", "line 1 field duration_s: value 'soon'"),
        ("# duration_s=5\n" + OWN + "1,2,0\n", "line 3 field osl_tokens: value 0"),
        ("arrival_s,isl_tokens,osl_tokens,block_ids\n0,5,5,1 x\n", "line 2 field block_ids"),
        ("arrival_s,isl_tokens,osl_tokens,block_ids\n0,5,5,1 2\n", "line 2 field block_ids: 2 bl"),
        ("arrival_s,isl_tokens,osl_tokens,session_id\n0,5,5,1.5\n", "line 2 field session_id"),
        (RATES + "0,1,1,1\n", "at least two lines"),
        (RATES + "0,1,1,1\n0,1,1,1\n", "line 3 field time_s: value 0 does not increase"),
        (RATES + "0,-1,1,1\n5,1,1,1\n", "line 2 field rate_rps: value -1 is negative"),
        (RATES + "0,1,nan,1\n5,1,1,1\n", "line 2 field mean_isl: value nan"),
        (RATES + "0,1e9,9,9\n5000,1,1,1\n", "stands for 5e.12 requests"),
        (MOON % (0, 5, 5, [1]) + '{"timestamp": 0,', "line 2 field .*malformed JSON"),
        (MOON % (0, 5, 5, [1]) + "[1]\n", "line 2 field .*not a JSON object"),
        (MOON % (0, '"5"', 5, [1]), "line 1 field input_length: value '5' is not a number"),
        (MOON % (0, 5, "NaN", [1]), "line 1 field output_length: value nan"),
        (MOON % (5, 5, 5, [1]) + MOON % (0, 5, 5, [1]), "line 2 field timestamp: value 0 is bef"),
        (MOON % (0, 5, 5, [1, 2]), "line 1 field hash_ids: 2 blocks of 512 tokens for a prompt of"),
        (MOON % (0, 5, 5, '["a"]'), "line 1 field hash_ids: value 'a'"),
    ],
)
def test_bad_input_is_refused_by_file_line_field_and_value(
    tmp_path: Path, text: str, says: str
) -> None:
    path = put(tmp_path, text)
    with pytest.raises(TraceError, match=says) as error:
        read_trace(path)
    assert "x.csv" in str(error.value) or "rate curve x" in str(error.value)


def test_a_missing_file_and_a_binary_file_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        read_trace(tmp_path / "nothing.csv")
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00\x80" * 100)
    with pytest.raises(TraceError, match="start of no known trace format"):
        read_trace(path)
    path.write_bytes(OWN.encode() + b"0,1,1\n\xff\xfe,1,1\n")
    with pytest.raises(TraceError, match=r"x.csv line 3 field arrival_s: value '"):
        read_trace(path)
    torn = tmp_path / "x.csv.gz"
    write_trace(independent_requests(constant(5.0, 100.0), seed=0), torn)
    torn.write_bytes(torn.read_bytes()[:-300])
    with pytest.raises(TraceError, match="damaged gzip"):
        read_trace(torn)
    torn.write_bytes(b"plain text")
    with pytest.raises(TraceError, match="damaged gzip"):
        read_trace(torn)
    with pytest.raises(TraceError, match="unknown format 'excel'"):
        read_trace(path, "excel")


@pytest.mark.needs_trace
def test_the_azure_trace_reads_as_its_table_says() -> None:
    trace = read_trace(public_trace("azure2023_conv.csv"))
    assert len(trace) == 19_366
    assert trace.isl_tokens.mean() == pytest.approx(1155, abs=1)
    assert trace.osl_tokens.mean() == pytest.approx(211, abs=1)


@pytest.mark.needs_trace
def test_the_conversation_model_has_the_statistics_of_the_mooncake_trace() -> None:
    from hrl_planner.workload.prefixes import CONVERSATION

    real = read_trace(public_trace("mooncake_fast25_conversation.jsonl"))
    assert len(real) == 12_031 and real.n_blocks == 182_790
    ours = sessions(constant(3.4, real.duration_s), CONVERSATION, seed=0)
    a, b = describe(real), describe(ours)
    assert b.rate_rps == pytest.approx(a.rate_rps, rel=0.05)
    assert b.reuse == pytest.approx(a.reuse, abs=0.03)
    assert b.n_blocks == pytest.approx(a.n_blocks, rel=0.06)
    assert b.isl[0] == pytest.approx(a.isl[0], rel=0.06)
    assert b.isl[1] == pytest.approx(a.isl[1], rel=0.15)
    assert b.osl[0] == pytest.approx(a.osl[0], rel=0.05)


@pytest.mark.needs_trace
def test_the_long_rate_curve_splits_by_day() -> None:
    curve = read_rate_curve(public_trace("servegen_m-small_rates.csv"))
    train, validation, test = curve.split_by_day()
    assert detect_format(public_trace("servegen_m-small_rates.csv")) == "rates"
    assert train.duration_s % 86_400 == 0 and validation.duration_s % 86_400 == 0
    assert train.duration_s + validation.duration_s + test.duration_s == curve.duration_s

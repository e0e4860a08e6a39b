"""Where the router learns of workers: a file that changes in every way files do."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hrl_planner.cli import app
from hrl_planner.errors import RouterError
from hrl_planner.router.app import run
from hrl_planner.router.config import RouterConfig
from hrl_planner.router.discovery import Worker
from hrl_planner.router.discovery.file import FileDiscovery, read_workers
from tests.follower import Follower

ONE = "workers: [{name: w1, pool: fast, address: '10.0.0.1:8000'}]\n"
TWO = "workers: [{name: w1, pool: fast, address: '10.0.0.1:8000', draining: true}]\n"


@pytest.fixture
def without_workers(tmp_path: Path) -> Path:
    """A config whose workers file is not there."""
    path = tmp_path / "router.yaml"
    path.write_text("{spec: small, discovery: {kind: file, path: none.yaml}}")
    return path


@pytest.mark.parametrize("words", [(), ("--no-envoy",)])
def test_without_its_workers_file_a_router_ends_with_one_line_and_status_2(
    without_workers: Path, words: tuple[str, ...]
) -> None:
    done = CliRunner().invoke(app, ["router", "--config", str(without_workers), *words])
    assert done.exit_code == 2
    assert done.output.startswith(f"error: {without_workers.parent / 'none.yaml'}: cannot be read")
    assert done.output.count("\n") == 1


def test_a_picker_whose_discovery_fails_at_the_start_ends(without_workers: Path) -> None:
    config = RouterConfig.load(without_workers)
    with pytest.raises(RouterError, match=r"none\.yaml"):
        asyncio.run(asyncio.wait_for(run(config), 60))


def test_a_file_says_workers_and_flows(tmp_path: Path) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text("""
workers:
  - {name: p0, pool: prefill, address: "10.0.0.5:8000", engine: sglang,
     kv_events: "tcp://10.0.0.5:5557", kv_replay: "tcp://10.0.0.5:5558",
     bootstrap: "10.0.0.5:8998"}
  - {name: d0, pool: decode, address: "[::1]:8000", draining: true,
     kv_events: "dyn://prod.worker.generate/7"}
flows:
  interactive: {prefill: 1, decode: 0.5}
""")
    prefill, decode = read_workers(path).workers
    assert prefill == Worker(
        "p0",
        "prefill",
        "10.0.0.5:8000",
        engine="sglang",
        kv_events="tcp://10.0.0.5:5557",
        kv_replay="tcp://10.0.0.5:5558",
        bootstrap="10.0.0.5:8998",
    )
    assert decode == Worker(
        "d0", "decode", "[::1]:8000", draining=True, kv_events="dyn://prod.worker.generate/7"
    )
    assert read_workers(path).flows == {"interactive": {"prefill": 1.0, "decode": 0.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: [{name: a, pool: x, address: nowhere}]", "workers[0].address: .* got 'nowhere'"),
        (
            "workers: [{name: a, pool: x, address: 'h:99999'}]",
            "workers[0].address: .* got 'h:99999'",
        ),
        ("workers: [{name: a, pool: x, address: 'h:0'}]", "workers[0].address: .* got 'h:0'"),
        (
            "workers: [{name: a, pool: x, address: 'h:1', bootstrap: 'h:70000'}]",
            "workers[0].bootstrap: .* got 'h:70000'",
        ),
        ("workers: [{name: a, pool: x, adress: 'h:1'}]", "workers[0].adress: Extra inputs"),
        ("workers: [{name: a, pool: x, address: 'h:1', engine: tgi}]", "workers[0].engine: "),
        (
            "workers: [{name: a, pool: x, address: 'h:1'}, {name: a, pool: y, address: 'h:2'}]",
            "two workers are named 'a'",
        ),
        ("workers: []\nflows: {c: {p: -1}}", "flows.c.p: .* got -1"),
        ("workers: []\nflows: {c: {p: .nan}}", "flows.c.p: "),
        ("flows: {}", "workers: Field required"),
        ("workers: [}", "not valid YAML"),
        ("", "is a mapping"),
    ],
)
def test_a_broken_file_is_refused_with_file_field_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "workers.yaml"
    path.write_text(text)
    with pytest.raises(RouterError, match=message.replace("[", r"\[")) as refused:
        read_workers(path)
    assert str(path) in str(refused.value)


def _in_place(path: Path, text: str) -> None:
    path.write_text(text)


def _renamed_over(path: Path, text: str) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    draft.rename(path)


def _removed_and_made_anew(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("write", [_in_place, _renamed_over, _removed_and_made_anew])
def test_a_changed_file_is_read_again(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    async def scenario() -> None:
        path = tmp_path / "workers.yaml"
        path.write_text(ONE)
        follower = Follower(FileDiscovery(path))
        assert not (await follower.next()).workers[0].draining
        write(path, TWO)
        assert (await follower.next()).workers[0].draining
        await follower.close()

    asyncio.run(scenario())


def test_a_config_map_that_is_swapped_is_read_again(tmp_path: Path) -> None:
    """As the kubelet does it: a link to a folder, replaced by renaming another link over it."""

    def publish(version: str, text: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "workers.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    async def scenario() -> None:
        publish("..1", ONE)
        (tmp_path / "workers.yaml").symlink_to("..data/workers.yaml")
        follower = Follower(FileDiscovery(tmp_path / "workers.yaml"))
        assert not (await follower.next()).workers[0].draining
        publish("..2", TWO)
        assert (await follower.next()).workers[0].draining
        await follower.close()

    asyncio.run(scenario())


def test_a_file_that_breaks_keeps_the_last_good_snapshot_and_complains_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        path = tmp_path / "workers.yaml"
        path.write_text(ONE)
        follower = Follower(FileDiscovery(path))
        await follower.next()
        reading = asyncio.create_task(follower.next())
        for broken in ("workers: [{name: w1", "workers: [{name: w1"):
            path.write_text(broken)
            while not caplog.records:
                await asyncio.sleep(0.01)
            os.utime(path)
        path.unlink()
        while len(caplog.records) < 2:
            await asyncio.sleep(0.01)
        assert not reading.done()
        path.write_text(TWO)
        assert (await reading).workers[0].draining
        await follower.close()

    with caplog.at_level(logging.ERROR, "hrl_planner.router.discovery.file"):
        asyncio.run(scenario())
    syntax, gone = caplog.messages
    assert f"{tmp_path}/workers.yaml, line 1" in syntax
    assert "the 1 workers of before stay" in syntax
    assert "cannot be read" in gone


def test_a_file_that_is_broken_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="cannot be read"):
        asyncio.run(Follower(FileDiscovery(tmp_path / "absent.yaml")).next())

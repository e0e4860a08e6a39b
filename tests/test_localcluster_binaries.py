"""Where the programs of a local cluster are found, and what is said where they are not."""

from __future__ import annotations

import hashlib
import io
import platform
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("kubernetes")

from hrl_planner.cli import app
from hrl_planner.errors import LocalClusterError
from hrl_planner.localcluster.binaries import PROGRAMS, find_binaries, obtain_binaries
from hrl_planner.localcluster.download import Release, download

VERSION = "1.33.0"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "other")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing set."""
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hrl-planner" / "kube"


def install(directory: Path, version: str = "1.2.3", names: tuple[str, ...] = PROGRAMS) -> Path:
    """Programs that only know their version."""
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_text(f"#!/bin/sh\necho Kubernetes v{version}\n")
        (directory / name).chmod(0o755)
    return directory


def test_the_named_folder_comes_before_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(cache / "1.20.2")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(install(tmp_path / "assets")))
    assert find_binaries().directory == tmp_path / "assets"


def test_the_newest_complete_version_of_the_cache_is_taken(cache: Path) -> None:
    install(cache / "1.9.9")
    install(cache / "1.20.2")
    install(cache / "1.33.0", names=("etcd",))
    install(cache / "1.34.0.work")
    assert find_binaries().directory == cache / "1.20.2"


def test_a_folder_of_envtest_that_lacks_controllers_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = install(tmp_path / "assets", names=("etcd", "kube-apiserver"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    with pytest.raises(LocalClusterError, match=r"lacks kube-controller-manager, kube-scheduler"):
        find_binaries()


def test_where_there_is_nothing_the_message_lists_what_was_tried(cache: Path) -> None:
    with pytest.raises(LocalClusterError) as nothing:
        find_binaries()
    message = str(nothing.value)
    assert "KUBEBUILDER_ASSETS: not set" in message
    assert f"{cache}: no complete set" in message
    assert "hrl-planner kube-binaries" in message


def test_nothing_is_fetched_or_built_where_the_cache_is_full(cache: Path) -> None:
    install(cache / "1.20.2")
    said: list[str] = []
    found = obtain_binaries(allow_download=True, allow_build=True, say=said.append)
    assert (found.origin, found.version(), said) == ("cache", (1, 2, 3), [])


def test_the_command_shows_version_origin_and_paths(cache: Path) -> None:
    directory = install(cache / "1.20.2", "1.20.2")
    shown = CliRunner().invoke(app, ["kube-binaries"])
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines == ["Kubernetes 1.20.2, cache", *(str(directory / name) for name in PROGRAMS)]


def test_the_command_ends_in_a_message_where_there_is_nothing() -> None:
    shown = CliRunner().invoke(app, ["kube-binaries"])
    assert shown.exit_code == 2
    assert "no programs of a Kubernetes control plane" in shown.stderr


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    root = tmp_path / "site"
    root.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def publish(root: Path, url: str, archive_hash: str | None = None) -> Release:
    """An index, an archive of envtest and the programs it lacks, as they are published."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("etcd", "kube-apiserver", "kubectl"):
            member = tarfile.TarInfo(f"controller-tools/envtest/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    archive = f"envtest-v{VERSION}-linux-{ARCHITECTURE}.tar.gz"
    (root / archive).write_bytes(buffer.getvalue())
    digest = archive_hash or hashlib.sha512(buffer.getvalue()).hexdigest()
    entry = {"hash": digest, "selfLink": f"{url}/{archive}"}
    index = {"releases": {f"v{VERSION}": {archive: entry}}}
    (root / "index.yaml").write_text(yaml.safe_dump(index))
    programs = root / f"v{VERSION}" / "bin" / "linux" / ARCHITECTURE
    programs.mkdir(parents=True)
    for name in ("kube-controller-manager", "kube-scheduler"):
        (programs / name).write_text(name)
        (programs / f"{name}.sha256").write_text(hashlib.sha256(name.encode()).hexdigest())
    return Release(VERSION, f"{url}/index.yaml", url)


def test_a_download_fills_the_cache_with_the_programs_and_nothing_else(
    cache: Path, website: tuple[Path, str]
) -> None:
    directory = download(cache, PROGRAMS, print, publish(*website))
    assert {path.name: path.read_text() for path in directory.iterdir()} == {
        name: name for name in PROGRAMS
    }
    assert find_binaries().directory == directory


def test_an_archive_that_is_not_what_was_published_is_refused(
    cache: Path, website: tuple[Path, str]
) -> None:
    release = publish(*website, archive_hash="0" * 128)
    with pytest.raises(LocalClusterError, match=r"sha512 is .*, published is 000"):
        download(cache, PROGRAMS, print, release)
    assert list(cache.iterdir()) == []


def test_a_program_that_is_not_what_was_published_is_refused(
    cache: Path, website: tuple[Path, str]
) -> None:
    release = publish(*website)
    next(website[0].glob("v*/bin/linux/*/kube-scheduler")).write_text("tampered with")
    with pytest.raises(LocalClusterError, match=r"kube-scheduler: sha256 is"):
        download(cache, PROGRAMS, print, release)
    assert list(cache.iterdir()) == []


def test_a_version_that_is_not_published_is_named(cache: Path, website: tuple[Path, str]) -> None:
    publish(*website)
    release = Release("1.99.0", f"{website[1]}/index.yaml", website[1])
    with pytest.raises(LocalClusterError, match=r"has no envtest-v1\.99\.0-linux"):
        download(cache, PROGRAMS, print, release)


def test_without_a_connection_the_address_is_named(cache: Path, website: tuple[Path, str]) -> None:
    # Port 9 of an address that nothing uses: refused at once, as where a proxy says no.
    release = Release(VERSION, "http://127.15.0.1:9/index.yaml", website[1])
    with pytest.raises(LocalClusterError, match=r"127\.15\.0\.1:9/index\.yaml: .*refused"):
        download(cache, PROGRAMS, print, release)

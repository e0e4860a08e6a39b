"""Where the programs of a control plane come from: etcd and three servers of Kubernetes.

Looked for in this order, and the first complete set is taken:

1. the folder named by `KUBEBUILDER_ASSETS`, as kubebuilder and setup-envtest have it;
2. the cache, `~/.cache/hrl-planner/kube/VERSION`, newest version first;
3. the index of setup-envtest and dl.k8s.io, where the internet is (`download.py`);
4. a build of Kubernetes 1.20 from Debian's source package (`build_debian.sh`).

The last two fill the cache. Only the first two are free, so only they are used unasked.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from hrl_planner.errors import LocalClusterError
from hrl_planner.localcluster.download import download

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"

# The version that build_debian.sh makes.
_DEBIAN_VERSION = "1.20.2"


@dataclass(frozen=True)
class KubeBinaries:
    """A complete set of programs.

    Attributes:
        directory: holds all of `PROGRAMS`.
        origin: where they were found, in words.
    """

    directory: Path
    origin: str

    def path(self, program: str) -> Path:
        """The file of one program."""
        return self.directory / program

    def version(self) -> tuple[int, int, int]:
        """Version of Kubernetes, as its API server tells it."""
        done = subprocess.run(
            [self.path("kube-apiserver"), "--version"], capture_output=True, text=True, check=True
        )
        return _version(done.stdout.split()[-1])


def cache_directory() -> Path:
    """The folder that keeps one folder of programs per version."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hrl-planner" / "kube"


def find_binaries() -> KubeBinaries:
    """The programs that are on this machine already.

    Raises:
        LocalClusterError: there are none; the message tells where it looked and how to get them.
    """
    found, tried = _look()
    if found is None:
        raise LocalClusterError(
            _message(tried, "get them with: hrl-planner kube-binaries --download or --build")
        )
    return found


def obtain_binaries(
    *, allow_download: bool, allow_build: bool, say: Callable[[str], None] = print
) -> KubeBinaries:
    """The programs on this machine, or else downloaded, or else built.

    Args:
        allow_download: try the internet; fails within seconds where there is none.
        allow_build: build from Debian's sources; 3 to 10 minutes and 2 GB of disk while it runs.
        say: told what is about to happen.
    """
    found, tried = _look()
    if found is None and allow_download:
        try:
            directory = download(cache_directory(), PROGRAMS, say)
            found = KubeBinaries(directory, "downloaded")
        except LocalClusterError as error:
            tried.append(f"download: {error}")
    if found is None and allow_build:
        try:
            found = _build(say)
        except LocalClusterError as error:
            tried.append(f"build: {error}")
    if found is None:
        advice = (
            "nothing else is left to try"
            if allow_build
            else "build them with: hrl-planner kube-binaries --build"
        )
        raise LocalClusterError(_message(tried, advice))
    return found


def _look() -> tuple[KubeBinaries | None, list[str]]:
    """What is on this machine, and where it is not."""
    tried: list[str] = []
    assets = os.environ.get(ASSETS_VARIABLE)
    if assets:
        missing = _missing(Path(assets))
        if not missing:
            return KubeBinaries(Path(assets).resolve(), ASSETS_VARIABLE), tried
        tried.append(
            f"{ASSETS_VARIABLE}={assets}: lacks {', '.join(missing)}"
            " (archives of envtest hold neither controller manager nor scheduler)"
        )
    else:
        tried.append(f"{ASSETS_VARIABLE}: not set")
    cache = cache_directory()
    for directory in sorted(cache.glob("[0-9]*.[0-9]*.[0-9]*"), key=_cached_version, reverse=True):
        if not _missing(directory):
            return KubeBinaries(directory, "cache"), tried
    tried.append(f"{cache}: no complete set")
    return None, tried


def _missing(directory: Path) -> list[str]:
    return [name for name in PROGRAMS if not os.access(directory / name, os.X_OK)]


def _cached_version(directory: Path) -> tuple[int, int, int]:
    try:
        return _version(directory.name)
    except ValueError:  # the work folder of a build
        return (0, 0, 0)


def _version(text: str) -> tuple[int, int, int]:
    major, minor, patch = text.removeprefix("v").split(".", 2)
    return int(major), int(minor), int(patch)


def _build(say: Callable[[str], None]) -> KubeBinaries:
    directory = cache_directory() / _DEBIAN_VERSION
    say(
        "building Kubernetes from Debian's source package: about 130 MB are fetched through apt, "
        "2 GB of disk are used on the way, nothing is installed on the system"
    )
    with as_file(files("hrl_planner.localcluster") / "build_debian.sh") as script:
        done = subprocess.run(["bash", script, directory])
    if done.returncode:
        raise LocalClusterError(f"build_debian.sh ended with status {done.returncode}")
    return KubeBinaries(directory, "built from Debian's source package")


def _message(tried: list[str], advice: str) -> str:
    lines = "".join(f"\n  {line}" for line in tried)
    return f"no programs of a Kubernetes control plane; tried:{lines}\n  {advice}"

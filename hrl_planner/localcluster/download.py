"""The programs of a control plane from the internet, each checked against its published checksum.

etcd and the API server come from the archive of envtest, whose index carries SHA-512 sums;
controller manager and scheduler, which that archive lacks, from the release of the same version.
Nothing lands in the cache unless all of it arrived and is right.
"""

from __future__ import annotations

import hashlib
import io
import platform
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from hrl_planner.errors import LocalClusterError

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Connecting and each read; short, because most machines without internet do not say so.
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Release:
    """One version of Kubernetes and where it is published."""

    version: str = "1.33.0"
    index_url: str = (
        "https://raw.githubusercontent.com/kubernetes-sigs/controller-tools/HEAD/"
        "envtest-releases.yaml"
    )
    programs_url: str = "https://dl.k8s.io/release"


def download(
    cache: Path,
    programs: Sequence[str],
    say: Callable[[str], None],
    release: Release = Release(),
) -> Path:
    """Fetch the programs of one release into the cache.

    Returns:
        The folder that holds them.

    Raises:
        LocalClusterError: no connection, no such release, or a checksum that does not match.
    """
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in _ARCHITECTURES:
        raise LocalClusterError(f"nothing is published for {platform.system()} on {machine}")
    architecture = _ARCHITECTURES[machine]
    archive = _archive_entry(release, f"linux-{architecture}")
    say(f"downloading Kubernetes {release.version} (about 250 MB)")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as staging:
        data = _fetch_checked(archive["selfLink"], "sha512", archive["hash"])
        _unpack(data, Path(staging), programs)
        for name in programs:
            if not (Path(staging) / name).exists():
                url = f"{release.programs_url}/v{release.version}/bin/linux/{architecture}/{name}"
                digest = _fetch(f"{url}.sha256").decode().split()[0]
                (Path(staging) / name).write_bytes(_fetch_checked(url, "sha256", digest))
        target = cache / release.version
        target.mkdir(exist_ok=True)
        for name in programs:
            (Path(staging) / name).chmod(0o755)
            (Path(staging) / name).replace(target / name)
    return target


def _archive_entry(release: Release, system: str) -> dict[str, str]:
    index: Any = yaml.safe_load(_fetch(release.index_url))
    name = f"envtest-v{release.version}-{system}.tar.gz"
    entry = index["releases"].get(f"v{release.version}", {}).get(name)
    if entry is None:
        raise LocalClusterError(f"{release.index_url}: has no {name}")
    return {"hash": str(entry["hash"]), "selfLink": str(entry["selfLink"])}


def _unpack(archive: bytes, directory: Path, programs: Sequence[str]) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            if member.isfile() and name in programs and (content := tar.extractfile(member)):
                (directory / name).write_bytes(content.read())


def _fetch_checked(url: str, algorithm: str, digest: str) -> bytes:
    data = _fetch(url)
    actual = hashlib.new(algorithm, data).hexdigest()
    if actual != digest:
        raise LocalClusterError(f"{url}: {algorithm} is {actual}, published is {digest}")
    return data


def _fetch(url: str) -> bytes:
    try:
        with urlopen(url, timeout=_TIMEOUT_S) as response:
            data: bytes = response.read()
            return data
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise LocalClusterError(f"{url}: {reason}") from error

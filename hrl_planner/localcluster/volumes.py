"""Volumes of a pod as folders: config maps and scratch space, and the paths that lead there.

A process of this machine sees the machine's own root, so a volume cannot lie at its `mountPath`
without a mount namespace, which many machines and most containers refuse to ordinary users. The
volume's folder lies in the pod's folder instead, and where the container's command, arguments,
variables or working directory name a path under a `mountPath`, the folder's path takes its place.
Paths inside of files are left alone: a file that names its neighbours does so relatively.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What may stand beside a path in an argument: --config=/etc/app.yaml, /a:/b, "/a"
_BESIDE = r"=:,;\s\"'"


@dataclass(frozen=True)
class Volume:
    """A folder that containers of a pod share.

    Attributes:
        name: what containers call it.
        config_map: whose data it holds; None for an empty one.
        items: file name by key; None takes all keys as they are.
        optional: whether the config map may be missing.
    """

    name: str
    config_map: str | None = None
    items: Mapping[str, str] | None = None
    optional: bool = False

    def files(self, config_map: Mapping[str, Any]) -> dict[str, bytes]:
        """Return file contents by name, as this volume shows a config map.

        Raises:
            KeyError: an item names a key that is not there.
        """
        data = {key: text.encode() for key, text in (config_map.get("data") or {}).items()}
        for key, text in (config_map.get("binaryData") or {}).items():
            data[key] = base64.b64decode(text)
        if self.items is None:
            return data
        return {path: data[key] for key, path in self.items.items()}


@dataclass(frozen=True)
class Mount:
    """Where a container expects a folder, and where it is."""

    path: str
    folder: Path


def volumes_of(pod: Mapping[str, Any]) -> list[Volume]:
    """Return the volumes that can be had here; others are passed over, as are mounts of them."""
    found = []
    for volume in pod["spec"].get("volumes") or ():
        if source := volume.get("configMap"):
            items = source.get("items")
            found.append(
                Volume(
                    volume["name"],
                    source["name"],
                    None if items is None else {item["key"]: item["path"] for item in items},
                    bool(source.get("optional")),
                )
            )
        elif "emptyDir" in volume:
            found.append(Volume(volume["name"]))
    return found


def mounts_of(container: Mapping[str, Any], folders: Mapping[str, Path]) -> list[Mount]:
    """Return the mounts of a container, the most specific path first.

    Args:
        container: of a pod.
        folders: where the pod's volumes are, by name.
    """
    found = [
        Mount(
            mount["mountPath"].rstrip("/"), folders[mount["name"]] / (mount.get("subPath") or ".")
        )
        for mount in container.get("volumeMounts") or ()
        if mount["name"] in folders
    ]
    return sorted(found, key=lambda mount: -len(mount.path))


def at_folders(text: str, mounts: Sequence[Mount]) -> str:
    """Return a text in which every path under a mount is one under its folder."""
    if not mounts:
        return text
    folders = {mount.path: str(mount.folder) for mount in mounts}
    paths = "|".join(re.escape(mount.path) for mount in mounts)
    path = re.compile(rf"(?<![^{_BESIDE}])({paths})(?=[/{_BESIDE}]|$)")
    return path.sub(lambda match: folders[match.group(1)], text)

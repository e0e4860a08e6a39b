"""Deployments of engines, one per pool: vLLM as an example to start from, mock engines to try with.

None of them names a number of replicas: that is the planners', and applying the manifests again
must not take it back. A rollout never holds more GPUs than before (`maxSurge: 0`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from hrl_planner.manifests.installation import Installation, Json
from hrl_planner.manifests.pods import (
    CONFINED,
    USER_ID,
    container_port,
    http_probe,
    rolling,
    scratch,
)
from hrl_planner.mock_engine.cluster import engine_command
from hrl_planner.router.discovery.kubernetes import (
    KV_EVENTS_PORT,
    KV_REPLAY_PORT,
    POOL_LABEL,
    PORT,
)
from hrl_planner.spec import PoolSpec

VLLM_IMAGE = "vllm/vllm-openai:v0.11.0"
_HTTP, _EVENTS, _REPLAY, _TRANSFER = 8000, 5557, 5558, 5600
_POD_IP: Json = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
# That image runs as root and writes where it likes; see `make lint-manifests`.
_EXCEPTIONS = {
    "checkov.io/skip1": "CKV_K8S_11=a limit of processor time would slow steps down",
    "checkov.io/skip2": "CKV_K8S_22=the image writes caches of compiled kernels",
    "checkov.io/skip3": "CKV_K8S_23=the image runs as root",
    "checkov.io/skip4": "CKV_K8S_40=the image runs as root",
}
# Answers under way may take so long.
_GRACE_S = 120
# So long an engine may load its weights.
_LOAD_S = 1800


def vllm_engines(installation: Installation) -> list[Json]:
    """Return a Deployment of vLLM per pool, for GPUs named by NVIDIA's feature discovery."""
    return [_vllm(installation, pool) for pool in installation.spec.pools]


def mock_engines(installation: Installation) -> list[Json]:
    """Return a Deployment of mock engines per pool; they ask for no GPU."""
    return [_mock(installation, pool) for pool in installation.spec.pools]


def _vllm(installation: Installation, pool: PoolSpec) -> Json:
    spec = installation.spec
    gpus = str(pool.gpus_per_replica)
    container: Json = {
        "name": "engine",
        "image": VLLM_IMAGE,
        "command": ["vllm", "serve", spec.model],
        "args": [
            f"--port={_HTTP}",
            f"--tensor-parallel-size={gpus}",
            f"--max-num-seqs={pool.max_num_seqs}",
            f"--max-num-batched-tokens={pool.max_num_batched_tokens}",
            f"--block-size={spec.kv_block_tokens}",
            "--kv-transfer-config=" + _compact(kv_connector="NixlConnector", kv_role="kv_both"),
            "--kv-events-config="
            + _compact(
                enable_kv_cache_events=True,
                publisher="zmq",
                endpoint=f"tcp://*:{_EVENTS}",
                replay_endpoint=f"tcp://*:{_REPLAY}",
            ),
        ],
        "env": [
            _POD_IP,
            {"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "value": "$(POD_IP)"},
            {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(_TRANSFER)},
        ],
        "ports": [*_ports(), container_port("kv-transfer", _TRANSFER)],
        "startupProbe": http_probe(
            "/health", "http", periodSeconds=5, failureThreshold=_LOAD_S // 5
        ),
        "livenessProbe": http_probe("/health", "http", periodSeconds=10, failureThreshold=6),
        "readinessProbe": http_probe("/health", "http", periodSeconds=5),
        "resources": {
            "requests": {"cpu": "4", "memory": "32Gi"},
            "limits": {"memory": "64Gi", "nvidia.com/gpu": gpus},
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod: Json = {
        # The label of NVIDIA's GPU feature discovery; its values are longer (NVIDIA-H100-...).
        "nodeSelector": {"nvidia.com/gpu.product": pool.gpu_type},
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
    }
    made = _deployment(installation, pool, pod)
    made["metadata"]["annotations"] = _EXCEPTIONS
    return made


def _mock(installation: Installation, pool: PoolSpec) -> Json:
    options = engine_command(installation.spec, pool, 1.0, False)
    container: Json = {
        "name": "engine",
        "image": installation.router_image,
        "command": ["python", "-m", "hrl_planner.cli"],
        "args": [
            *(option for option in options if not option.startswith("--port")),
            f"--port={_HTTP}",
            f"--kv-events-port={_EVENTS}",
            f"--kv-replay-port={_REPLAY}",
            "--host=0.0.0.0",
        ],
        "env": [
            {"name": "OMP_NUM_THREADS", "value": "1"},
            {"name": "XDG_CACHE_HOME", "value": "/tmp"},
        ],
        "ports": _ports(),
        # It compiles its model of a worker first.
        "startupProbe": http_probe("/health", "http", periodSeconds=2, failureThreshold=150),
        "livenessProbe": http_probe("/health", "http", periodSeconds=10, failureThreshold=6),
        "readinessProbe": http_probe("/health", "http", periodSeconds=2),
        "resources": {
            "requests": {"cpu": "50m", "memory": "256Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        },
        "securityContext": CONFINED,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod: Json = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [scratch("tmp", "256Mi")],
    }
    return _deployment(installation, pool, pod)


def _deployment(installation: Installation, pool: PoolSpec, pod: Json) -> Json:
    labels = {POOL_LABEL: pool.name}
    annotations = {PORT: str(_HTTP), KV_EVENTS_PORT: str(_EVENTS), KV_REPLAY_PORT: str(_REPLAY)}
    own = {"automountServiceAccountToken": False, "enableServiceLinks": False}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": installation.metadata(pool.name, labels),
        "spec": {
            "selector": {"matchLabels": labels},
            # A surge would hold GPUs that the ledger has not given.
            "strategy": rolling(surge=0, unavailable=1),
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {**own, "terminationGracePeriodSeconds": _GRACE_S, **pod},
            },
        },
    }


def _ports() -> Sequence[Json]:
    return [
        container_port("http", _HTTP),
        container_port("kv-events", _EVENTS),
        container_port("kv-replay", _REPLAY),
    ]


def _compact(**fields: object) -> str:
    return json.dumps(fields, separators=(",", ":"))

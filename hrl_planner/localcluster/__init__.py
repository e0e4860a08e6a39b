"""A Kubernetes cluster on one machine: the real control plane, and a stand-in for its machines.

For tests and demonstrations. `ControlPlane` starts etcd and Kubernetes' own servers on loopback;
`Kubelet` runs pods as processes of this machine. Nothing that runs in production imports this.
"""

from hrl_planner.localcluster.binaries import KubeBinaries, find_binaries, obtain_binaries
from hrl_planner.localcluster.controlplane import ControlPlane
from hrl_planner.localcluster.kubelet import GPU_RESOURCE, GPU_TYPE_LABEL, Kubelet, Node
from hrl_planner.localcluster.podspec import DRAIN_ANNOTATION, STARTUP_ANNOTATION

__all__ = [
    "DRAIN_ANNOTATION",
    "GPU_RESOURCE",
    "GPU_TYPE_LABEL",
    "STARTUP_ANNOTATION",
    "ControlPlane",
    "KubeBinaries",
    "Kubelet",
    "Node",
    "find_binaries",
    "obtain_binaries",
]

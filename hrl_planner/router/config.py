"""The router's config: one YAML file that `hrl-planner router --config` reads (docs/router.md).

It names the cluster spec, which brings the pools, their profiles and the SLO classes; everything
else has a default. Closed to unknown fields, so that a typo is an error and no silent default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hrl_planner._spec_file import describe, read_mapping
from hrl_planner.errors import RouterError
from hrl_planner.router.addresses import ListeningAddress
from hrl_planner.router.envoy.config import EnvoyConfig
from hrl_planner.spec import ClusterSpec

Port = Annotated[int, Field(ge=0, le=65535)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PickerConfig(_Model):
    """Where Envoy asks for a destination, and where people ask how it goes."""

    grpc: ListeningAddress = Field("127.0.0.1:9002", description="HOST:PORT or unix:PATH")
    http_host: str = "127.0.0.1"
    http_port: Port = Field(9090, description="/metrics, /health, /v1/models, /debug/state")


class FileDiscoveryConfig(_Model):
    """Workers listed in a YAML file that is read again when it changes."""

    kind: Literal["file"] = "file"
    path: str


class KubernetesDiscoveryConfig(_Model):
    """Workers are pods with a label; weights come from the planner's ServingGroup."""

    kind: Literal["kubernetes"] = "kubernetes"
    namespace: str | None = Field(None, description="absent: the pod's own")
    selector: str = "hrl-planner.io/pool"
    group: str | None = Field(None, description="ServingGroup whose flows are followed")


class TokenizerConfig(_Model):
    """How prompts become tokens: exactly, with a tokenizer, or by the length of their text."""

    kind: Literal["text", "words", "file"] = "text"
    path: str | None = Field(None, description="tokenizer.json or its directory, for kind file")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("path goes with kind: file, and only with it")
        return self


class DynamoFilesConfig(_Model):
    """Dynamo's workers tell where they are in files."""

    kind: Literal["file"] = "file"
    path: Path = Field(description="their DYN_FILE_KV")


class DynamoObjectsConfig(_Model):
    """Dynamo's workers tell where they are in objects of Kubernetes."""

    kind: Literal["kubernetes"] = "kubernetes"
    namespace: str | None = Field(None, description="absent: the pod's own")


class KvConfig(_Model):
    """What is known of the workers' prefix caches."""

    ttl_s: float = Field(120.0, gt=0, description="of own decisions, where no events come")
    dynamo: DynamoFilesConfig | DynamoObjectsConfig | None = Field(
        None,
        discriminator="kind",
        description="discovery of Dynamo's workers, whose kv_events are dyn://...",
    )


class AdmissionConfig(_Model):
    """Requests that no pool can serve in time wait here, the nearest deadline first."""

    queue: bool = True
    max_waiting: int = Field(4096, ge=0)
    max_wait_s: float = Field(30.0, gt=0)


class HandoffConfig(_Model):
    """From prefill to decode."""

    prefill_attempts: int = Field(2, ge=1, le=5, description="workers tried before decode does it")
    prefill_timeout_s: float = Field(120.0, gt=0)
    connect_timeout_s: float = Field(1.0, gt=0)
    local_below_tokens: int = Field(
        64, ge=0, description="a decode worker that lacks fewer prompt tokens computes them itself"
    )


class SessionConfig(_Model):
    """Requests with one `x-session-id` go to one worker while it keeps their targets."""

    ttl_s: float = Field(900.0, gt=0)
    max_sessions: int = Field(100_000, ge=0)


class ScrapeConfig(_Model):
    """Worker metrics, by which the router's own books are corrected."""

    interval_s: float = Field(1.0, gt=0)
    timeout_s: float = Field(2.0, gt=0)
    stalled_after_s: float = Field(
        15.0, gt=0, description="without a token while requests run; longer than the longest prompt"
    )


class LogConfig(_Model):
    """Logs are JSON, one object a line, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    requests: bool = Field(True, description="one line per answered request")


class RouterConfig(_Model):
    """Everything a router is told at its start."""

    spec: str = Field(description="cluster spec: a file, or the name of a shipped one")
    models: tuple[str, ...] = Field((), description="names clients may use; absent: the spec's")
    picker: PickerConfig = PickerConfig()
    discovery: Annotated[
        FileDiscoveryConfig | KubernetesDiscoveryConfig, Field(discriminator="kind")
    ]
    tokenizer: TokenizerConfig = TokenizerConfig()
    kv: KvConfig = KvConfig()
    admission: AdmissionConfig = AdmissionConfig()
    handoff: HandoffConfig = HandoffConfig()
    sessions: SessionConfig = SessionConfig()
    scrape: ScrapeConfig = ScrapeConfig()
    envoy: EnvoyConfig = EnvoyConfig(listen="0.0.0.0:8080")
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in {"picker", "picker_http"} & self.envoy.model_fields_set:
            raise ValueError(f"envoy.{field} follows from the section picker; leave it out")
        return self

    @staticmethod
    def load(path: Path) -> RouterConfig:
        """Read a config; paths in it are relative to its directory.

        Raises:
            RouterError: with file, field and value.
        """
        data = read_mapping(path, "router config", RouterError)
        try:
            config = RouterConfig.model_validate(_resolved(data, path.parent))
        except ValidationError as error:
            raise RouterError(describe(error, str(path))) from error
        config.cluster()
        return config

    def check_workers(self) -> None:
        """Read the workers file, where workers are listed in one.

        Raises:
            RouterError: with file, field and value.
        """
        if isinstance(self.discovery, FileDiscoveryConfig):
            # Who only writes such configs does without the libraries of a router.
            from hrl_planner.router.discovery.file import read_workers

            read_workers(Path(self.discovery.path))

    def cluster(self) -> ClusterSpec:
        """Return the cluster spec.

        Raises:
            SpecError: for whatever is wrong with it.
        """
        return ClusterSpec.load(self.spec)

    def data_plane(self) -> EnvoyConfig:
        """Return Envoy's config, with the picker's addresses in it."""
        picker = self.picker
        http = f"{picker.http_host}:{picker.http_port}"
        return self.envoy.model_copy(update={"picker": picker.grpc, "picker_http": http})

    def served_models(self) -> tuple[str, ...]:
        """Return the model names clients may use."""
        return self.models or (self.cluster().model,)


def _resolved(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the config with its relative paths made the file's, not the caller's."""
    data = dict(data)
    spec = data.get("spec")
    if isinstance(spec, str) and Path(spec).suffix in (".yaml", ".yml"):
        data["spec"] = str(base / spec)
    for section in {"discovery", "tokenizer"} & data.keys():
        data[section] = _in(data[section], base)
    if isinstance(kv := data.get("kv"), dict):
        data["kv"] = {name: _in(part, base) for name, part in kv.items()}
    return data


def _in(part: Any, base: Path) -> Any:
    if isinstance(part, dict) and isinstance(part.get("path"), str):
        return {**part, "path": str(base / part["path"])}
    return part

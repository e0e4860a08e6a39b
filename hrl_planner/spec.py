"""ClusterSpec: one model, the pools that serve it, the GPUs they share, what users were promised.

A spec is a YAML file (docs/spec.md explains every field) or one that ships with the package, named
without its ending: `ClusterSpec.load("reference")`. What is loaded is frozen and whole: profiles
exist and fit, the minimum replicas fit the budget, there is a way to serve a request. Code behind
this module therefore checks nothing of that again. A spec that differs in a few fields comes
from `replace`, which validates again; pydantic's own `model_copy(update=...)` would not.
"""

from __future__ import annotations

import itertools
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hrl_planner._spec_file import describe, find_spec, read_spec_file, shipped_specs
from hrl_planner.errors import ProfileError, SpecError
from hrl_planner.profile import WorkerProfile

__all__ = [
    "AssignSpec",
    "BudgetSpec",
    "ClusterSpec",
    "GridSpec",
    "IntervalSpec",
    "KvTransferSpec",
    "PoolSpec",
    "RewardSpec",
    "RouterSpec",
    "SloClassSpec",
    "StartupSpec",
    "shipped_specs",
]

Role = Literal["prefill", "decode", "aggregated"]

_SHORTEST_S = 0.1  # of what a clock may tick: planners decide and pages are read in some 10 ms
_MOST_SCRAPES = 10_000  # kept at a time: a simulated pool takes 1 kB for each


class _Model(BaseModel):
    """Frozen, closed to unknown fields and to NaN: a typo must not become a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StartupSpec(_Model):
    """How long a replica takes from holding its GPUs to serving."""

    distribution: Literal["constant", "uniform", "lognormal"] = "constant"
    mean_s: float = Field(ge=0)
    spread_s: float = Field(0.0, ge=0, description="uniform: half width")
    cv: float = Field(0.0, ge=0, le=3, description="lognormal: standard deviation over mean")
    warmup_s: float = Field(0.0, ge=0, description="time after ready in which steps are slower")
    warmup_slowdown: float = Field(1.0, ge=1, description="factor on step times while warming up")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.spread_s > self.mean_s:
            raise ValueError(f"spread_s {self.spread_s} exceeds mean_s {self.mean_s}")
        if self.spread_s and self.distribution != "uniform":
            raise ValueError(f"spread_s is for uniform start-up, not {self.distribution}")
        if self.cv and self.distribution != "lognormal":
            raise ValueError(f"cv is for lognormal start-up, not {self.distribution}")
        return self


class PoolSpec(_Model):
    """One worker configuration and how many replicas of it there may be."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
    role: Role
    gpu_type: str = Field(min_length=1)
    gpus_per_replica: int = Field(ge=1, le=1024)
    profile: str = Field(description="name of a shipped profile, or path of an .npz file")
    min_replicas: int = Field(0, ge=0)
    max_replicas: int = Field(ge=1, le=4096)
    initial_replicas: int | None = Field(None, ge=0, description="absent: min_replicas")
    startup: StartupSpec
    price_per_gpu_hour: float = Field(ge=0)
    power_w_per_gpu: float | None = Field(None, ge=0, description="absent: the profile's TDP")
    max_num_seqs: int = Field(256, ge=1, le=4096)
    max_num_batched_tokens: int = Field(8192, ge=1, le=1_048_576)
    latency_scale: float = Field(1.0, gt=0, le=100, description="multiplies every step time")
    mtbf_h: float | None = Field(None, gt=0, description="mean hours between worker failures")

    @property
    def initial(self) -> int:
        """Replicas that are ready at time 0."""
        return self.min_replicas if self.initial_replicas is None else self.initial_replicas

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}"
            )
        if not self.min_replicas <= self.initial <= self.max_replicas:
            raise ValueError(
                f"initial_replicas {self.initial} is outside "
                f"{self.min_replicas}..{self.max_replicas}"
            )
        if self.role == "aggregated" and self.max_num_batched_tokens <= self.max_num_seqs:
            # Each running request takes one token of the budget; none would be left for prompts.
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} of an aggregated pool must "
                f"exceed max_num_seqs {self.max_num_seqs}"
            )
        return self


class BudgetSpec(_Model):
    """What all pools together may hold, starting and draining replicas included."""

    gpus: dict[str, int] = Field(min_length=1, description="GPUs per type")
    total_gpus: int | None = Field(None, ge=1)
    watts: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for gpu_type, count in self.gpus.items():
            if count < 0:
                raise ValueError(f"gpus.{gpu_type} is {count}; it must not be negative")
        return self


class AssignSpec(_Model):
    """Which requests belong to a class: by label, else by length, else by share."""

    label: str | None = None
    share: float | None = Field(None, ge=0, le=1)
    min_isl_tokens: int | None = Field(None, ge=1)
    max_isl_tokens: int | None = Field(None, ge=1)
    min_osl_tokens: int | None = Field(None, ge=1)
    max_osl_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what in ("isl", "osl"):
            low = getattr(self, f"min_{what}_tokens")
            high = getattr(self, f"max_{what}_tokens")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{what}_tokens {low} exceeds max_{what}_tokens {high}")
        return self


class SloClassSpec(_Model):
    """A promise to a kind of request, and what keeping it is worth."""

    name: str = Field(min_length=1)
    ttft_ms: float = Field(gt=0)
    itl_ms: float = Field(gt=0)
    value: float = Field(1.0, ge=0)
    assign: AssignSpec = AssignSpec()
    shed_above: float | None = Field(
        None,
        gt=0,
        description="reject when latency is predicted above this many targets everywhere",
    )


class GridSpec(_Model):
    """Dynamo's GlobalRouter table: rows by length, columns by SLO target, cells name pools."""

    isl_edges: tuple[float, ...] = ()
    target_edges_ms: tuple[float, ...] = ()
    pools: tuple[tuple[str, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in ("isl_edges", "target_edges_ms"):
            edges = getattr(self, field)
            if any(b <= a for a, b in itertools.pairwise(edges)):
                raise ValueError(f"{field} must be strictly increasing, got {list(edges)}")
        rows, columns = len(self.isl_edges) + 1, len(self.target_edges_ms) + 1
        if len(self.pools) != rows or any(len(row) != columns for row in self.pools):
            raise ValueError(
                f"pools must have {rows} rows of {columns}: one more than there are edges"
            )
        return self


class RouterSpec(_Model):
    """How the router picks a pool and a worker."""

    kind: Literal["kv_slo", "round_robin", "least_loaded", "static_grid"] = "kv_slo"
    overlap_weight: float = Field(1.0, ge=0)
    prefill_grid: GridSpec | None = None
    decode_grid: GridSpec | None = None


class IntervalSpec(_Model):
    """Clocks of the planners and of metric collection, seconds."""

    local_s: float = Field(10.0, gt=0)
    global_s: float = Field(60.0, gt=0)
    scrape_s: float = Field(5.0, gt=0)
    scrape_lag_s: float = Field(2.0, ge=0)
    window_s: float = Field(60.0, gt=0)

    # Not as bounds of the fields: those are part of the resource definitions, and with a tighter
    # one the API server would no longer let planners write to groups it has.
    @field_validator("local_s", "scrape_s")
    @classmethod
    def _ticks(cls, interval_s: float) -> float:
        if interval_s < _SHORTEST_S:
            raise ValueError(f"must be at least {_SHORTEST_S} s")
        return interval_s

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.global_s < self.local_s:
            raise ValueError(f"global_s {self.global_s} is shorter than local_s {self.local_s}")
        if self.window_s < self.scrape_s:
            raise ValueError(f"window_s {self.window_s} is shorter than scrape_s {self.scrape_s}")
        if self.window_s + self.scrape_lag_s > _MOST_SCRAPES * self.scrape_s:
            raise ValueError(
                f"window_s {self.window_s} and scrape_lag_s {self.scrape_lag_s} hold more than "
                f"{_MOST_SCRAPES} scrapes, one every scrape_s {self.scrape_s}"
            )
        return self


class KvTransferSpec(_Model):
    """The link from prefill to decode workers."""

    bandwidth_gb_per_s: float = Field(50.0, gt=0)
    latency_ms: float = Field(2.0, ge=0)
    bytes_per_token: int | None = Field(None, ge=0, description="absent: from the profiles")


class RewardSpec(_Model):
    """Weights of the one reward."""

    gpu_price_weight: float = Field(0.1, ge=0)
    churn_weight: float = Field(0.01, ge=0)


class ClusterSpec(_Model):
    """A model served by many pools under one budget."""

    name: str = Field(min_length=1)
    description: str = ""
    model: str = Field(min_length=1)
    pools: tuple[PoolSpec, ...] = Field(min_length=1)
    budget: BudgetSpec
    slo_classes: tuple[SloClassSpec, ...] = Field(min_length=1)
    router: RouterSpec = RouterSpec()
    intervals: IntervalSpec = IntervalSpec()
    kv_transfer: KvTransferSpec = KvTransferSpec()
    kv_block_tokens: int = Field(16, ge=1, le=4096)
    reward: RewardSpec = RewardSpec()

    @staticmethod
    def load(path_or_name: str | Path) -> ClusterSpec:
        """Read a spec from a YAML file, or by the name of one that ships with the package.

        Raises:
            SpecError: with the file, the field and the value, for whatever is wrong with it.
        """
        path = find_spec(path_or_name)
        status = path.stat()
        version = (path, Path.cwd(), status.st_mtime_ns, status.st_size)
        spec = _load_version(*version)
        # A profile rebuilt in place is another object, and may fail checks the old one passed.
        fresh = (WorkerProfile.load(pool.profile) for pool in spec.pools)
        if any(a is not b for a, b in zip(fresh, spec.profiles(), strict=True)):
            _load_version.cache_clear()
            spec = _load_version(*version)
        return spec

    @staticmethod
    def from_dict(data: dict[str, Any], *, where: str = "spec") -> ClusterSpec:
        """Validate a spec given as plain data; `where` names it in errors."""
        return _validated(data, where)

    def replace(self, **changes: Any) -> ClusterSpec:
        """Return a copy with top-level fields replaced, validated like any spec."""
        data = {field: getattr(self, field) for field in type(self).model_fields}
        return _validated({**data, **changes}, self.name)

    def pool_index(self, name: str) -> int:
        """Return the position of a pool in `pools`."""
        return _index([pool.name for pool in self.pools], name, f"spec {self.name}: unknown pool")

    def class_index(self, name: str) -> int:
        """Return the position of a class in `slo_classes`."""
        return _index(
            [item.name for item in self.slo_classes], name, f"spec {self.name}: unknown SLO class"
        )

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """GPU types of the budget, sorted: the order of every per-type array."""
        return tuple(sorted(self.budget.gpus))

    def profiles(self) -> tuple[WorkerProfile, ...]:
        """Return the profile of each pool, in pool order."""
        return self._profiles

    def power_w_per_replica(self, index: int) -> float:
        """Watts one replica of a pool counts against the budget."""
        pool = self.pools[index]
        watts = pool.power_w_per_gpu
        if watts is None:
            watts = self._profiles[index].tdp_w_per_gpu
        return watts * pool.gpus_per_replica

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Bytes that move per prompt token from a prefill to a decode worker."""
        if self.kv_transfer.bytes_per_token is not None:
            return self.kv_transfer.bytes_per_token
        return max(profile.model_kv_bytes_per_token for profile in self._profiles)

    @cached_property
    def _profiles(self) -> tuple[WorkerProfile, ...]:
        return tuple(WorkerProfile.load(pool.profile) for pool in self.pools)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_names()
        self._check_profiles()
        self._check_servable()
        self._check_budget()
        return self

    def _check_names(self) -> None:
        for field, items in (("pools", self.pools), ("slo_classes", self.slo_classes)):
            names = [item.name for item in items]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{field}: the name {name!r} is used more than once")
        for i, pool in enumerate(self.pools):
            if pool.gpu_type not in self.budget.gpus:
                raise ValueError(
                    f"pools[{i}].gpu_type: {pool.gpu_type!r} is not in budget.gpus "
                    f"({', '.join(self.gpu_types)})"
                )
        shares = sum(c.assign.share or 0.0 for c in self.slo_classes)
        if shares > 1.0 + 1e-9:
            raise ValueError(f"slo_classes: assign.share adds up to {shares:g}, above 1")

    def _check_profiles(self) -> None:
        for i, pool in enumerate(self.pools):
            try:
                profile = WorkerProfile.load(pool.profile)
            except ProfileError as error:
                raise ValueError(f"pools[{i}].profile: {error}") from error
            if not profile.fits:
                raise ValueError(
                    f"pools[{i}].profile: the weights of {profile.model} do not fit on "
                    f"{profile.tp} x {profile.system} (profile {profile.name} leaves no KV cache)"
                )
            if pool.gpus_per_replica < profile.tp:
                raise ValueError(
                    f"pools[{i}].gpus_per_replica: {pool.gpus_per_replica} is fewer than the "
                    f"{profile.tp} GPUs profile {profile.name} shards over"
                )
            if profile.model and profile.model != self.model:
                raise ValueError(
                    f"pools[{i}].profile: {profile.name} is of model {profile.model}, "
                    f"the spec serves {self.model}"
                )

    def _check_servable(self) -> None:
        roles = {pool.role for pool in self.pools}
        if "aggregated" not in roles and not {"prefill", "decode"} <= roles:
            raise ValueError(
                "pools: nothing can serve a request; needed is an aggregated pool, or a prefill "
                f"and a decode pool, found only {', '.join(sorted(roles))}"
            )
        router = self.router
        if router.kind == "static_grid" and router.prefill_grid is None:
            raise ValueError("router.prefill_grid: kind static_grid needs it")
        for field, grid, role in (
            ("prefill_grid", router.prefill_grid, "prefill"),
            ("decode_grid", router.decode_grid, "decode"),
        ):
            allowed = {p.name for p in self.pools if p.role in (role, "aggregated")}
            for name in (name for row in (grid.pools if grid else ()) for name in row):
                if name not in allowed:
                    raise ValueError(f"router.{field}: {name!r} is not a pool that can {role}")
        if router.kind == "static_grid" and router.decode_grid is None and "decode" in roles:
            raise ValueError("router.decode_grid: kind static_grid needs it with decode pools")

    def _check_budget(self) -> None:
        for what, counts in (
            ("min_replicas", [pool.min_replicas for pool in self.pools]),
            ("initial_replicas", [pool.initial for pool in self.pools]),
        ):
            gpus = [n * pool.gpus_per_replica for n, pool in zip(counts, self.pools, strict=True)]
            for gpu_type, budget in self.budget.gpus.items():
                held = sum(
                    g for g, p in zip(gpus, self.pools, strict=True) if p.gpu_type == gpu_type
                )
                if held > budget:
                    raise ValueError(
                        f"budget.gpus.{gpu_type}: {budget} GPUs, but {what} of the pools "
                        f"need {held}"
                    )
            total = self.budget.total_gpus
            if total is not None and sum(gpus) > total:
                raise ValueError(
                    f"budget.total_gpus: {total} GPUs, but {what} of the pools need {sum(gpus)}"
                )
            watts = sum(n * self.power_w_per_replica(i) for i, n in enumerate(counts))
            if self.budget.watts is not None and watts > self.budget.watts:
                raise ValueError(
                    f"budget.watts: {self.budget.watts:g} W, but {what} of the pools "
                    f"need {watts:g} W"
                )


@lru_cache(maxsize=64)
def _load_version(path: Path, _cwd: Path, _changed_ns: int, _size: int) -> ClusterSpec:
    return _validated(read_spec_file(path), path.name)


def _validated(data: dict[str, Any], where: str) -> ClusterSpec:
    try:
        return ClusterSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(describe(error, where)) from error


def _index(names: list[str], name: str, what: str) -> int:
    if name in names:
        return names.index(name)
    raise SpecError(f"{what} {name!r}; there are: {', '.join(names)}")

"""ServingGroup and WorkerPool: what users write, what planners write, as pydantic models.

Field names are camelCase in Kubernetes and snake_case here. Types of the cluster spec are used as
they are, under that spelling, so a group means the same to the simulator and to the planners.
Who writes what: users the specs, except `spec.quota` of a pool, which is the global planner's (and
so are the group's status and the finalizer); a pool's status is its local planner's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from hrl_planner.spec import (
    AssignSpec,
    BudgetSpec,
    GridSpec,
    IntervalSpec,
    KvTransferSpec,
    PoolSpec,
    RewardSpec,
    Role,
    RouterSpec,
    SloClassSpec,
    StartupSpec,
)

_CAMEL = ConfigDict(
    alias_generator=to_camel,
    populate_by_name=True,
    # A newer definition may have fields this planner does not know.
    extra="ignore",
    frozen=True,
)


class _Resource(BaseModel):
    model_config = _CAMEL


class Startup(StartupSpec):
    """How long a replica takes from holding its GPUs to serving."""

    model_config = _CAMEL

    mean_s: float = Field(120.0, ge=0)


class Budget(BudgetSpec):
    """What all pools together may hold, starting and draining replicas included."""

    model_config = _CAMEL


class Assign(AssignSpec):
    """Which requests belong to a class: by label, else by length, else by share."""

    model_config = _CAMEL


class SloClass(SloClassSpec):
    """A promise to a kind of request, and what keeping it is worth."""

    model_config = _CAMEL

    assign: Assign = Assign()


class Grid(GridSpec):
    """Pools by prompt length (rows) and SLO target (columns)."""

    model_config = _CAMEL


class Router(RouterSpec):
    """How the router picks a pool and a worker."""

    model_config = _CAMEL

    prefill_grid: Grid | None = None
    decode_grid: Grid | None = None


class Intervals(IntervalSpec):
    """Clocks of the planners and of metric collection, seconds."""

    model_config = _CAMEL


class KvTransfer(KvTransferSpec):
    """The link from prefill to decode workers."""

    model_config = _CAMEL


class Reward(RewardSpec):
    """What GPUs and changes cost against requests served in time."""

    model_config = _CAMEL


class PolicySpec(_Resource):
    """Who decides, and whether decisions are carried out."""

    allocator: str = Field(
        "lp",
        min_length=1,
        description="sets the quotas: a policy with parameters, such as lp:headroom=0.2 or static",
    )
    scaler: str = Field(
        "rule", min_length=1, description="scales within a quota: a policy, such as rule:up=0.9"
    )
    checkpoint: str | None = Field(
        None,
        min_length=1,
        description="a trained planner that takes the place of both: a folder where planners run, "
        "or the name of the spec one ships for",
    )
    mode: Literal["shadow", "active"] = Field(
        "shadow", description="shadow: decide and report, change nothing"
    )


class Condition(_Resource):
    """A condition as `kubectl wait` knows it."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None
    observed_generation: int | None = None


class QuotaClaim(_Resource):
    """An entry of the group's book: a quota about to be raised (docs/budget-ledger.md)."""

    pool: str
    uid: str
    version: str
    quota: int


class ServingGroupSpec(_Resource):
    """A model, the GPUs its pools share, and what users were promised."""

    model: str = Field(min_length=1)
    budget: Budget
    slo_classes: tuple[SloClass, ...] = Field(min_length=1)
    router: Router = Router()
    intervals: Intervals = Intervals()
    kv_transfer: KvTransfer = KvTransfer()
    kv_block_tokens: int = Field(16, ge=1, le=4096)
    reward: Reward = Reward()
    policy: PolicySpec = PolicySpec()


class ServingGroupStatus(_Resource):
    """What the global planner decided and what stands in the way."""

    observed_generation: int | None = None
    claims: tuple[QuotaClaim, ...] = Field((), description="quotas about to be raised")
    planned: dict[str, int] = Field({}, description="quota the plan gives each pool")
    waits: dict[str, str] = Field({}, description="why a pool has not got what the plan gives it")
    flows: dict[str, dict[str, float]] = Field(
        {}, description="requests per second by class and pool: the router's weights"
    )
    granted: dict[str, float] = Field({}, description="of each resource, granted or still held")
    reason: str = Field("", description="of the last plan")
    conditions: tuple[Condition, ...] = ()


class ScaleTargetRef(_Resource):
    """Any object with a scale subresource, in the pool's namespace, or a component of a DGD."""

    api_version: str = Field("apps/v1", min_length=1)
    kind: str = Field(min_length=1)
    name: str = Field(min_length=1)
    component: str | None = Field(
        None,
        min_length=1,
        description="of a DynamoGraphDeployment: through its scaling adapter, if it has one",
    )


class WorkerPoolSpec(_Resource):
    """One worker configuration, and what it is scaled by."""

    group: str = Field(min_length=1, description="the ServingGroup it belongs to")
    role: Role
    gpu_type: str = Field(min_length=1)
    gpus_per_replica: int | None = Field(
        None, ge=1, le=1024, description="absent: unknown, and then the pool is never scaled up"
    )
    profile: str = Field(min_length=1, description="name of a shipped profile, or an .npz file")
    min_replicas: int = Field(0, ge=0)
    max_replicas: int = Field(ge=1, le=4096)
    startup: Startup = Startup()
    price_per_gpu_hour: float = Field(1.0, ge=0)
    power_w_per_gpu: float | None = Field(None, ge=0, description="absent: the profile's TDP")
    max_num_seqs: int = Field(256, ge=1, le=4096)
    max_num_batched_tokens: int = Field(8192, ge=1, le=1_048_576)
    latency_scale: float = Field(1.0, gt=0, le=100)
    scale_target_ref: ScaleTargetRef
    pod_selector: dict[str, str] = Field(
        {}, description="labels of its pods; absent: what the scale subresource names"
    )
    pods_per_replica: int = Field(
        1,
        ge=1,
        le=1024,
        description="where pods' labels do not tell; those of LeaderWorkerSet and Grove do",
    )
    quota: int | None = Field(
        None, ge=0, description="most replicas; written by the global planner"
    )
    quota_sequence: int = Field(0, ge=0, description="counts the writes of quota")

    def to_pool(self, name: str) -> PoolSpec:
        """Return the pool as the cluster spec has it; one GPU where the number is unknown."""
        return PoolSpec(
            name=name,
            role=self.role,
            gpu_type=self.gpu_type,
            gpus_per_replica=self.gpus_per_replica or 1,
            profile=self.profile,
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            startup=self.startup,
            price_per_gpu_hour=self.price_per_gpu_hour,
            power_w_per_gpu=self.power_w_per_gpu,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            latency_scale=self.latency_scale,
        )


class ReplicaClaim(_Resource):
    """The open entry of the pool's book: its target about to be raised."""

    start: int
    to: int
    version: str
    spec_version: str


class Acknowledged(_Resource):
    """The last quota that the target is known to keep to."""

    quota: int
    sequence: int


class WorkerPoolStatus(_Resource):
    """What the local planner sees and did."""

    observed_generation: int | None = None
    desired: int | None = Field(None, description="replicas the target is asked for")
    wanted: int | None = Field(None, description="replicas the policy would have")
    replicas: int = Field(0, description="starting, ready, draining and pending")
    ready: int = 0
    starting: int = 0
    draining: int = 0
    pending: int = Field(0, description="no machine is free for them")
    held_gpus: int = 0
    reserved: int | None = Field(
        None, description="most replicas it may hold, the claim aside; absent: never counted"
    )
    claim: ReplicaClaim | None = None
    acknowledged: Acknowledged | None = None
    attainment: float | None = Field(None, description="share of requests within their targets")
    selector: str = ""
    reason: str = Field("", description="of the last decision")
    conditions: tuple[Condition, ...] = ()


class Metadata(_Resource):
    """The part of an object's metadata that planners read."""

    name: str
    namespace: str = "default"
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] = ()


class ServingGroup(_Resource):
    """A model served by many pools under one budget."""

    metadata: Metadata
    spec: ServingGroupSpec
    status: ServingGroupStatus = ServingGroupStatus()


class WorkerPool(_Resource):
    """One worker configuration of a group."""

    metadata: Metadata
    spec: WorkerPoolSpec
    status: WorkerPoolStatus = WorkerPoolStatus()

    @property
    def name(self) -> str:
        """Name of the object and of the pool."""
        return self.metadata.name

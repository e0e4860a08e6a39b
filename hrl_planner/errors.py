"""The errors a user can meet, as a small tree.

    HrlPlannerError
      SpecError       a cluster spec is malformed or contradicts itself
      ProfileError    a latency profile is missing, malformed or does not fit
      TraceError      a request trace is malformed (readers add file and line)
      ScenarioError   an unknown scenario, or one that cannot be built on this spec
      PolicyError     an unknown policy or a parameter it does not have
      CheckpointError a trained planner is missing, damaged or does not fit
      TrainingError   a training config or folder is at fault
      RouterError     a router config, a workers file or a tokenizer is at fault
      EngineError     a mock engine was asked for something that cannot be
      LoadError       a load run was misdescribed, or nothing answers
      KubeError       the API server refused, or lacks what a planner needs
      DecisionLogError  a decision log holds no decision, or one that cannot be asked for again
      ManifestError   a cluster spec cannot be installed on Kubernetes as it is
      LocalClusterError  a cluster on this machine cannot be started, or died

Whoever raises one writes a message that names the file, the field and the value, and what would
be right. The command line prints that message and exits with status 2; it never shows a traceback
for these.
"""


class HrlPlannerError(Exception):
    """Base of every error that is the input's fault, not the program's."""


class SpecError(HrlPlannerError):
    """A cluster spec is malformed or contradicts itself."""


class ProfileError(HrlPlannerError):
    """A latency profile is missing, malformed, or describes a worker that cannot exist."""


class TraceError(HrlPlannerError):
    """A request trace is malformed."""


class ScenarioError(HrlPlannerError):
    """A scenario is unknown or cannot be built on the given spec."""


class PolicyError(HrlPlannerError):
    """A policy is unknown or was given a parameter it does not have."""


class CheckpointError(HrlPlannerError):
    """A checkpoint is missing, damaged, or does not fit this version."""


class TrainingError(HrlPlannerError):
    """A training config is malformed, or a training folder cannot be continued."""


class RouterError(HrlPlannerError):
    """A router config, a workers file or a tokenizer is malformed or contradicts itself."""


class EngineError(HrlPlannerError):
    """A mock engine was asked for a worker that cannot exist, or its port is taken."""


class LoadError(HrlPlannerError):
    """A load run is misdescribed, or nothing answers at its address."""


class KubeError(HrlPlannerError):
    """The API server refused, or lacks a resource or a permission that a planner needs."""


class DecisionLogError(HrlPlannerError):
    """A decision log holds no decisions, or was asked for something it cannot answer."""


class LocalClusterError(HrlPlannerError):
    """A Kubernetes cluster on this machine lacks a program, or one of its servers died."""


class ManifestError(HrlPlannerError):
    """A cluster spec, or an option, that no Kubernetes objects can be made of."""

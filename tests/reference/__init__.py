"""A slow, plain simulator of the cluster that the compiled kernel must agree with."""

from tests.reference.simulation import ReferenceSimulation

__all__ = ["ReferenceSimulation"]

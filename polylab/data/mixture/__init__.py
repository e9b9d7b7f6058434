"""The embedded mixture: tasks composed of known latent skills."""

from polylab.data.mixture.source import MixtureSource

__all__ = ["MixtureSource"]

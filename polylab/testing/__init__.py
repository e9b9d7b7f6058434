"""Checks for classes of your own: does a router, prior, sampler or combining rule keep its word?

Each check raises an `AssertionError` that says what was checked, what came out and what is
required; a class that passes all of them can be named in a configuration and trained.
"""

from polylab.testing.combining import check_combine
from polylab.testing.priors import check_prior
from polylab.testing.routers import check_router
from polylab.testing.samplers import check_sampler

__all__ = ["check_combine", "check_prior", "check_router", "check_sampler"]

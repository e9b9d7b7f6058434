"""Routers: from a task id, or from the input, to the weights of a layer's skills."""

from polylab.poly.routers.base import EPS, Router, normalise
from polylab.poly.routers.fixed import GivenRouter, PrivateRouter, UniformRouter
from polylab.poly.routers.inputs import InputRouter
from polylab.poly.routers.make import make_router
from polylab.poly.routers.sampling import RelaxedBernoulli, Sampler, StraightThrough
from polylab.poly.routers.tasks import CLOSED, CPolyRouter, TaskRouter

__all__ = [
    "CLOSED",
    "EPS",
    "CPolyRouter",
    "GivenRouter",
    "InputRouter",
    "PrivateRouter",
    "RelaxedBernoulli",
    "Router",
    "Sampler",
    "StraightThrough",
    "TaskRouter",
    "UniformRouter",
    "make_router",
    "normalise",
]

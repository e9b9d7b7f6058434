"""Weights & Biases: a logger that loses no run, the run's artifact, and a workspace of panels."""

from polylab.tracking.artifact import log_run_artifact
from polylab.tracking.logger import PatientWandbLogger, finish, staged_in

__all__ = ["PatientWandbLogger", "finish", "log_run_artifact", "staged_in"]

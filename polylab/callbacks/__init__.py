"""What is seen of a run while it trains, and what is kept of it."""

from polylab.callbacks.gradient_alignment import GradientAlignment
from polylab.callbacks.history import AllocationHistory
from polylab.callbacks.progress import Progress
from polylab.callbacks.recovery import Recovery
from polylab.callbacks.redundancy import SkillRedundancy
from polylab.callbacks.routing_statistics import RoutingStatistics
from polylab.callbacks.routing_use import RoutingUse
from polylab.callbacks.skill_figures import SkillFigures
from polylab.callbacks.skill_table import SkillTable
from polylab.callbacks.throughput import Throughput
from polylab.callbacks.update_sizes import UpdateSizes

__all__ = [
    "AllocationHistory",
    "GradientAlignment",
    "Progress",
    "Recovery",
    "RoutingStatistics",
    "RoutingUse",
    "SkillFigures",
    "SkillRedundancy",
    "SkillTable",
    "Throughput",
    "UpdateSizes",
]

"""How tasks can be routed that a run does not know."""

WAYS = ("mean", "nearest", "input")

"""The ranks of a run end together, with the error of the one that failed."""

"""Few-shot adaptation of a trained run: the shots, the methods, the table of results."""

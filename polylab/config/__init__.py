"""The Hydra side: schemas, recipes, errors in one line, the run's folder. Light to import."""

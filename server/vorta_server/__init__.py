"""Vorta's server: compiler, engine, runners, workers, front."""

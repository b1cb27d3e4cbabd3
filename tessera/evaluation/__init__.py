"""Metrics, baselines and the evaluation stage."""

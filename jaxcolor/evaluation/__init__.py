"""Evaluates trained networks: metrics, baselines, reports, comparisons of runs and sweeps of inference settings.

May import every room except `jaxcolor.train`, `jaxcolor.sweep`, `jaxcolor.benchmark` and the commands.
"""

"""Pipelines of the tutorial."""

"""Traced functions: the only place that reads the equations of a jaxpr."""

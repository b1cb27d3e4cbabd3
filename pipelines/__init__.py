"""Pipelines over the components, and the command line that starts them."""

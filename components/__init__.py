"""Kubeflow components: one folder a stage, each a thin shim around a plain function."""

"""Peers from RecBole, trained in an environment of their own on our split and measured with our metrics."""

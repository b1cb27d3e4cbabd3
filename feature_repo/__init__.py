"""Feast: item enrichments, semantic IDs, user histories and top-K, offline and online."""

"""Constrained decoding: the catalogue index, the beam search over it, and the recommender that joins them."""

"""Tessera: semantic IDs and a generative recommender from a catalogue and its purchase histories."""

__version__ = "0.1.0"

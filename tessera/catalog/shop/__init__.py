"""The demo shop: a catalogue with known truth, for the demo and for tests of what photos and intents are worth."""

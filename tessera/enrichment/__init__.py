"""Enrichment: captions (CMSA), intents (DCIM), descriptor quality (QARM labels), and text and image embeddings.

`stages` holds one function per pipeline stage; `providers` holds who answers: `embedded`, `openai` or `transformers`.
"""

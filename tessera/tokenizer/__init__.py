"""Item representation to semantic IDs: multimodal fusion, residual quantizers, collisions, the tokenizer bundle."""

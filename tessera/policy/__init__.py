"""The generative recommender: backbone with SID tokens, training, and the policy bundle."""

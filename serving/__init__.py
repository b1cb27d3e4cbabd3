"""What serves a promoted policy: the model registry, the Triton model repository, the embedded server, the client."""

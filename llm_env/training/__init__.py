"""`crl llm train`: constrained RL of a causal language model on disk, from one config file."""

"""`crl llm sft` and `crl llm score`: supervised fits of models on disk to data on disk."""

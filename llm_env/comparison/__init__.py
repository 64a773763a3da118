"""`crl llm compare`: Safe RLHF against static shaping on the embedded world, with a report."""

"""`crl llm plan`: does a training config fit into memory? Answered before anything is loaded."""

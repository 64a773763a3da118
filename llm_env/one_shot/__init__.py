"""The price of a constraint from the reference's own responses, before any training."""

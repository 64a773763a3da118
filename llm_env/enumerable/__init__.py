"""Constrained RLHF on a language small enough to list: exact optima, and the prices they have."""

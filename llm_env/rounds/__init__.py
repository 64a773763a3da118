"""Iterated Safe RLHF: generate, red-team, label, refit the score models, train again."""

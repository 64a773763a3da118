"""Iterated Safe RLHF: generate, red-team, label, refit the score models, train again."""

MARK = "rounds.txt"
"""file that tells a folder of rounds from other runs"""

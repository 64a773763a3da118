"""Language models on the same prompts: answers, scores, pairwise comparisons, a report, a chat."""

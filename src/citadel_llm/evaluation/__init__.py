"""How well models answer: a set of multiple-choice questions, asked by log-likelihood."""

"""How good a run's labeler, reward model and policy are, each number with its interval."""

"""Questions, checks, solutions and usual mistakes: one file a technique."""

"""Which files the SOURCE arguments name, what kind each is, and how its bytes become text."""

"""How gradients are added up over ranks, scaled and divided."""

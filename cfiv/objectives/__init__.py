"""What features descend: DFIV's two stages, DeepIV's, AGMM's game, a regression. They see tensors and networks, no tables."""

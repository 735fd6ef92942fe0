"""How torch computes here: devices, threads, the caller's settings, random numbers of a fit's own, states of modules."""

"""States, steps and loops: how features learn while their last layers are solved. Sees tensors and modules, never tables."""

"""The last-layer trainer: any module, inputs and targets, batch by batch. Sees tensors and loaders, never an instrument."""

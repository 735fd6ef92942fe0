"""Ground floor: pure functions on tensors. Nothing here sees a table, a module, a file or a logger."""

"""How anything here trains: one loop, members side by side, last layers that are solved, what is kept and written to disk."""

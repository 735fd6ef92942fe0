"""Studies that ship with cfiv: TOML files, and the designs and methods of those that compare last layers."""

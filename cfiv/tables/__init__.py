"""Tables to arrays: roles by formula or name, the terms that formulas may use, raw columns, and the fitted encoding."""

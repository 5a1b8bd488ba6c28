"""Shipped recipes: one TOML = one whole run. `inkstone recipes` lists them."""
